"""The metrics of several processes, told over HTTP by their supervisor. What is counted is in `metrics`, unknown here.

The processes meet in a folder that is made for them.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class MetricsAddressError(Exception):
    """The address for metrics cannot be listened on; the message says what to do."""


class Exposed:
    """The metrics of several processes, told over HTTP.

    Attributes:
        address: where, HOST:PORT with the port that was taken; "" if nowhere.
        environment: what the processes need in theirs when they start.
    """

    def __init__(self, address: str, folder: str) -> None:
        self.address = address
        self.environment = {_FOLDER_VARIABLE: folder} if folder else {}
        self._folder = folder

    def forget(self, process: int) -> None:
        """Drops what a process that has ended was at; what it counted stays."""
        if self._folder:
            mark_process_dead(process, self._folder)  # type: ignore[no-untyped-call]


@contextmanager
def exposed(address: str) -> Iterator[Exposed]:
    """Tells the metrics of processes to whoever asks for http://ADDRESS/metrics. Raises MetricsAddressError.

    Args:
        address: HOST:PORT; "" for nowhere.
    """
    if not address:
        yield Exposed("", "")
        return
    folder = tempfile.mkdtemp(prefix="cunho-metrics-")
    try:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        with _served(address, registry) as served:
            yield Exposed(served, folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _served(address: str, registry: CollectorRegistry) -> Iterator[str]:
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise MetricsAddressError(
            f"cannot tell metrics on {address} ({error.strerror}): stop what listens there, or choose another address "
            "with CUNHO_METRICS_ADDRESS"
        ) from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
