"""How many calls at once, and how long each: what bounds hold for everybody."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tests import world as worlds
from tests.end_to_end.steps import refused, until
from tests.world import GUANGZHOU, Postgres

from cunho import Client
from cunho_server.images import ImageService


@pytest.mark.rule("ALL-7")
def test_an_account_has_so_many_calls_at_once_and_each_so_much_time(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*arguments: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(ImageService, "ResolveImage", never)
    with (
        worlds.world(postgres, workers=0, calls_per_account_max=1, call_seconds_max=1) as world,
        grpc.insecure_channel(world.address, [("grpc.enable_retries", 0)]) as once,
        Client(once, token=world.token("acme")) as acme,
        ThreadPoolExecutor(1) as others,
    ):
        first = others.submit(acme.resolve_image, region_id=GUANGZHOU, family="debian-12")
        until(lambda: world.service.admission.calls == 1)
        with refused(
            "RESOURCE_EXHAUSTED",
            "TOO_MANY_CALLS",
            "ALL-7",
            limit=1,
            unit="at once",
            scope="the account",
            setting="CUNHO_CALLS_PER_ACCOUNT_MAX",
        ):
            acme.get_image(image_id="img-00000000")
        with refused("DEADLINE_EXCEEDED", "CALL_TIMED_OUT", "ALL-7", seconds=1):
            first.result(20)
        with refused("NOT_FOUND", "IMAGE_NOT_FOUND", "SEL-2", image_id="img-00000000"):
            acme.get_image(image_id="img-00000000")
