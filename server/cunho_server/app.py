"""The server, wired. Everything that is put together is put together here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc

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
from cunho_server import admin, keys, listening, memory, metrics, reflection, self_probe
from cunho_server.accounts import AccountService
from cunho_server.admission import Admission
from cunho_server.answering import Answering
from cunho_server.channel_options import channel_options
from cunho_server.healthy import SERVICE_NAME, Health
from cunho_server.identity import Identity
from cunho_server.images import ImageService
from cunho_server.instances import InstanceService
from cunho_server.ledger import Ledger
from cunho_server.operations import Operations
from cunho_server.page_tokens import PageTokens
from cunho_server.quotas import QuotaService
from cunho_server.regions import RegionService
from cunho_server.servicer import Service
from cunho_server.settings import Settings
from cunho_server.tracing import Tracing, make_tracing
from cunho_server.work import Driver, Work
from cunho_storage import secrets
from cunho_storage.database import Database

log = logging.getLogger(__name__)

#: Pause after a bug in what lasts.
_PAUSE_SECONDS = 1

#: Servers of gRPC in a process that shares its port. Each takes up one call at a time, and the next some turns of the
#: event loop later; together they take up that many at once, and each turn has more to do.
_SERVERS = 8

_SERVICES: tuple[tuple[Any, Any, Any], ...] = (
    (image_service_pb2, image_service_pb2_grpc.add_ImageServiceServicer_to_server, ImageService),
    (instance_service_pb2, instance_service_pb2_grpc.add_InstanceServiceServicer_to_server, InstanceService),
    (quota_service_pb2, quota_service_pb2_grpc.add_QuotaServiceServicer_to_server, QuotaService),
    (account_service_pb2, account_service_pb2_grpc.add_AccountServiceServicer_to_server, AccountService),
    (region_service_pb2, region_service_pb2_grpc.add_RegionServiceServicer_to_server, RegionService),
    (operations_pb2, operations_pb2_grpc.add_OperationsServicer_to_server, Operations),
)


@dataclass(frozen=True, slots=True)
class Serving:
    """A service that answers calls."""

    #: Where, HOST:PORT with the port that was taken.
    address: str
    service: Service


@asynccontextmanager
async def serving(
    settings: Settings, database: Database, driver: Driver | None = None, *, index: int = 0, shares_port: bool = False
) -> AsyncIterator[Serving]:
    """The service, answering calls; on leaving, calls under way may end within the settings' grace.

    Args:
        driver: what makes machines real. Default: the ledger.
        index: which of the server's processes this is.
        shares_port: whether other processes answer calls on the same port.
    """
    async with database.connection() as connection:
        page_key = await secrets.shared(connection, "page_tokens")
    driver = driver or Ledger(settings.ledger_seconds)
    work = Work(database, driver, workers=settings.workers, lease_seconds=settings.lease_seconds)
    admission = Admission(settings)
    identity = Identity(await asyncio.to_thread(keys.verifying, settings), settings)
    service = Service(database, identity, PageTokens(page_key), work, admission, settings)
    async with AsyncExitStack() as stack:
        tracing = stack.enter_context(closing(make_tracing())) if settings.traces else None
        health = Health(_names())
        options = channel_options(settings, shares_port=shares_port)
        answerings = [_answering(service, tracing) for _ in range(_SERVERS if shares_port else 1)]
        servers = [_server(service, health, options, each) for each in answerings]
        address = f"{settings.address.rpartition(':')[0]}:{listening.listen(servers, settings)}"
        own_addresses = stack.enter_context(self_probe.own_addresses(servers))
        await stack.enter_async_context(admin.serving(settings, index))
        await health.tell(True)
        await asyncio.gather(*(server.start() for server in servers))
        lasting = (
            _lasting(work.run),
            _lasting(health.follow, database),
            _lasting(identity.keep_current),
            _lasting(metrics.follow, admission, database),
            _lasting(memory.give_back),
        )
        tasks = {asyncio.create_task(each) for each in lasting}
        pacing = asyncio.create_task(
            _lasting(self_probe.follow, admission.pace, own_addresses, lambda: [each.taken_up for each in answerings])
        )
        try:
            yield Serving(address, service)
        finally:
            pacing.cancel()
            await asyncio.wait({pacing})
            await health.stop()
            admission.close()
            work.dismiss()
            # Clients are told to go elsewhere at once; calls under way go on.
            await asyncio.gather(*(server.stop(settings.shutdown_seconds) for server in servers))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _lasting(follow: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """What lasts as long as the process, until cancelled: after a bug, which is logged, it begins again."""
    task = asyncio.current_task()
    assert task is not None
    while not task.cancelling():  # an error on the way out can take the place of the cancellation
        try:
            return await follow(*arguments)
        except Exception:
            log.exception("bug in %s.%s, which begins again", follow.__module__, follow.__qualname__)
            await asyncio.sleep(_PAUSE_SECONDS)


def _answering(service: Service, tracing: Tracing | None) -> Answering:
    return Answering(
        service.identity, service.admission, call_seconds_max=service.settings.call_seconds_max, tracing=tracing
    )


def _server(
    service: Service, health: Health, options: Sequence[tuple[str, int]], answering: Answering
) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[answering], options=options)
    # gRPC would wait for the calls of each registered method apart: a tenth of a millisecond more for every call.
    server.add_registered_method_handlers = lambda *_: None  # type: ignore[method-assign]
    for _, add, servicer in _SERVICES:
        add(servicer(service), server)
    health.add_to(server)
    if service.settings.reflection:
        reflection.add(server, [SERVICE_NAME, *_names()])
    return server


def _names() -> list[str]:
    """The full names of the services."""
    return [each.full_name for pb2, _, _ in _SERVICES for each in pb2.DESCRIPTOR.services_by_name.values()]
