"""Backups under traffic, restored elsewhere: a service over the copy finds everything, sound and with its rights."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
from tests.end_to_end.soundness import unsound
from tests.end_to_end.steps import send, to, until
from tests.storage.clusters import Cluster, Clusters, clusters
from tests.storage.test_failover import Traffic
from tests.world import GUANGZHOU, SHANGHAI, Postgres, World
from tests.world import world as serving

from cunho import v1

ROOT = Path(__file__).parents[2]
#: What an administrator does to a new cluster, as the manual has it: a dump has no roles.
PREPARATION = re.findall(
    r"^(?:CREATE ROLE|CREATE DATABASE|GRANT) .*?;$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE
)


class Kept(NamedTuple):
    """What there was when the backup was begun."""

    owner: str
    recipient: str
    image_id: str
    copy_id: str
    instance_id: str
    page_token: str
    acknowledged: dict[str, str]


class Backup(NamedTuple):
    """A dump, and what must be in it."""

    file: Path
    kept: Kept


@pytest.fixture(scope="module")
def made(postgres: Postgres) -> Iterator[Clusters]:
    with clusters(programs_in=postgres.folder / "data") as clusters_made:
        yield clusters_made


@pytest.fixture(scope="module")
def dump(postgres: Postgres, made: Clusters) -> Backup:
    """A dump of a service's database, taken while calls came in and operations were carried out."""
    file = made.folder / "cunho.dump"
    with serving(postgres, ledger_seconds=0.1, lease_seconds=2) as world:
        kept = fill(world)
        with Traffic(world).running() as traffic:
            until(lambda: len(traffic.acknowledged) >= 10)
            kept.acknowledged.update(traffic.acknowledged)
            made.run("pg_dump", "--format=custom", "--file", file, world.dsn)
            until(lambda: len(traffic.acknowledged) > len(kept.acknowledged))
    return Backup(file, kept)


def fill(world: World) -> Kept:
    """Something of everything."""
    owner, recipient = world.tenant(), world.tenant()
    instance = world.launch(owner)
    image = world.image(owner, instance_id=instance.instance_id)
    copies = owner.copy_image(image_id=image.image_id, destinations=to(SHANGHAI)).result(20)
    owner.share_image(image_id=image.image_id, account_ids=[recipient.account_id])
    token = page(world, owner.account_id).next_page_token
    return Kept(
        owner.account_id,
        recipient.account_id,
        image.image_id,
        copies.results[0].image.image_id,
        instance.instance_id,
        token,
        {},
    )


def page(world: World, account_id: str, token: str = "") -> v1.ListImagesResponse:
    """The page after the token, of one image."""
    request = v1.ListImagesRequest(region_id=GUANGZHOU, page_size=1, page_token=token)
    return v1.ListImagesResponse.FromString(send(world, world.token(account_id), request))


def execute(dsn: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def restored(made: Clusters, dump: Backup) -> Iterator[Cluster]:
    """A cluster that never saw the service, with the dump restored into it."""
    with made.running(made.new()) as cluster:
        execute(cluster.dsn("postgres"), *PREPARATION)
        owner = cluster.dsn("cunho", user="cunho")
        made.run("pg_restore", "--exit-on-error", "--no-owner", "--dbname", owner, dump.file)
        yield cluster


def assert_whole(postgres: Postgres, dsn: str, kept: Kept) -> None:
    """A service over the database finds everything, ends what was under way, and goes on."""
    running = World(dsn, postgres.settings(dsn, lease_seconds=2), None)
    try:
        owner, recipient = running.client(kept.owner), running.client(kept.recipient)
        assert owner.get_image(image_id=kept.image_id).sharing.account_count == 1
        assert owner.get_image(image_id=kept.copy_id).region_id == SHANGHAI
        assert owner.get_instance(instance_id=kept.instance_id).state == v1.Instance.STATE_RUNNING
        assert {each.image_id for each in recipient.list_images(region_id=GUANGZHOU, filter="kind = SHARED")} == {
            kept.image_id
        }
        assert page(running, kept.owner, kept.page_token).images
        until(lambda: not running.sql("SELECT FROM operation WHERE end_time IS NULL"))
        for account_id, image_id in kept.acknowledged.items():
            assert running.client(account_id).get_image(image_id=image_id).state == v1.Image.STATE_AVAILABLE
        assert unsound(running.sql) == []
        running.image(owner)
    finally:
        running.stop()


def test_a_dump_taken_under_traffic_is_restored_whole_into_a_new_cluster(
    postgres: Postgres, restored: Cluster, dump: Backup
) -> None:
    assert_whole(postgres, restored.dsn("cunho", user="cunho"), dump.kept)


def test_a_base_backup_taken_under_traffic_is_the_whole_cluster(
    postgres: Postgres, made: Clusters, restored: Cluster, dump: Backup
) -> None:
    dsn = restored.dsn("cunho", user="cunho")
    running = World(dsn, postgres.settings(dsn, lease_seconds=2), None)
    try:
        with Traffic(running, "later").running() as traffic:
            until(lambda: len(traffic.acknowledged) >= 10)
            kept = dump.kept._replace(acknowledged=dump.kept.acknowledged | traffic.acknowledged)
            copy = made.base_backup(restored)
    finally:
        running.stop()
    made.run("pg_verifybackup", copy)
    with made.running(copy) as cluster:
        assert_whole(postgres, cluster.dsn("cunho", user="cunho"), kept)
