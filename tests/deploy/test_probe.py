"""A server's health as this machine is told it: over TLS with the server's own files, stopping, and gone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import world as worlds
from tests.client.certificates import Authority
from tests.world import Postgres, World

from cunho_server import issuing, probe
from cunho_server.probe import ProbeError
from cunho_server.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a first installation."""
    folder = tmp_path_factory.mktemp("keys")
    issuing.make(folder, hosts=["*.cunho.example", "cunho.example"])
    return folder


@pytest.fixture(scope="module", params=["in clear", "TLS", "mutual TLS"])
def world(request: pytest.FixtureRequest, postgres: Postgres, folder: Path) -> Iterator[World]:
    """A service on every address of this machine where that is allowed, else on loopback."""
    files = {"tls_certificate": folder / "server.pem", "tls_key": folder / "server-key.pem"}
    given: dict[str, dict[str, Any]] = {
        "in clear": {},
        "TLS": files | {"address": "0.0.0.0:0", "token_key": folder / "token-public.pem"},
        "mutual TLS": files | {"address": "0.0.0.0:0", "tls_client_ca": folder / "ca.pem"},
    }
    with worlds.world(postgres, **given[request.param]) as running:
        yield running


def settings(world: World) -> Settings:
    """Its settings, with the port that it took."""
    return world.settings.model_copy(update={"address": world.address})


def test_a_server_that_serves_is_healthy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a machine's proxy has no part in it
    probe.health(settings(world))


def test_a_server_whose_certificate_has_its_name_as_common_name_alone_is_healthy(
    postgres: Postgres, folder: Path, tmp_path: Path
) -> None:
    pair = Authority(tmp_path).signed("cunho.example", uri="spiffe://example/cunho")
    files: dict[str, Any] = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    files["token_key"] = folder / "token-public.pem"
    with worlds.world(postgres, **files) as world:
        probe.health(settings(world))


def test_a_server_that_is_not_there_is_told_with_its_address(world: World) -> None:
    gone = world.settings.model_copy(update={"address": "127.0.0.1:1"})
    with pytest.raises(ProbeError, match=r"^127\.0\.0\.1:1 does not answer: "):
        probe.health(gone)
