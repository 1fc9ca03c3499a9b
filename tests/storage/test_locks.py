"""Locks and transactions: what our sources must not do, the one order in which locks are taken, and the isolation that
they need, whatever the database defaults to.
"""

import ast
import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from tests import world as worlds
from tests.end_to_end import races
from tests.end_to_end.steps import Held
from tests.world import FRANKFURT, GUANGZHOU, SHANGHAI, Postgres, World

from cunho import v1
from cunho.v1 import Account, CopyImageRequest, Deprecation, Image, Instance, QuotaId
from cunho_rules.refusals import Reason, Refusal
from cunho_storage import accounts, tables
from cunho_storage.database import SESSION, Connection, Database
from cunho_storage.statements import Statement

# --- our sources

ROOT = Path(__file__).parents[2]
SOURCES = {
    f"{path.parent.name}/{path.name}": ast.parse(path.read_text())
    for folder in ("server", "storage")
    for path in (ROOT / folder).rglob("*.py")
}
MIGRATIONS, TABLES, DATABASE = "migrations/__init__.py", "cunho_storage/tables.py", "cunho_storage/database.py"
#: What looks at an installation as a whole, beside the calls.
INSTALLATION, SOUNDNESS = "cunho_storage/installation.py", "cunho_storage/soundness.py"
REQUESTS = "cunho_storage/requests.py"

SQL_TEXT = re.compile(
    r"\b(SELECT .*\bFROM|INSERT INTO|UPDATE \S+ SET|DELETE FROM|LOCK TABLE|TRUNCATE|FOR (NO KEY )?UPDATE"
    r"|(ALTER|DROP|CREATE) (TABLE|INDEX|ROLE|SCHEMA))\b",
    re.DOTALL,
)


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    """The calls of functions and methods of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
            yield node


def inside(tree: ast.AST, node: ast.expr) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions that the expression is in, the outermost first."""
    return [
        each
        for each in ast.walk(tree)
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        and each.lineno <= node.lineno <= (each.end_lineno or 0)
    ]


def saves_of_rows(tree: ast.AST) -> Iterator[ast.AST]:
    """Peewee's own writes, which bring back what another transaction has deleted; `operations.save` is a module's."""
    for call in calls(tree, "save", "get_or_create", "create", "delete_instance", "bulk_update"):
        if isinstance(call.func, ast.Attribute) and not re.match("operations|making", ast.unparse(call.func.value)):
            yield call


def locks_by_hand(tree: ast.AST) -> Iterator[ast.AST]:
    """Row locks that do not name their strength: those are made by `statements.locking` alone."""
    for call in calls(tree, "for_update"):
        if "locking" not in [each.name for each in inside(tree, call)]:
            yield call


def sql_by_hand(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and SQL_TEXT.search(ast.unparse(node)):
            yield node


def composed_sql(tree: ast.AST) -> Iterator[ast.AST]:
    """SQL of parts that are not constants; `literal` and the kinds of images are constants of ours."""
    for call in calls(tree, "SQL"):
        (argument,) = call.args
        parts = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
        constant = all(isinstance(part, ast.Constant) for part in parts)
        if not constant and not {"literal", "branch"} & {each.name for each in inside(tree, call)}:
            yield call


def statements_of_calls(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements composed for each call, which costs more than to execute them."""
    for call in calls(tree, "Statement"):
        functions = inside(tree, call)
        if functions and not any("lru_cache" in ast.unparse(each) for each in functions[0].decorator_list):
            yield call


def drivers(tree: ast.AST) -> Iterator[ast.AST]:
    """Ways to the database around Connection, which says what its errors mean."""
    yield from calls(tree, "fetch", "fetchrow", "fetchval", "execute", "executemany", "script")


class Ban(NamedTuple):
    """What our sources must not do."""

    found: Callable[[ast.AST], Iterator[ast.AST]]
    wrong: str
    #: Files that may.
    but: tuple[str, ...] = ()


BANS = [
    Ban(saves_of_rows, "image.save()"),
    Ban(saves_of_rows, "ImageRow.get_or_create(image_id=image_id)"),
    Ban(locks_by_hand, "def locked(query): return query.for_update()"),
    Ban(sql_by_hand, "await run('SELECT * FROM image')", (MIGRATIONS, INSTALLATION, SOUNDNESS)),
    Ban(sql_by_hand, "await run(f'UPDATE {table} SET state = 1')", (MIGRATIONS, INSTALLATION, SOUNDNESS)),
    Ban(composed_sql, "SQL('state = ' + state)", (TABLES,)),
    Ban(composed_sql, "def page(state): SQL(f'state = {state}')", (TABLES,)),
    Ban(
        statements_of_calls,
        "async def get(connection): return await connection.row(Statement(query))",
        (REQUESTS,),  # composed by each Beginning, which is made at import
    ),
    Ban(drivers, "await raw.fetch(text)", (MIGRATIONS, DATABASE, INSTALLATION)),
    Ban(drivers, "await connection.script('BEGIN')", (MIGRATIONS, DATABASE, INSTALLATION)),
]
each_ban = pytest.mark.parametrize("ban", BANS, ids=lambda ban: f"{ban.found.__name__}-{ban.wrong}")


@each_ban
def test_no_source_has(ban: Ban) -> None:
    found = [
        f"{name}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
        for name, tree in SOURCES.items()
        if name not in ban.but
        for node in ban.found(tree)
    ]
    assert found == []


@each_ban
def test_it_would_be_found(ban: Ban) -> None:
    assert [*ban.found(ast.parse(f"async def _():\n    {ban.wrong}" if "def " not in ban.wrong else ban.wrong))]


@pytest.mark.parametrize("ban", [ban for ban in BANS if ban.but], ids=lambda ban: f"{ban.found.__name__}-{ban.wrong}")
def test_whoever_may_makes_use_of_it(ban: Ban) -> None:
    assert [name for name in ban.but if not [*ban.found(SOURCES[name])]] == []


def test_no_model_is_bound_to_a_database() -> None:
    assert [model for model in tables.TABLES if model._meta.database is not None] == []


# --- the order of locks

#: A mutation of one write claims its request last, and no other mutation claims that.
CLAIMED_LAST = "request_log, by one write"
ORDER = ("request_log", "account", "account_region", "image", "image_share", "instance", "operation", CLAIMED_LAST)
#: The arguments that tell rows apart.
KEYS = {
    "request_log": ("account_id", "method", "request_id"),
    "account": ("account_id",),
    "account_region": ("account_id", "region_id"),
    "image": ("image_id",),
    "image_share": ("image_id",),
    "instance": ("instance_id",),
    "operation": ("operation_id",),
}
#: Other names of theirs, in statements that have both.
OTHERWISE = {
    ("request_log", "account_id"): "asking_account_id",
    ("request_log", "method"): "asked_method",
    ("request_log", "request_id"): "asked_request_id",
    ("account_region", "account_id"): "owner_account_id",
}
LOCKING = re.compile(
    r'\bUPDATE "(\w+)" SET|\bDELETE FROM "(\w+)"|\bINSERT INTO "(request_log)"'
    r'|\bFROM "(\w+)" AS "t1".* FOR [A-Z ]+\)*$'
    r'|^WITH "\w+" AS \(SELECT 1 FROM "(\w+)" AS "t1" WHERE [^\']* FOR [A-Z ]+\)'
)


class Lock(NamedTuple):
    """A row that a statement locked, by the rank of its table."""

    rank: int
    key: tuple[str, ...]


class Recorder:
    """The locks of every transaction, in the order in which they were taken."""

    def __init__(self) -> None:
        self.transactions: list[list[Lock]] = []
        self.outside: list[str] = []
        self._open: dict[Connection, list[Lock]] = {}

    def script(self, connection: Connection, sql: str) -> None:
        """Begins a transaction, or ends one."""
        if sql.startswith("BEGIN"):
            self._open[connection] = []
        else:
            self.transactions.append(self._open.pop(connection))

    def statement(self, connection: Connection, statement: Statement, arguments: dict[str, Any]) -> None:
        """Notes what the statement locks. The write of a mutation of one is a transaction by itself."""
        if connection in self._open:
            self._open[connection] += self._locks(statement.text, arguments)
        elif "version" in arguments:
            self.transactions.append([*self._locks(statement.text, arguments)])
        else:
            self.outside += re.findall(".* FOR [A-Z ]+$", statement.text)

    def _locks(self, text: str, arguments: dict[str, Any]) -> Iterator[Lock]:
        for match in LOCKING.finditer(text):
            (table,) = filter(None, match.groups())
            rank = ORDER.index(CLAIMED_LAST if table == "request_log" and '"unchanged"' in text else table)
            *scope, last = (
                name if (name := OTHERWISE.get((table, key), key)) in arguments else key for key in KEYS[table]
            )
            ids = [arguments[last]] if last in arguments else sorted(arguments[f"{last}s"])
            for each in ids:
                yield Lock(rank, (*(arguments[name] for name in scope), each))

    @property
    def out_of_order(self) -> list[str]:
        """Transactions whose rows were not first locked in the order of ORDER, and of their keys in each table."""
        firsts = [[*dict.fromkeys(transaction)] for transaction in self.transactions]
        return [
            ", ".join(f"{ORDER[lock.rank]} {lock.key}" for lock in locks) for locks in firsts if locks != sorted(locks)
        ]

    @property
    def methods(self) -> set[str]:
        """The methods whose transactions were seen."""
        return {
            lock.key[1] for locks in self.transactions for lock in locks if ORDER[lock.rank].startswith("request_log")
        }


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """What every server of this process locks."""
    recorder = Recorder()

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        async def record(connection: Connection, statement: Any, **arguments: Any) -> Any:
            if isinstance(statement, Statement):
                recorder.statement(connection, statement, arguments)
            else:
                recorder.script(connection, statement)
            return await original(connection, statement, **arguments)

        return record

    with monkeypatch.context() as patch:
        for name in ("rows", "row", "value", "run", "script"):
            patch.setattr(Connection, name, recording(getattr(Connection, name)))
        yield recorder


@pytest.fixture(scope="module")
def driver() -> Held:
    """The compute driver of the file's service."""
    return Held()


@pytest.fixture(scope="module")
def world(postgres: Postgres, driver: Held) -> Iterator[World]:
    """A service whose operations can be made to fail."""
    with worlds.world(postgres, driver=driver) as running:
        yield running


WRONG_FORMAT = Refusal(Reason.IMAGE_FORMAT_MISMATCH, format="QCOW2", found="RAW")


def images_of_all_kinds(world: World, driver: Held) -> None:
    """Every mutation of images and quotas, also as it is undone."""
    operator, owner, recipient = world.operator, world.tenant(), world.tenant()
    own, created = races.image(owner, "own"), world.image(owner)
    image_id, recipient_ids = own.image_id, [recipient.account_id, world.tenant().account_id]
    to = [CopyImageRequest.Destination(region_id=region_id) for region_id in (FRANKFURT, SHANGHAI)]
    owner.update_image(image=Image(image_id=image_id, name="new"), update_mask=["name"])
    owner.copy_image(image_id=image_id, destinations=to).result(20)
    owner.share_image(image_id=image_id, account_ids=recipient_ids)
    owner.unshare_image(image_id=image_id, account_ids=recipient_ids[1:])
    owner.set_image_shares(image_id=image_id, account_ids=recipient_ids)
    recipient.leave_image_share(image_id=image_id)
    owner.deprecate_image(image_id=image_id, deprecation=Deprecation(state=Deprecation.STATE_DEPRECATED))
    operator.set_quota_limit(quota_id=QuotaId.QUOTA_ID_SHARES_PER_IMAGE, image_id=image_id, limit=5)
    operator.set_quota_limit(
        quota_id=QuotaId.QUOTA_ID_CUSTOM_IMAGES, account_id=owner.account_id, region_id=GUANGZHOU, limit=5
    )
    with driver.failing("import", WRONG_FORMAT):
        races.outcome(lambda: races.import_image(owner, "failing").result(20))
    with driver.holding("copy"):
        copying = owner.copy_image(image_id=created.image_id, destinations=to)
        copying.cancel()
        races.outcome(lambda: copying.result(20))
    owner.delete_operation(name=copying.name)
    owner.delete_image(image_id=image_id, force=True)
    races.publish(world, "new")


def instances_and_accounts(world: World, driver: Held) -> None:
    """Every other mutation."""
    tenant = world.tenant(GUANGZHOU)
    instance_id = world.launch(tenant).instance_id
    tenant.update_instance(instance=Instance(instance_id=instance_id, name="new"), update_mask=["name"])
    for move in (tenant.reboot_instance, tenant.stop_instance, tenant.start_instance, tenant.reinstall_instance):
        move(instance_id=instance_id).result(20)
    with driver.failing("reboot", WRONG_FORMAT):
        races.outcome(lambda: tenant.reboot_instance(instance_id=instance_id).result(20))
    tenant.delete_instance(instance_id=instance_id).result(20)
    for region_ids in ([GUANGZHOU, SHANGHAI, FRANKFURT], [GUANGZHOU]):
        moved = Account(account_id=tenant.account_id, region_ids=region_ids)
        world.operator.update_account(account=moved, update_mask=["region_ids"])


def test_every_mutation_takes_its_locks_in_one_order_and_within_a_transaction(
    world: World, driver: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(monkeypatch) as recorder:
        images_of_all_kinds(world, driver)
        instances_and_accounts(world, driver)
    assert recorder.out_of_order == []
    assert recorder.outside == []
    requests = [name for name in dir(v1) if name.endswith("Request")]
    mutations = {name for name in requests if "request_id" in getattr(v1, name).DESCRIPTOR.fields_by_name}
    of_google = {"CancelOperation", "DeleteOperation"}  # with an idempotency key beside the request
    assert recorder.methods == {name.removesuffix("Request") for name in mutations} | of_google
    assert {lock.rank for locks in recorder.transactions for lock in locks} == {*range(len(ORDER))}


def test_another_order_would_be_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*arguments: object) -> None:
        return None

    owner = world.tenant()
    own = races.image(owner, "own")
    monkeypatch.setattr(accounts, "lock_place", none)
    with recorded(monkeypatch) as recorder:
        owner.delete_image(image_id=own.image_id)
    (found,) = recorder.out_of_order
    assert found.index("image (") < found.index("account_region (")


# --- the session

REPEATABLE = "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'"


def creators_at_repeatable_read(postgres: Postgres) -> tuple[list[Any], list[str]]:
    """What 16 creators for one place come to on a server whose database defaults to that, and its conflicts."""

    async def alter() -> None:
        connection = await asyncpg.connect(database)
        await connection.execute(REPEATABLE.format(await connection.fetchval("SELECT current_database()")))
        await connection.close()

    database = postgres.database()
    asyncio.run(alter())
    world = World(database, postgres.settings(database), None)
    try:
        assert world.sql("SHOW transaction_isolation") == [("repeatable read",)]
        servers = races.Servers(world, world)
        creators = races.for_the_last_place(servers, races.import_calls, count=16)
        with races.conflicts() as conflicts, races.paused(accounts, "take_place", 0.05):
            return races.at_once(creators.calls), conflicts
    finally:
        world.stop()


def test_a_database_that_defaults_to_repeatable_read_is_served_as_any_other(postgres: Postgres) -> None:
    outcomes, conflicts = creators_at_repeatable_read(postgres)
    assert races.reasons(outcomes) == {"": 1, "CUSTOM_IMAGE_QUOTA_EXCEEDED": 15}
    assert conflicts == []


def test_at_repeatable_read_the_locks_would_fail(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SESSION, "default_transaction_isolation")
    _, conflicts = creators_at_repeatable_read(postgres)
    assert "SerializationError" in conflicts


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    """A database without a server."""
    return postgres.database()


@pytest.mark.parametrize("steps", range(6))
async def test_who_waits_for_a_connection_can_be_cancelled_at_every_step(dsn: str, steps: int) -> None:
    database = Database(dsn)
    async with database.connection():
        pass

    async def keep_one() -> None:
        async with database.connection():
            await asyncio.Event().wait()

    keeping = asyncio.create_task(keep_one())
    for _ in range(steps):
        await asyncio.sleep(0)
    keeping.cancel()
    done, _ = await asyncio.wait({keeping}, timeout=20)
    assert done
    await database.close()
