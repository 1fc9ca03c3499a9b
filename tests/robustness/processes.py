"""What tests of attacks look at: the process that is attacked, as the kernel sees it, and calls of somebody else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from tests.end_to_end.requests_of import Answer, call
from tests.end_to_end.steps import until
from tests.server_process import Server

#: States of a connection that the server has not closed: ESTABLISHED, CLOSE_WAIT.
_OPEN = ("01", "08")


class Process:
    """The only process of a server that answers calls."""

    def __init__(self, server: Server) -> None:
        (number,) = server.processes()
        self._folder = Path(f"/proc/{number}")
        self._port = f":{server.port:04X}"

    @property
    def files(self) -> int:
        """Files and connections that it has open."""
        return len([*self._folder.joinpath("fd").iterdir()])

    @property
    def peers(self) -> int:
        """Connections of clients that it has open."""
        table = [line.split() for line in self._folder.joinpath("net/tcp").read_text().splitlines()[1:]]
        return sum(local.endswith(self._port) and state in _OPEN for _, local, _, state, *_ in table)

    @property
    def memory_bytes(self) -> int:
        """Memory that it has."""
        return int(self._folder.joinpath("statm").read_text().split()[1]) * 4096


@contextmanager
def calling(
    channel: grpc.Channel, token: str, path: str, data: bytes, *, pause_seconds: float = 0
) -> Iterator[list[Answer]]:
    """Somebody else's calls, one after the other, as long as the block runs; repeated by nobody."""
    ended, answers = threading.Event(), list[Answer]()

    def run() -> None:
        while not ended.is_set():
            answers.append(call(channel, path, data, token))
            ended.wait(pause_seconds)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: len(answers) > 3)
        yield answers
        before = len(answers)
        until(lambda: len(answers) > before)
    finally:
        ended.set()
        thread.join()
