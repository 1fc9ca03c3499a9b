"""What statements cost in a large database: the rows that each reads, and how many of them each call takes.

Plans are those of the calls themselves, as PostgreSQL tells them, those of foreign keys among them. A row counts as
read if a scan of its table comes to it, also one that the scan then passes over.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import asyncpg
import pytest
import pytest_asyncio
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, ZONES, Postgres, World

from cunho.v1 import CopyImageRequest, Image
from cunho_rules import filters, orders
from cunho_rules.filters import IMAGE_FIELDS, INSTANCE_FIELDS, OPERATION_FIELDS
from cunho_rules.model import Account, InstanceType, Operation, Region
from cunho_rules.model import Image as StoredImage
from cunho_rules.model import Instance as StoredInstance
from cunho_rules.orders import Key
from cunho_storage import (
    accounts,
    deadlines,
    facts_of,
    images,
    instances,
    operations,
    regions,
    requests,
    secrets,
    shares,
)
from cunho_storage.database import SESSION, Connection, connect
from cunho_storage.statements import Statement

MODULES = (accounts, facts_of, images, instances, operations, regions, requests, secrets, shares)

#: Accounts that have or had very many images or instances, or have received very many images.
TOMBSTONES, OWNER, RECIPIENT = "acc-00001", "acc-00002", "acc-00004"

#: One as most are, with some ten images and instances, and one with nothing.
ORDINARY, NEWCOMER = "acc-00500", "acc-new"

# Foreign keys are not checked while this is inserted, which would take most of the time.
LARGE = """
SET session_replication_role = replica;

INSERT INTO account
SELECT 'acc-' || lpad(n::text, 5, '0'), '', 'ACTIVE', 1, now(), now() FROM generate_series(0, 9999) n
UNION ALL SELECT 'acc-new', '', 'ACTIVE', 1, now(), now();
INSERT INTO account_region SELECT account_id, region_id, 10, 100000 FROM account, region;

INSERT INTO image
SELECT 'img-' || lpad(n::text, 8, '0'), 'image ' || lpad(n::text, 6, '0'), '',
  (ARRAY['ap-guangzhou', 'ap-shanghai', 'eu-frankfurt'])[n % 3 + 1],
  owner, CASE WHEN owner IS NULL THEN 'PUBLISHED' ELSE 'INSTANCE' END, stands, '', '',
  'LINUX', 'debian', '12', (ARRAY['X86_64', 'ARM64', 'I386'])[n % 5 % 3 + 1], 1e9 + n, 8e9, 5e8,
  CASE WHEN owner IS NULL THEN 'family-' || n % 40 ELSE '' END, jsonb_build_object('number', n::text), 'CURRENT',
  '', '', 'store:image', '', '', NULL, '', '', '', NULL, '[{"name": "Python", "version": "3.11"}]',
  shared, 50, '', '', '', true, 'UEFI', NULL, 1, moment, moment, CASE WHEN stands = 'DELETED' THEN moment END
FROM generate_series(0, 99999) n,
LATERAL (SELECT '2026-01-01Z'::timestamptz + n * interval '1 minute' AS moment) m,
LATERAL (SELECT CASE
  WHEN n % 125 = 0 THEN NULL
  WHEN n % 10 = 1 THEN 'acc-00001'
  WHEN n % 20 = 2 THEN 'acc-00002'
  ELSE 'acc-' || lpad((n / 10)::text, 5, '0') END AS owner) o,
LATERAL (SELECT CASE
  WHEN owner IS NULL THEN 'AVAILABLE'
  WHEN n % 10 IN (1, 3, 5, 7) THEN 'DELETED'
  WHEN n % 100 = 9 THEN 'FAILED'
  WHEN n % 1000 = 4 THEN 'COPYING'
  ELSE 'AVAILABLE' END AS stands) s,
LATERAL (SELECT CASE WHEN owner IS NOT NULL AND stands = 'AVAILABLE' THEN 3 + (n % 12 = 2)::int ELSE 0 END AS shared) h;

INSERT INTO image_share
SELECT image_id, recipient, owner_account_id, region_id, owner_account_id, create_time FROM image,
LATERAL (SELECT substr(image_id, 5)::int AS n) i,
LATERAL (
  SELECT 'acc-' || lpad(((n / 10 + k * 131) % 9990 + 10)::text, 5, '0') AS recipient FROM generate_series(1, 3) k
  UNION ALL SELECT 'acc-00004' WHERE share_count = 4
) r WHERE share_count > 0;

INSERT INTO operation
SELECT 'op-' || lpad(n::text, 8, '0'),
  CASE WHEN n % 5 = 0 OR n % 1000 = 999 THEN 'acc-00001' ELSE 'acc-' || lpad((n / 10)::text, 5, '0') END, '',
  'CreateInstance', '', 'ap-guangzhou', jsonb_build_array('ins-' || lpad(n::text, 8, '0')), '{}', '[]', '[]', '[]',
  CASE n % 1000 WHEN 998 THEN 'PENDING' WHEN 999 THEN 'RUNNING' ELSE 'SUCCEEDED' END,
  CASE WHEN n % 1000 < 998 THEN '\\x00'::bytea END, NULL, false, 1, 1,
  CASE WHEN n % 1000 = 999 THEN now() + interval '1 hour' END,
  moment, NULL, CASE WHEN n % 1000 < 998 THEN moment END
FROM generate_series(0, 99999) n, LATERAL (SELECT '2026-01-01Z'::timestamptz + n * interval '1 minute' AS moment) m;

INSERT INTO instance
SELECT 'ins-' || lpad(n::text, 8, '0'), 'web ' || lpad(n::text, 6, '0'), '', region_id, zone_id, account, 'S5.MEDIUM4',
  stands, '', '{}', image_id, '', NULL, 'PUBLIC', 'PROVIDER', '', '', '', 1e9, 8e9, 5e8, 'LINUX', 'debian', '12',
  'X86_64', 'UEFI', true, CASE stands WHEN 'STOPPING' THEN 'op-' || lpad(n::text, 8, '0') END, 1, moment, moment,
  CASE stands WHEN 'DELETED' THEN moment END
FROM generate_series(0, 99999) n,
LATERAL (SELECT '2026-01-01Z'::timestamptz + n * interval '1 minute' AS moment) m,
LATERAL (SELECT CASE n % 5 WHEN 0 THEN 'acc-00001' WHEN 1 THEN 'acc-00002'
  ELSE 'acc-' || lpad((n / 10)::text, 5, '0') END AS account) a,
LATERAL (SELECT CASE WHEN n % 1000 = 998 THEN 'STOPPING' WHEN n % 5 IN (1, 2) THEN 'DELETED' ELSE 'RUNNING' END
  AS stands) s,
LATERAL (SELECT region_id, zone_id FROM (VALUES
  (0, 'ap-guangzhou', 'ap-guangzhou-3'), (1, 'ap-shanghai', 'ap-shanghai-2'), (2, 'eu-frankfurt', 'eu-frankfurt-1')
) v (remainder, region_id, zone_id) WHERE remainder = n / 7 % 3) z,
LATERAL (SELECT 'img-' || lpad((CASE WHEN n % 4 = 0 THEN 0 ELSE n / 375 % 266 * 375 END
  + (3 - n / 7 % 3) % 3 * 125)::text, 8, '0') AS image_id) i;

INSERT INTO request_log
SELECT 'acc-' || lpad((n / 10)::text, 5, '0'), 'CreateInstance', n::text, '\\x00', '\\x00',
  now() - CASE WHEN n < 100 THEN interval '2 days' ELSE interval '1 hour' END FROM generate_series(0, 99999) n;

RESET session_replication_role;
"""

#: Tables that grow without end.
LARGE_TABLES = {"account", "account_region", "image", "image_share", "instance", "operation", "request_log"}

#: Rows that a statement may read, unless it is about more.
FEW = 120

#: Rows that a page of 50 may read: of three kinds in three regions, and some that are passed over.
OF_PAGE = 600

#: Makes PostgreSQL tell the plan of everything that it executes.
TELLING = SESSION | {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "client_min_messages": "log",
}

Call = Callable[[Connection], Awaitable[Any]]


class Plan:
    """What PostgreSQL did for one statement."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.text: str = told["Query Text"]
        self._scans = [node for node in _nodes(told["Plan"]) if "Scan" in node["Node Type"]]

    @property
    def read_through(self) -> set[str]:
        """The large tables that it read from end to end."""
        return {scan["Relation Name"] for scan in self._scans if scan["Node Type"] == "Seq Scan"} & LARGE_TABLES

    @property
    def rows(self) -> float:
        """The rows of large tables that it read."""
        scans = [scan for scan in self._scans if scan.get("Relation Name") in LARGE_TABLES]
        return float(sum(scan["Actual Loops"] * sum(scan.get(count, 0) for count in READ) for scan in scans))

    @property
    def indexes(self) -> set[str]:
        """The indexes that it used."""
        return {scan["Index Name"] for scan in self._scans if "Index Name" in scan}

    def __repr__(self) -> str:
        scans = [f"{scan['Node Type']} {scan.get('Index Name', scan.get('Relation Name', ''))}" for scan in self._scans]
        return f"<{self.rows:g} rows by {', '.join(scans)} for {self.text}>"


#: Rows that a scan reads each time.
READ = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


class Large:
    """A large database, over a connection as the server's are, but that PostgreSQL tells its plans."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._plans: list[Plan] = []
        connection._raw.add_log_listener(self._hear)

    def _hear(self, _: object, message: Any) -> None:
        _, found, told = message.message.partition("plan:\n")
        if found:
            self._plans.append(Plan(json.loads(told)))

    async def plans(self, call: Call, *, without: str = "") -> list[Plan]:
        """The plans of what the call executes, which is then rolled back.

        Args:
            without: an index that is not there.
        """
        await self.connection.script("BEGIN")
        try:
            if without:
                await self.connection.script(f"DROP INDEX {without}")
            self._plans = []
            await call(self.connection)
            await asyncio.sleep(0)  # what PostgreSQL tells is heard in the loop's next round
            return self._plans
        finally:
            await self.connection.script("ROLLBACK")

    async def seen(self, noun: str, account_id: str | None, region_id: str | None) -> int:
        """How many images, instances or operations there are for the account in the region."""
        query = f"SELECT count(*) FROM ({SEEN[noun]}) seen (account_id, region_id) WHERE {OF_ACCOUNT}"
        return cast(int, await self.connection._raw.fetchval(query, account_id, region_id))

    async def received(self, account_id: str | None, region_id: str | None) -> int:
        """How many images are shared with the account in the region."""
        query = f"SELECT count(*) FROM ({RECEIVED}) seen (account_id, region_id) WHERE {OF_ACCOUNT}"
        return cast(int, await self.connection._raw.fetchval(query, account_id, region_id)) if account_id else 0


RECEIVED = "SELECT recipient_account_id, region_id FROM image_share"
SEEN = {
    "images": f"""
        SELECT coalesce(owner_account_id, $1), region_id FROM image WHERE delete_time IS NULL
        UNION ALL {RECEIVED} WHERE $1 IS NOT NULL
    """,
    "instances": "SELECT account_id, region_id FROM instance WHERE delete_time IS NULL",
    "operations": "SELECT account_id, region_id FROM operation",
}
OF_ACCOUNT = "($1::text IS NULL OR account_id = $1) AND ($2::text IS NULL OR region_id = $2)"


@pytest_asyncio.fixture(scope="module")
async def large(postgres: Postgres) -> AsyncIterator[Large]:
    """A database of 100,000 images, 10,000 accounts, 200,000 shares, 100,000 instances, operations and requests."""
    dsn = await asyncio.to_thread(postgres.database)
    loading = await asyncpg.connect(dsn)
    await loading.execute(LARGE)
    await loading.execute("VACUUM ANALYZE")
    await loading.close()
    connection = await connect(dsn, TELLING)
    yield Large(connection)
    await connection.close()


# --- what is about one thing, or a few


class Priced(NamedTuple):
    """A call, and how many rows each of its statements may read."""

    name: str
    call: Call
    rows: int = FEW


IMAGE, OF_OWNER, COPYING = "img-00005006", "img-00000542", "img-00001004"
PUBLIC, PUBLIC_NAME = "img-00000375", "image 000375"
REINSTALLED = {"image_id": PUBLIC, "kind": "PUBLIC", "trust": "PROVIDER", "name": PUBLIC_NAME, "min_disk_bytes": 1}
INSTANCE, STOPPING, PENDING = "ins-00005003", "ins-00000998", "op-00000998"
REQUEST = requests.Request(ORDINARY, "CreateInstance", "5001")
NEW_REQUEST = REQUEST._replace(request_id="new")
NOW = datetime.now(UTC)
SHARED_BY_OWNER: dict[str, Any] = {"account_id": OWNER, "account_ids": [RECIPIENT, ORDINARY]}
#: What mutations of one write are about.
ABOUT: dict[str, Any] = {
    "image_id": IMAGE,
    "instance_id": INSTANCE,
    "account_id": ORDINARY,
    "account_ids": [],
    "region_id": GUANGZHOU,
    "instance_type": "S5.MEDIUM4",
}


async def stored_image(connection: Connection, image_id: str = IMAGE) -> StoredImage:
    return cast(StoredImage, await images.get(connection, image_id, ORDINARY))


async def stored_instance(connection: Connection) -> StoredInstance:
    return cast(StoredInstance, await instances.get(connection, INSTANCE))


async def running(connection: Connection) -> Operation:
    return cast(Operation, await operations.claim(connection, 5))


async def add_image(c: Connection) -> None:
    await images.add(c, (await stored_image(c))._replace(image_id="img-new", name="new", share_count=0)._asdict())


async def update_image(c: Connection) -> None:
    await images.update(c, (await stored_image(c))._replace(name="new"))


async def republish_image(c: Connection) -> None:
    await images.republish(c, (await stored_image(c, PUBLIC))._replace(description="new"))


async def end(c: Connection, write: requests.Write | None) -> None:
    """Ends a transaction with the write, whether its request has an id or not."""
    for request in (None, REQUEST):
        await c.script("SAVEPOINT before")
        await requests.end(c, request, b"", write)
        await c.script("ROLLBACK TO before")


async def end_one_write(c: Connection, look: requests.Look, write: requests.Write | None, **arguments: Any) -> None:
    """Ends a mutation of one write, whether its request has an id or not, and a transaction."""
    await end(c, write)
    for request in (None, NEW_REQUEST):
        seen = await see(c, look, **arguments)
        await c.script("SAVEPOINT before")
        await requests.end(c, request, b"", write, seen)
        await c.script("ROLLBACK TO before")


async def see(c: Connection, look: requests.Look, *, locked: bool = False, **arguments: Any) -> requests.Seen:
    """What a mutation of one write looks at."""
    return await requests.look(c, look, NEW_REQUEST, locked=locked, **ABOUT | arguments)


async def launch_instances(c: Connection) -> None:
    new = {"description": "", "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4", "labels": {}}
    ids = {"instance_ids": ["ins-new-1", "ins-new-2"], "names": ["", ""], "image_id": PUBLIC, "operation_id": "op-new"}
    launching = instances.launching(**new, **ids, account_id=ORDINARY, kind="PUBLIC", trust="PROVIDER")  # type: ignore[arg-type]
    await end_one_write(c, facts_of.LAUNCH, operations.adding(await new_operation(c), launching), image_id=PUBLIC)


async def update_instance(c: Connection) -> None:
    await instances.update(c, (await stored_instance(c))._replace(name="new"))


async def move_instance(c: Connection) -> None:
    moving = instances.moving(await stored_instance(c), "STOPPING", "op-new")
    await end_one_write(c, facts_of.MOVE, operations.adding(await new_operation(c), moving))


async def share_image(c: Connection) -> None:
    await end_one_write(c, facts_of.SHARE, shares.adding(IMAGE, ["acc-00777", "acc-00778"], NOW))


async def add_operation(c: Connection) -> None:
    await end(c, operations.adding(await new_operation(c)))


async def new_operation(c: Connection) -> Operation:
    return (await running(c))._replace(operation_id="op-new")


async def begin(c: Connection, beginning: requests.Beginning, **arguments: Any) -> None:
    await requests.begin(c, beginning, None, **arguments)
    await requests.begin(c, beginning, NEW_REQUEST, **arguments)
    await requests.begin(c, beginning, REQUEST, **arguments)


async def extend_operation(c: Connection) -> None:
    assert await operations.extend(c, await running(c), 5) is False


async def give_back_operation(c: Connection) -> None:
    assert await operations.give_back(c, await running(c), [])


async def save_operation(c: Connection) -> None:
    assert await operations.save(c, await running(c), [])


async def end_operation(c: Connection) -> None:
    assert await operations.end(c, await running(c), state="SUCCEEDED", steps=[], response=b"")


async def update_account(c: Connection) -> None:
    await accounts.update(c, cast(Account, await accounts.get(c, ORDINARY))._replace(display_name="new"))


async def put_region(c: Connection) -> None:
    await regions.put(c, cast(Region, await regions.get(c, GUANGZHOU)))


WITHOUT_LOCK = requests.Beginning()

PRICED = [
    Priced("images.get", lambda c: images.get(c, IMAGE, ORDINARY)),
    Priced("images.get_shown", lambda c: images.get_shown(c, IMAGE, ORDINARY)),
    Priced("images.keep", lambda c: images.keep(c, {(IMAGE, 1): b"kept", (PUBLIC, 1): b"kept"})),
    Priced("images.get_some", lambda c: images.get_some(c, [f"img-{n:08}" for n in range(50)], ORDINARY)),
    Priced("images.resolve", lambda c: images.resolve(c, GUANGZHOU, "family-15", "")),
    Priced("images.resolve of an architecture", lambda c: images.resolve(c, GUANGZHOU, "family-15", "X86_64")),
    Priced("images.resolve of nothing", lambda c: images.resolve(c, GUANGZHOU, "family-99", "")),
    Priced("images.public_by_name", lambda c: images.public_by_name(c, GUANGZHOU, PUBLIC_NAME)),
    Priced("images.locked", lambda c: images.locked(c, IMAGE, ORDINARY)),
    Priced("images.locked, shared", lambda c: images.locked(c, IMAGE, ORDINARY, shared=True)),
    Priced("images.add", add_image),
    Priced("images.update", update_image),
    Priced("images.republish", republish_image),
    Priced("images.deprecate", lambda c: images.deprecate(c, PUBLIC, "DEPRECATED", "", "old")),
    Priced("images.delete", lambda c: images.delete(c, PUBLIC)),
    Priced("images.finish", lambda c: images.finish(c, COPYING)),
    Priced("images.fail", lambda c: images.fail(c, COPYING, "", "")),
    Priced("images.abandon", lambda c: images.abandon(c, COPYING)),
    Priced("shares.account_ids", lambda c: shares.account_ids(c, OF_OWNER)),
    Priced(
        "shares.recipients", lambda c: shares.recipients(c, IMAGE, [f"acc-{n:05}" for n in range(50)]), rows=2 * FEW
    ),
    Priced("shares.adding", share_image),
    Priced("shares.remove", lambda c: shares.remove(c, OF_OWNER, [RECIPIENT])),
    Priced("shares.set_limit", lambda c: shares.set_limit(c, IMAGE, 60)),
    Priced("instances.get", lambda c: instances.get(c, INSTANCE)),
    Priced("instances.get_some", lambda c: instances.get_some(c, [f"ins-{n:08}" for n in range(50)]), rows=3 * FEW),
    Priced("instances.locked", lambda c: instances.locked(c, INSTANCE)),
    Priced("instances.launching", launch_instances),
    Priced("instances.update", update_instance),
    Priced("instances.moving", move_instance),
    Priced("instances.end", lambda c: instances.end(c, [STOPPING], "STOPPED", PENDING)),
    Priced("instances.end, deleted", lambda c: instances.end(c, [STOPPING], "DELETED", PENDING)),
    Priced("instances.fail", lambda c: instances.fail(c, [STOPPING], "broken", PENDING)),
    Priced("instances.reinstall", lambda c: instances.reinstall(c, INSTANCE, REINSTALLED)),
    Priced("operations.get", lambda c: operations.get(c, PENDING)),
    Priced("operations.adding", add_operation),
    Priced("operations.cancel", lambda c: operations.cancel(c, PENDING)),
    Priced("operations.delete", lambda c: operations.delete(c, "op-00000001")),
    Priced("operations.ended", lambda c: operations.ended(c, [f"op-{n:08}" for n in range(950, 1000)])),
    Priced("operations.unfinished", operations.unfinished, rows=200),
    Priced("operations.claim", lambda c: operations.claim(c, 5)),
    Priced("operations.extend", extend_operation),
    Priced("operations.give_back", give_back_operation),
    Priced("operations.save", save_operation),
    Priced("operations.end", end_operation),
    Priced("accounts.get", lambda c: accounts.get(c, ORDINARY)),
    Priced("accounts.list_", lambda c: accounts.list_(c, after=ORDINARY, limit=51), rows=3 * FEW),
    Priced("accounts.locked", lambda c: accounts.locked(c, ORDINARY)),
    Priced("accounts.add", lambda c: accounts.add(c, "acc-newer", "", [GUANGZHOU])),
    Priced("accounts.update", update_account),
    Priced("accounts.in_use", lambda c: accounts.in_use(c, TOMBSTONES, [GUANGZHOU, SHANGHAI, FRANKFURT])),
    Priced("accounts.in_use by nothing", lambda c: accounts.in_use(c, NEWCOMER, [GUANGZHOU])),
    Priced("accounts.leave", lambda c: accounts.leave(c, NEWCOMER, [GUANGZHOU])),
    Priced("accounts.place", lambda c: accounts.place(c, ORDINARY, GUANGZHOU, "new")),
    Priced("accounts.place beside tombstones", lambda c: accounts.place(c, TOMBSTONES, GUANGZHOU, "new")),
    Priced("accounts.take_place", lambda c: accounts.take_place(c, ORDINARY, GUANGZHOU)),
    Priced("accounts.free_place", lambda c: accounts.free_place(c, ORDINARY, GUANGZHOU)),
    Priced("accounts.get_quota", lambda c: accounts.get_quota(c, TOMBSTONES, GUANGZHOU)),
    Priced("accounts.list_quotas", lambda c: accounts.list_quotas(c, TOMBSTONES, after="", limit=51)),
    Priced("accounts.set_limit", lambda c: accounts.set_limit(c, ORDINARY, GUANGZHOU, 20)),
    Priced("regions.get", lambda c: regions.get(c, GUANGZHOU)),
    Priced("regions.list_", lambda c: regions.list_(c, after="", limit=51)),
    Priced("regions.unknown", lambda c: regions.unknown(c, [GUANGZHOU])),
    Priced("regions.put", put_region),
    Priced("regions.get_type", lambda c: regions.get_type(c, "S5.MEDIUM4")),
    Priced("regions.list_types", lambda c: regions.list_types(c, after="", limit=51)),
    Priced("regions.put_types", lambda c: regions.put_types(c, [InstanceType("X1", "ARM64", 1, 1 << 30, 1 << 30)])),
    Priced("requests.begin", lambda c: begin(c, WITHOUT_LOCK)),
    Priced("images.CHANGING", lambda c: begin(c, images.CHANGING, image_id=IMAGE)),
    Priced("instances.CHANGING", lambda c: begin(c, instances.CHANGING, instance_id="ins-00000005")),
    Priced(
        "accounts.CHANGING_PLACE",
        lambda c: begin(c, accounts.CHANGING_PLACE, owner_account_id=ORDINARY, region_id=GUANGZHOU),
    ),
    Priced("requests.end", lambda c: requests.end(c, REQUEST, b"")),
    Priced("requests.forget", requests.forget),
    Priced("secrets.shared", lambda c: secrets.shared(c, "page_tokens")),
    Priced("facts_of.LAUNCH", lambda c: see(c, facts_of.LAUNCH, locked=True, image_id=OF_OWNER, account_id=RECIPIENT)),
    Priced("facts_of.MOVE", lambda c: see(c, facts_of.MOVE, locked=True)),
    Priced("facts_of.SHARE", lambda c: see(c, facts_of.SHARE, locked=True, image_id=OF_OWNER, **SHARED_BY_OWNER)),
    Priced("requests.end of nothing, one write", lambda c: end_one_write(c, facts_of.SHARE, None)),
    Priced(
        "facts_of.creation",
        lambda c: facts_of.creation(
            c, account_id=TOMBSTONES, region_id=GUANGZHOU, name="new", instance_id="ins-00000005"
        ),
    ),
    Priced("facts_of.image", lambda c: facts_of.image(c, OF_OWNER, OWNER)),
    Priced("facts_of.sharing", lambda c: facts_of.sharing(c, image_id=OF_OWNER, **SHARED_BY_OWNER)),
    Priced("facts_of.shares_of", lambda c: facts_of.shares_of(c, OF_OWNER, OWNER, after="", limit=51)),
]


@pytest.mark.parametrize("priced", PRICED, ids=lambda priced: priced.name)
async def test_what_is_about_a_few_rows_reads_a_few_rows(large: Large, priced: Priced) -> None:
    plans = await large.plans(priced.call)
    assert plans
    assert not [plan for plan in plans if plan.read_through or plan.rows > priced.rows]


async def test_every_statement_is_priced_here(large: Large) -> None:
    executed = {plan.text for priced in PRICED for plan in await large.plans(priced.call)}
    assert {name for name, text in stated().items() if text not in executed} == set()


def stated() -> dict[str, str]:
    """The text of every statement, by its name."""
    named = [(f"{module.__name__}.{name}", value) for module in MODULES for name, value in vars(module).items()]
    statements = {name: value.text for name, value in named if isinstance(value, Statement)}
    return statements | {
        f"{name} {kind}": statement.text
        for name, value in named
        if isinstance(value, requests.Basis | requests.Beginning | requests.Ending | requests.Look)
        for kind, statement in vars(value).items()
        if isinstance(statement, Statement)
    }


async def test_a_plan_made_while_a_table_is_empty_does_not_read_it_through_once_it_is_large(postgres: Postgres) -> None:
    connection = await asyncpg.connect(await asyncio.to_thread(postgres.database), server_settings=SESSION)
    try:
        await connection.execute("VACUUM ANALYZE")  # from now on PostgreSQL takes them to stay empty
        read_through = {name: await _read_through(connection, text) for name, text in stated().items()}
    finally:
        await connection.close()
    assert {name for name, tables in read_through.items() if tables} == set()


async def _read_through(connection: asyncpg.Connection, text: str) -> set[str]:
    """The large tables that the plan of a statement reads from end to end."""
    await connection.execute(f"PREPARE planned AS {text}")
    arguments = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", text))))
    explained = await connection.fetchval(
        f"EXPLAIN (FORMAT JSON) EXECUTE planned{f'({arguments})' if arguments else ''}"
    )
    await connection.execute("DEALLOCATE planned")
    return Plan({"Query Text": text} | json.loads(explained)[0]).read_through


# --- pages


class Listed(NamedTuple):
    """A page of images, instances or operations, and what it may read."""

    noun: str
    account_id: str | None
    region_id: str | None = None
    order: str = ""
    filter: str = ""
    usable: bool = False

    def __str__(self) -> str:
        words = (self.noun, f"of {self.account_id or 'all'}", f"in {self.region_id or 'all'}", self.order, self.filter)
        return " ".join([*filter(None, words), "usable" * self.usable])

    @property
    def keys(self) -> tuple[Key, ...]:
        fields = {"images": orders.IMAGE_ORDER_FIELDS, "instances": orders.INSTANCE_ORDER_FIELDS}
        tie_breaker = f"{self.noun.removesuffix('s')}_id"
        return orders.parse(self.order, fields.get(self.noun, ("create_time",)), tie_breaker)

    async def page(self, connection: Connection, after: Any = None) -> Any:
        """Its first rows after the row, or its first."""
        expression = filters.parse(self.filter, FIELDS[self.noun])
        cursor = None if after is None else [getattr(after, key.field) for key in self.keys]
        asked: dict[str, Any] = {"expression": expression, "keys": self.keys, "cursor": cursor, "limit": 51}
        if self.noun == "operations":
            return await operations.page(connection, account_id=self.account_id, **asked)
        asked |= {"account_id": self.account_id, "region_id": self.region_id}
        if self.noun == "instances":
            return await instances.page(connection, **asked)
        usable_with = InstanceType("S5.MEDIUM4", "X86_64", 2, 4 << 30, 50 << 30) if self.usable else None
        wanted = images.Asked(**asked, usable_with=usable_with)
        await images.shown_page(connection, wanted)
        return await images.page(connection, wanted)


FIELDS: dict[str, Any] = {"images": IMAGE_FIELDS, "instances": INSTANCE_FIELDS, "operations": OPERATION_FIELDS}
OPERATOR = None
EVERYBODY = (OPERATOR, ORDINARY, TOMBSTONES, OWNER, RECIPIENT)
PLACES = (GUANGZHOU, None)

#: Orders that indexes serve, and those that are sorted.
SERVED = ("", "name", "create_time desc, name", "name desc, create_time")
SORTED = {"images": ("update_time desc", "size_bytes", "image_id"), "instances": ("update_time desc", "instance_id")}

#: Filters that many match, or that an index serves; and those that few match.
SERVED_FILTERS = {
    "images": ("kind = PUBLIC", "kind = CUSTOM", "state = AVAILABLE", 'name = "image 0012*"', 'name = "image 000375"'),
    "instances": ("state = RUNNING", 'name = "web 0012*"', 'image_id = "img-00005625"', 'instance_id = "ins-00005003"'),
}
SEARCHING_FILTERS = {
    "images": ("family = family-1", "state = FAILED", "labels.number = 504", "software.name = Ruby", "kind = SHARED"),
    "instances": ("state = FAILED", "labels.stage = test", 'image_id = "img-00000000"'),
}
LISTS = [(noun, who, where) for noun in ("images", "instances") for who in EVERYBODY for where in (GUANGZHOU, None)]

#: Pages that look only at rows near to theirs. What an account has received is looked at every time: it is the images
#: that have an order, not the shares.
NEAR = [
    *(Listed(*each, order=order) for each in LISTS for order in SERVED),
    *(Listed(*each, filter=filter) for each in LISTS for filter in SERVED_FILTERS[each[0]]),
    *(Listed(*each, usable=True) for each in LISTS if each[0] == "images"),
    *(Listed("operations", who, filter=filter) for who in EVERYBODY for filter in ("", "done = true", "done = false")),
]

#: Pages that must look at everything that the caller sees there.
WIDE = [
    *(Listed(*each, order=order) for each in LISTS for order in SORTED[each[0]]),
    *(Listed(*each, filter=filter) for each in LISTS for filter in SEARCHING_FILTERS[each[0]]),
    *(Listed("operations", who, filter='target_id = "ins-00000555"') for who in EVERYBODY),
]


async def plans_of_pages(large: Large, listed: Listed) -> list[Plan]:
    """The plans of its first page, and of the page that comes after that."""
    rows = await listed.page(large.connection)
    plans = await large.plans(listed.page)
    if rows:
        plans += await large.plans(lambda connection: listed.page(connection, rows[:50][-1]))
    return plans


@pytest.mark.parametrize("listed", NEAR, ids=str)
async def test_a_page_reads_little_however_much_there_is(large: Large, listed: Listed) -> None:
    received = await large.received(listed.account_id, listed.region_id)
    plans = await plans_of_pages(large, listed)
    assert plans
    assert not [plan for plan in plans if plan.read_through or plan.rows > OF_PAGE + 2 * received]


@pytest.mark.parametrize("listed", WIDE, ids=str)
async def test_a_search_reads_what_the_caller_sees_and_nothing_else(large: Large, listed: Listed) -> None:
    seen = await large.seen(listed.noun, listed.account_id, listed.region_id)
    plans = await plans_of_pages(large, listed)
    assert plans
    assert not [plan for plan in plans if plan.read_through or plan.rows > FEW + 2 * seen]


# --- indexes


@pytest.mark.parametrize(
    ("index", "call"),
    [
        ("image_newest_of_owner", Listed("images", OWNER).page),
        ("image_newest_custom", Listed("images", OPERATOR).page),
        ("instance_of_operation", lambda c: operations.delete(c, "op-00000001")),
        ("instance_of_account", lambda c: accounts.leave(c, NEWCOMER, [GUANGZHOU])),
        ("operation_claimable", lambda c: operations.claim(c, 5)),
        ("operation_leased", lambda c: operations.claim(c, 5)),
    ],
)
async def test_without_its_index_a_statement_reads_much_more(large: Large, index: str, call: Call) -> None:
    with_it, without = await large.plans(call), await large.plans(call, without=index)
    assert sum(plan.rows for plan in without) > 10 * sum(plan.rows for plan in with_it)


async def test_every_index_serves_a_statement(large: Large) -> None:
    plans = [plan for priced in PRICED for plan in await large.plans(priced.call)]
    plans += [plan for listed in NEAR if listed.region_id for plan in await plans_of_pages(large, listed)]
    plans += await large.plans(Listed("operations", OPERATOR).page)
    plans += await large.plans(Listed("operations", ORDINARY).page)
    used = {index for plan in plans for index in plan.indexes}
    names = "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indrelid"
    ours = await large.connection._raw.fetch(f"{names} WHERE relnamespace = 'public'::regnamespace AND NOT indisunique")
    assert {index for (index,) in ours} - used == set()


# --- statements of a call


class Things:
    """What the calls are about: each mutation has a thing of its own."""

    def __init__(self, world: World) -> None:
        self.world, self.tenant, self.recipient = world, world.tenant(), world.tenant()
        self.instance, self.stopped, self.unwanted = (world.launch(self.tenant).instance_id for _ in range(3))
        self.image, self.shared, self.copied, self.deleted, self.left = (
            world.image(self.tenant, instance_id=self.instance).image_id for _ in range(5)
        )
        for image_id in (self.shared, self.left):
            self.tenant.share_image(image_id=image_id, account_ids=[self.recipient.account_id])
        self.operation = next(iter(self.tenant.list_operations()))


class Counted(NamedTuple):
    """A call, and how many statements it takes beside those that begin and end its transaction."""

    rpc: str
    statements: int
    call: Callable[[Things], Any]


def launch(t: Things) -> Any:
    return t.tenant.create_instance(
        region_id=GUANGZHOU, zone_id=ZONES[GUANGZHOU], image_id=t.image, instance_type="S5.MEDIUM4"
    )


def create_image(t: Things) -> Any:
    return t.tenant.create_image(region_id=GUANGZHOU, instance_id=t.instance, name="new")


def copy_image(t: Things) -> Any:
    destination = CopyImageRequest.Destination(region_id=SHANGHAI)
    return t.tenant.copy_image(image_id=t.copied, destinations=[destination])


def rename(t: Things) -> Any:
    return t.tenant.update_image(image=Image(image_id=t.image, name="new name"), update_mask=["name"])


READS = [
    Counted("GetImage", 1, lambda t: t.tenant.get_image(image_id=t.image)),
    Counted("BatchGetImages", 1, lambda t: t.tenant.batch_get_images(image_ids=[t.image, t.shared])),
    Counted("ListImages", 1, lambda t: [*t.tenant.list_images(region_id=GUANGZHOU)]),
    Counted("ResolveImage", 2, lambda t: t.tenant.resolve_image(region_id=GUANGZHOU, family="debian-12")),
    Counted("CheckImageActions", 1, lambda t: t.tenant.check_image_actions(image_id=t.image)),
    Counted("CheckInstanceActions", 4, lambda t: t.tenant.check_instance_actions(instance_id=t.instance)),
    Counted("ListImageShares", 1, lambda t: [*t.tenant.list_image_shares(image_id=t.shared)]),
    Counted("GetInstance", 1, lambda t: t.tenant.get_instance(instance_id=t.instance)),
    Counted("ListInstances", 1, lambda t: [*t.tenant.list_instances(region_id=GUANGZHOU)]),
    Counted("ListInstanceTypes", 1, lambda t: [*t.tenant.list_instance_types()]),
    Counted("ListRegions", 1, lambda t: [*t.tenant.list_regions()]),
    Counted("GetAccount", 1, lambda t: t.tenant.get_account(account_id=t.tenant.account_id)),
    Counted("ListAccounts", 1, lambda t: [*t.world.operator.list_accounts()]),
    Counted("ListQuotas", 2, lambda t: [*t.tenant.list_quotas()]),
    Counted("GetOperation", 1, lambda t: t.tenant.get_operation(name=t.operation.name)),
    Counted("ListOperations", 1, lambda t: [*t.tenant.list_operations()]),
]

#: With what claims the request id and keeps the answer.
MUTATIONS = [
    Counted("UnshareImage", 6, lambda t: t.tenant.unshare_image(image_id=t.shared, account_ids=["acc-none"])),
    Counted("LeaveImageShare", 5, lambda t: t.recipient.leave_image_share(image_id=t.left)),
    Counted("CreateImage", 6, create_image),
    Counted("CopyImage", 11, copy_image),
    Counted("UpdateImage", 6, rename),
    Counted("DeleteImage", 8, lambda t: t.tenant.delete_image(image_id=t.deleted)),
]

#: A look and a write, which are their own transactions.
OF_ONE_WRITE = [
    Counted("CreateInstance", 2, launch),
    Counted("ShareImage", 2, lambda t: t.tenant.share_image(image_id=t.image, account_ids=[t.recipient.account_id])),
    Counted("StopInstance", 2, lambda t: t.tenant.stop_instance(instance_id=t.stopped)),
    Counted("DeleteInstance", 2, lambda t: t.tenant.delete_instance(instance_id=t.unwanted)),
]


@pytest.fixture(scope="module")
def things(world: World) -> Iterator[Things]:
    made = Things(world)

    async def nothing(*arguments: Any) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "claim", nothing)  # from here on workers rest, whose statements are nobody's call
        yield made


@pytest.fixture
def executed(things: Things, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that the server executes for calls."""
    found: list[str] = []

    def counting(name: str) -> Any:
        original = getattr(Connection, name)

        async def count(self: Connection, statement: Statement | str, **arguments: Any) -> Any:
            if deadlines.remaining_seconds() < math.inf:  # in a call: health and metrics ask beside it
                found.append(statement if isinstance(statement, str) else statement.text)
            return await original(self, statement, **arguments)

        return count

    for name in ("rows", "row", "value", "run", "script"):
        monkeypatch.setattr(Connection, name, counting(name))
    return found


@pytest.mark.parametrize("counted", READS, ids=lambda counted: counted.rpc)
def test_a_read_takes_so_many_statements(things: Things, executed: list[str], counted: Counted) -> None:
    counted.call(things)  # the first read of an image keeps its message
    executed.clear()
    counted.call(things)
    assert len(executed) == counted.statements, executed


@pytest.mark.parametrize("counted", MUTATIONS, ids=lambda counted: counted.rpc)
def test_a_mutation_takes_so_many_statements(things: Things, executed: list[str], counted: Counted) -> None:
    counted.call(things)
    begin, *statements, end = executed
    assert (begin, len(statements), end) == ("BEGIN", counted.statements, "COMMIT"), executed


@pytest.mark.parametrize("counted", OF_ONE_WRITE, ids=lambda counted: counted.rpc)
def test_a_mutation_of_one_write_takes_no_transaction(things: Things, executed: list[str], counted: Counted) -> None:
    things.tenant.get_image(image_id=things.image)  # whose message is kept then
    executed.clear()
    counted.call(things)
    assert len(executed) == counted.statements, executed
