"""An address is kept for a server only where nobody else listens: at none of the places that its name stands for."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cunho_server.address import AddressError, reserved


@contextmanager
def taken(host: str) -> Iterator[int]:
    """The port on which somebody listens there, who would share it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listening.listen()
        yield listening.getsockname()[1]


def stand_for(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Has every name stand for these hosts."""

    def found(_: str, port: int, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_localhost_is_in_use_if_either_of_its_addresses_is(host: str) -> None:
    with taken(host) as port, pytest.raises(AddressError, match=f"cannot listen on localhost:{port} .*in use"):
        reserved(f"localhost:{port}")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_name_is_in_use_if_any_of_its_addresses_is(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    stand_for(monkeypatch, "127.0.0.1", "127.0.0.2")
    with taken(host) as port, pytest.raises(AddressError, match=f"cannot listen on example:{port} .*in use"):
        reserved(f"example:{port}")


def test_a_name_may_stand_for_an_address_that_this_machine_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_for(monkeypatch, "127.0.0.1", "192.0.2.1")
    with reserved("example:0") as kept:
        assert kept.getsockname()[0] == "127.0.0.1"
