"""The demo goes the whole way: on the server that answers, or on one of its own; time and again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.world import Postgres, World

DEMO = Path(__file__).parents[2] / "client/demo.py"


def shown(settings: dict[str, str]) -> str:
    """What the demo prints, its lines unwrapped."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUNHO_")}
    ran = subprocess.run(
        [sys.executable, DEMO], env=environment | settings, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return re.sub(r"\s+", " ", ran.stdout)


@pytest.fixture(scope="module")
def told(world: World) -> str:
    """What the second of two demos on a running server prints."""
    settings = {"CUNHO_ADDRESS": world.address, "CUNHO_DATA_DIR": str(world.settings.data_dir)}
    shown(settings)
    return shown(settings)


@pytest.mark.parametrize(
    "line",
    [
        "answers: the demo uses it.",
        "0 registered now",
        "CreateImage with validate_only: 6.52 GiB at 0.120 CNY per GiB and month",
        "ShareImage with demo-globex: shared with 1 of 50 accounts",
        "of demo-acme, IMAGE_KIND_SHARED, TRUST_UNVERIFIED",
        "warning UNVERIFIED_SHARED_IMAGE: image",
        "refused PERMISSION_DENIED, SHARED_IMAGE_NOT_MODIFIABLE, rule SHR-3:",
        "refused PERMISSION_DENIED, SHARED_IMAGE_NOT_COPYABLE, rule SHR-4:",
        "refused PERMISSION_DENIED, SHARED_IMAGE_NOT_RESHAREABLE, rule SHR-5:",
        "CreateInstance allowed, with the warning UNVERIFIED_SHARED_IMAGE",
        "DeleteImage denied by SHR-6, SHARED_IMAGE_NOT_DELETABLE: To be rid of it, call LeaveImageShare.",
        "moving it costs 0.000 CNY",
        "has 10 of 10 custom images in ap-guangzhou",
        "ShareImage with 49 accounts at once: 50 of 50",
        "may be shared with 50 accounts: 50 that keep it and 1 more do not fit",
        "refused FAILED_PRECONDITION, IMAGE_SHARED, rule CUS-11:",
        "50 shares ended",
        "is STATE_RUNNING; its image is no longer there to launch from",
        "is STATE_DELETED",
    ],
)
def test_the_demo_shows(told: str, line: str) -> None:
    assert line in told


def test_the_demo_leaves_nothing_but_its_accounts(world: World, told: str) -> None:
    assert list(world.operator.list_images(region_id="-", filter="kind = CUSTOM")) == []
    assert list(world.operator.list_instances(region_id="-")) == []
    assert len(list(world.operator.list_accounts())) == 52


def test_the_demo_starts_a_server_where_none_answers(postgres: Postgres, tmp_path: Path) -> None:
    free = {"CUNHO_ADDRESS": "127.0.0.1:1", "CUNHO_DATA_DIR": str(tmp_path), "CUNHO_DATABASE_URL": postgres.database()}
    told = shown(free)
    assert "No server on 127.0.0.1:1 answers" in told
    assert told.endswith("no image and no instance of the demo's is left; its accounts stay ")
