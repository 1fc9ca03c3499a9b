"""Secrets that the servers of one database share."""

import secrets

from cunho_storage.database import Connection
from cunho_storage.statements import Statement, arg
from cunho_storage.tables import SecretRow

_ADD = Statement(SecretRow.insert({SecretRow.name: arg("name"), SecretRow.value: arg("value")}).on_conflict_ignore())
_GET = Statement(SecretRow.select(SecretRow.value).where(SecretRow.name == arg("name")))


async def shared(connection: Connection, name: str) -> bytes:
    """The secret of that name: 32 random bytes, made by whoever asks first."""
    await connection.run(_ADD, name=name, value=secrets.token_bytes(32))
    value: bytes = await connection.value(_GET, name=name)
    return value
