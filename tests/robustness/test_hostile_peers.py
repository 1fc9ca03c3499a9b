"""Peers that mean harm: the service goes on, others do not notice, and afterwards nothing of it is left."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.client.certificates import Authority
from tests.end_to_end.requests_of import BY_NAME, call
from tests.end_to_end.steps import until
from tests.robustness import peers
from tests.robustness.peers import Attack
from tests.robustness.processes import Process, calling
from tests.robustness.scale import scaled
from tests.server_process import Server, serving
from tests.world import Postgres

from cunho import v1 as pb

GET, ABSENT = BY_NAME["GetImage"].path, pb.GetImageRequest(image_id="img-00000000").SerializeToString()

#: How much more memory a process may hold after an attack: what it keeps for the next connections.
MEMORY_BYTES = 64 << 20

#: Connections to PostgreSQL that it may have made meanwhile, by all that it keeps.
CONNECTIONS = 4

#: What each sends, by how much: in `make test`, and in `make robustness`.
ATTACKS: dict[Attack, tuple[int, int]] = {
    peers.garbage: (30, 3000),
    peers.http_1: (10, 1000),
    peers.rapid_reset: (3000, 100_000),
    peers.made_resets: (3000, 100_000),
    peers.pings: (10_000, 1_000_000),
    peers.settings_flood: (5000, 500_000),
    peers.priorities: (10_000, 1_000_000),
    peers.empty_data: (10_000, 1_000_000),
    peers.huge_headers: (3, 200),
    peers.continuations: (10_000, 1_000_000),
    peers.header_bomb: (10, 1000),
    peers.idle: (200, 1000),
    peers.unclosed_streams: (1000, 20_000),
    peers.trickle: (500, 20_000),
}

ATTACKS_OF_TLS: dict[Attack, tuple[int, int]] = {
    peers.half_handshakes: (100, 1000),
    peers.handshakes: (20, 1000),
    peers.garbage: (10, 1000),
}


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one process, which therefore takes every attack."""
    folder = tmp_path_factory.mktemp("hostile") / "data"
    chosen: dict[str, Any] = {
        "PROCESSES": 1,
        "SHUTDOWN_SECONDS": 0,
        "DATABASE_URL": postgres.database(),
        "CONNECTIONS": CONNECTIONS,
    }
    with serving(folder, **chosen) as started:
        yield started


def assert_unnoticed(server: Server, channel: grpc.Channel, token: str, attack: Attack, number: int) -> None:
    """During the attack everybody else is answered, and afterwards the process is as it was before."""
    process = Process(server)
    call(channel, GET, ABSENT, token)
    open_peers, files, memory_bytes = process.peers, process.files, process.memory_bytes
    with calling(channel, token, GET, ABSENT) as answers:
        attack(server.address, number)
    assert {(answer.code.name, answer.reason) for answer in answers} == {("NOT_FOUND", "IMAGE_NOT_FOUND")}
    until(lambda: process.peers <= open_peers, 30)
    until(lambda: process.files <= files + CONNECTIONS + 2, 30)
    until(lambda: process.memory_bytes < memory_bytes + MEMORY_BYTES, 30)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_others_do_not_notice(server: Server, attack: Attack) -> None:
    with grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel:
        assert_unnoticed(server, channel, server.token("acme"), attack, scaled(*ATTACKS[attack]))


def test_others_do_not_notice_who_never_reads_his_answers(server: Server) -> None:
    with grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel:
        attack = peers.closed_windows(server.token("globex"))
        assert_unnoticed(server, channel, server.token("acme"), attack, scaled(200, 5000))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signed the certificate of the server with TLS."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secured(postgres: Postgres, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as the other, with TLS."""
    pair = authority.signed("127.0.0.1")
    files: dict[str, Any] = {"TLS_CERTIFICATE": pair.certificate, "TLS_KEY": pair.key, "CONNECTIONS": CONNECTIONS}
    folder = tmp_path_factory.mktemp("secured") / "data"
    with serving(folder, PROCESSES=1, SHUTDOWN_SECONDS=0, DATABASE_URL=postgres.database(), **files) as started:
        yield started


@pytest.mark.parametrize("attack", ATTACKS_OF_TLS, ids=lambda attack: attack.__name__)
def test_others_do_not_notice_where_there_is_tls(secured: Server, authority: Authority, attack: Attack) -> None:
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
    with grpc.secure_channel(secured.address, credentials, [("grpc.enable_retries", 0)]) as channel:
        assert_unnoticed(secured, channel, secured.token("acme"), attack, scaled(*ATTACKS_OF_TLS[attack]))
