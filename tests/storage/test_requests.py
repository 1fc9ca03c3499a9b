"""Request ids at the end of their time: a call that is repeated just then begins again, as a new one."""

import asyncio
from typing import Any

import asyncpg
import pytest
from tests.world import Postgres

from cunho_storage import migrations, requests
from cunho_storage.database import Conflict, Connection, Database
from cunho_storage.statements import Statement

REQUEST = requests.Request("acme", "ShareImage", "repeated", b"arguments")


async def begun(database: Database) -> requests.Begun:
    """How a mutation begins with that request."""
    async with database.transaction() as connection:
        return await requests.begin(connection, requests.Beginning(), REQUEST)


async def test_a_request_that_is_forgotten_while_it_is_repeated_begins_again(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, row = await asyncio.to_thread(postgres.database), Connection.row
    database = Database(dsn, role=migrations.APP_ROLE)
    assert (await begun(database)).answered is None
    owner = await asyncpg.connect(dsn)
    await owner.execute("UPDATE request_log SET create_time = now() - interval '25 hours'")
    await owner.close()

    async def forgetting(self: Connection, statement: Statement, **arguments: Any) -> Any:
        if statement is requests._GET:
            async with database.connection() as another:
                await requests.forget(another)
        return await row(self, statement, **arguments)

    monkeypatch.setattr(Connection, "row", forgetting)
    with pytest.raises(Conflict):
        await begun(database)
    assert (await begun(database)).answered is None
    await database.close()
