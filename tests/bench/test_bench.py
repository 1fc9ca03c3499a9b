"""The bench in miniature, so that it works when it is needed. No figure is looked at but that there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.calls import CALLS
from bench.child import child
from bench.load import Lane, Load, Loaded
from bench.measure import Compared, Cost, Sample
from tests.world import World

from cunho.v1 import GetImageRequest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="only Linux tells what processes cost"
)

_GET_IMAGE = "/cunho.v1.ImageService/GetImage"


def test_every_call_is_measured_beside_its_limit(tmp_path: Path) -> None:
    found = _measured(tmp_path, "--images", "1000", "--waiters", "100", "--connections", "2", "8")
    limits, loads, halves, *_ = (rows for name, rows in found.items() if name != "machine")
    assert [row["call"] for row in limits] == [call.name for call in CALLS]
    assert all(float(row["ratio"]) > 0 for row in limits)
    assert {(row["call"], row["connections"]) for row in loads} == {
        (call.name, connections) for call in CALLS for connections in ("2", "8")
    }
    assert [row["call"] for row in halves] == [*(call.name for call in CALLS), f"bare echo of {CALLS[0].name}"]


def test_a_ratio_is_that_of_rounds_whatever_the_machine_did_between_them() -> None:
    ours, echo = Sample(32), Sample(32)
    compared = Compared(CALLS[0], ours, echo, [Cost(20, 80), Cost(40, 160), Cost(60, 240)])
    ours.costs += [Cost(200, 50), Cost(400, 100), Cost(600, 150)]
    echo.costs += [Cost(100, 0), Cost(200, 0), Cost(300, 0)]
    assert compared.ratio == 250 / 200
    ours.costs[1] = Cost(4000, 1000)  # the machine did something else
    assert compared.ratio == 250 / 200
    assert compared.limit_us == 400


def test_growth_is_measured_by_the_number_of_images(tmp_path: Path) -> None:
    found = _measured(tmp_path, "--growth", "--images", "200", "--only", "GetImage")
    (rows,) = (rows for name, rows in found.items() if name != "machine")
    assert [*rows[0]] == ["call", "200", "most/least"]


def _measured(folder: Path, *arguments: str) -> dict[str, list[dict[str, str]]]:
    """What the bench writes."""
    little = ("--accounts", "50", "--rounds", "1", "--seconds", "0.1", "--json", str(folder / "found"))
    subprocess.run([sys.executable, "-m", "bench", *little, *arguments], check=True, stdout=subprocess.PIPE)
    found: dict[str, list[dict[str, str]]] = json.loads((folder / "found").read_text())
    return found


def test_refused_calls_are_counted_as_errors_with_their_status(world: World) -> None:
    loaded = _load(world, Lane("not a token", [GetImageRequest(image_id="img-00000000").SerializeToString()]))
    assert loaded.calls == loaded.errors > 0
    assert "grpc-status.16" in loaded.error  # UNAUTHENTICATED


def test_answers_are_whole_and_some_are_kept(world: World) -> None:
    image = world.public_image()
    request = GetImageRequest(image_id=image.image_id).SerializeToString()
    loaded = _load(world, Lane(world.token(world.tenant().account_id), [request]))
    assert (loaded.errors, loaded.error) == (0, "")
    assert type(image).FromString(loaded.answers[0]).name == image.name


def test_a_payload_to_be_sent_once_is_sent_once(world: World) -> None:
    request = GetImageRequest(image_id=world.public_image().image_id).SerializeToString()
    lanes = [Lane(world.token(world.tenant().account_id), [request] * number) for number in (1, 2)]
    assert _load(world, *lanes, once=True).calls == 3


def _load(world: World, *lanes: Lane, once: bool = False) -> Loaded:
    load = Load(int(world.address.rpartition(":")[2]), _GET_IMAGE, lanes, 0.2, 0, once=once)
    with child("load", None) as loading:
        loading.ask(load)
        loaded: Loaded = loading.ask("go")
    return loaded
