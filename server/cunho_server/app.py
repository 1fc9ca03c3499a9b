"""The server, wired. Everything that is put together is put together here."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cunho.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    image_service_pb2,
    image_service_pb2_grpc,
    instance_service_pb2,
    instance_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    region_service_pb2,
    region_service_pb2_grpc,
)
from cunho_server import catalog, development, identity, reflection
from cunho_server.accounts import AccountService
from cunho_server.answering import Answering
from cunho_server.apply import Applied, apply
from cunho_server.images import ImageService
from cunho_server.instances import InstanceService
from cunho_server.ledger import Ledger
from cunho_server.operations import Operations
from cunho_server.page_tokens import PageTokens
from cunho_server.quotas import QuotaService
from cunho_server.regions import RegionService
from cunho_server.servicer import Service
from cunho_server.settings import Settings
from cunho_server.work import Driver, Work
from cunho_storage import embedded, migrations, regions, secrets
from cunho_storage.database import Database

log = logging.getLogger(__name__)

_SERVICES: tuple[tuple[Any, Any, Any], ...] = (
    (image_service_pb2, image_service_pb2_grpc.add_ImageServiceServicer_to_server, ImageService),
    (instance_service_pb2, instance_service_pb2_grpc.add_InstanceServiceServicer_to_server, InstanceService),
    (quota_service_pb2, quota_service_pb2_grpc.add_QuotaServiceServicer_to_server, QuotaService),
    (account_service_pb2, account_service_pb2_grpc.add_AccountServiceServicer_to_server, AccountService),
    (region_service_pb2, region_service_pb2_grpc.add_RegionServiceServicer_to_server, RegionService),
    (operations_pb2, operations_pb2_grpc.add_OperationsServicer_to_server, Operations),
)

_CHANNEL_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is refused, not mixed in
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class AddressError(Exception):
    """The address cannot be listened on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A service that answers calls."""

    #: Where, HOST:PORT with the port that was taken.
    address: str
    service: Service


@contextmanager
def postgresql(settings: Settings) -> Iterator[str]:
    """The URL of the PostgreSQL to use; the embedded one runs as long as this does."""
    if settings.database_url:
        yield settings.database_url
        return
    own = embedded.start(settings.data_dir)
    try:
        yield own.dsn
    finally:
        own.stop()


@asynccontextmanager
async def opened(settings: Settings, dsn: str) -> AsyncIterator[Database]:
    """The database, its schema up to date, its catalogue loaded if it had none."""
    for name in await migrations.migrate(dsn):
        log.info("applied migration %s", name)
    database = Database(dsn, connections=settings.connections, role=migrations.APP_ROLE)
    try:
        async with database.connection() as connection:
            empty = not await regions.list_(connection, after="", limit=1)
        if empty:
            applied = await apply(database, catalog.read(settings.catalog))
            log.info("loaded the catalogue: %d public images", applied.published)
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def serving(settings: Settings, database: Database, driver: Driver | None = None) -> AsyncIterator[Serving]:
    """The service, answering calls; on leaving, calls under way may end within the settings' grace.

    Args:
        driver: what makes machines real. Default: the ledger.
    """
    async with database.connection() as connection:
        page_key = await secrets.shared(connection, "page_tokens")
    driver = driver or Ledger(settings.ledger_seconds)
    work = Work(database, driver, workers=settings.workers, lease_seconds=settings.lease_seconds)
    service = Service(database, _identity(settings), PageTokens(page_key), work, settings)
    server, healths, names = _server(service)
    address = f"{settings.address.rpartition(':')[0]}:{_listen(server, settings.address)}"
    await server.start()
    for name in names:
        await healths.set(name, health_pb2.HealthCheckResponse.SERVING)
    working = asyncio.create_task(work.run())
    try:
        yield Serving(address, service)
    finally:
        await healths.enter_graceful_shutdown()
        work.dismiss()
        await server.stop(settings.shutdown_seconds)
        working.cancel()
        await asyncio.wait({working})


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    _log_as(settings)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    with postgresql(settings) as dsn:
        async with opened(settings, dsn) as database, serving(settings, database) as running:
            log.info("serving on %s", running.address)
            if settings.token_key is None:
                await development.welcome(running.address, settings, database)
            await stopped.wait()
            log.info("stopping: calls under way may take %g s more", settings.shutdown_seconds)


async def migrate(settings: Settings) -> list[str]:
    """Brings the schema up to date; the names of the migrations applied."""
    with postgresql(settings) as dsn:
        return await migrations.migrate(dsn)


async def apply_catalog(settings: Settings, path: Path) -> Applied:
    """Applies a catalogue file to the database; what that did. Raises CatalogError."""
    wanted = catalog.read(path)
    with postgresql(settings) as dsn:
        async with opened(settings, dsn) as database:
            return await apply(database, wanted)


def _server(service: Service) -> tuple[grpc.aio.Server, health.aio.HealthServicer, list[str]]:
    server = grpc.aio.server(interceptors=[Answering(service.identity)], options=_CHANNEL_OPTIONS)
    healths = health.aio.HealthServicer()
    names = [health.SERVICE_NAME]
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    for pb2, add, servicer in _SERVICES:
        add(servicer(service), server)
        names += [each.full_name for each in pb2.DESCRIPTOR.services_by_name.values()]
    if service.settings.reflection:
        reflection.add(server, names)
    return server, healths, names


def _identity(settings: Settings) -> identity.Identity:
    if settings.token_key is None:
        key = identity.development_key(settings.development_key).public_key()
    else:
        key = identity.public_key(settings.token_key)
    return identity.Identity(key, token_age_max_seconds=settings.token_age_max_seconds)


def _listen(server: grpc.aio.Server, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        raise AddressError(
            f"cannot listen on {address}: stop what listens there, or choose another address with CUNHO_ADDRESS"
        ) from None


def _log_as(settings: Settings) -> None:
    """Sends the log to standard error, in the form that the settings say."""
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    form = console if settings.log_format == "console" else structlog.processors.JSONRenderer()
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                form,
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
