"""The clients and the real service: what only the two together show."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests import world as worlds
from tests.client.certificates import Authority
from tests.world import GUANGZHOU, ZONES, Postgres, World

from cunho import Client, Refused, Tls, aio, v1


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def world(postgres: Postgres, authority: Authority) -> Iterator[World]:
    """A service that knows its callers by their certificates."""
    own = authority.signed("127.0.0.1")
    files: dict[str, Any] = {"tls_certificate": own.certificate, "tls_key": own.key, "tls_client_ca": authority.file}
    with worlds.world(postgres, **files) as running:
        yield running


def certified(authority: Authority, uri: str) -> Tls:
    """What a caller connects with whom a certificate names."""
    own = authority.signed(Path(uri).name, uri=uri)
    return Tls(authority.file, own.certificate, own.key)


@pytest.fixture(scope="module")
def acme(world: World, authority: Authority) -> Tls:
    """The certificate of an account."""
    with Client(world.address, tls=certified(authority, "cunho://operator/ops")) as operator:
        operator.register_account(account_id="acme", region_ids=[GUANGZHOU])
    return certified(authority, "cunho://account/acme")


async def test_an_image_is_made_by_a_caller_known_by_its_certificate(world: World, acme: Tls) -> None:
    async with aio.Client(world.address, tls=acme) as client:
        public = client.list_images(region_id=GUANGZHOU, filter='kind = PUBLIC AND name = "Debian 12 64bit"')
        (image_id,) = [image.image_id async for image in public]
        launch = await client.create_instance(
            region_id=GUANGZHOU,
            zone_id=ZONES[GUANGZHOU],
            instance_type="S5.MEDIUM4",
            image_id=image_id,
        )
        (instance,) = (await launch.result(timeout_seconds=20)).instances
        making = await client.create_image(
            region_id=GUANGZHOU,
            instance_id=instance.instance_id,
            name="web",
            consistency=v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT,
        )
        image = await making.result(timeout_seconds=20)
    with Client(world.address, tls=acme) as client:
        assert client.get_image(image_id=image.image_id).owner_account_id == "acme"


def test_the_service_says_of_what_is_refused_for_good_that_it_is_not_to_be_repeated(world: World, acme: Tls) -> None:
    with Client(world.address, tls=acme) as client, pytest.raises(Refused) as refused:
        client.get_image(image_id="img-zzzzzzzz")
    assert isinstance(refused.value.__cause__, grpc.Call)
    assert ("grpc-retry-pushback-ms", "-1") in refused.value.__cause__.trailing_metadata()
