"""What a start with the development key adds: demo accounts, tokens for them, and first calls to paste."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cunho_server.output import OutputError, say
from cunho_server.settings import Settings
from cunho_storage import accounts, regions
from cunho_storage.database import Database

DEMO_ACCOUNTS = ("acme", "globex")
_OPERATOR = "operator"
_ALL = 1000


async def register(database: Database) -> None:
    """Registers the demo accounts, active in every region, where they are not there yet."""
    async with database.transaction() as connection:
        region_ids = [region.region_id for region in await regions.list_(connection, after="", limit=_ALL)]
        for account_id in DEMO_ACCOUNTS:
            if await accounts.get(connection, account_id) is None:
                await accounts.add(connection, account_id, account_id.title(), region_ids)


async def welcome(address: str, settings: Settings, database: Database) -> None:
    """Prints how to call the service."""
    from cunho_server import keys  # now that it answers: to load them takes a while
    from cunho_server.tokens import Signer

    async with database.connection() as connection:
        (region,) = await regions.list_(connection, after="", limit=1)
    signer = Signer(keys.development_key(settings.development_key), settings)
    seconds = settings.token_age_max_seconds
    tokens = {name: signer.token(name, "account", seconds=seconds) for name in DEMO_ACCOUNTS}
    tokens[_OPERATOR] = signer.token(_OPERATOR, "operator", seconds=seconds)
    trust = f"-cacert {shlex.quote(str(settings.tls_certificate))}" if settings.tls_certificate else "-plaintext"
    with suppress(OutputError):  # calls are answered all the same
        say(_text(address, trust, tokens, seconds, region.region_id))


def _text(address: str, trust: str, tokens: Mapping[str, str], seconds: int, region_id: str) -> str:
    program, hint = _grpcurl()
    grpcurl = f"{program} {trust}"
    exports = "\n".join(f"export {name.upper()}={token}" for name, token in tokens.items())

    def call(method: str, **request: Any) -> str:
        sender = f'{grpcurl} -H "authorization: Bearer $ACME"'
        return f"{sender} -d '{json.dumps(request)}' {address} cunho.v1.{method}"

    linux = "kind = PUBLIC AND os.family = LINUX AND architecture = X86_64"
    return f"""
Cunho serves on {address}. Paste these into another terminal: tokens of two accounts and of the
operator, good for {seconds / 3600:g} hours.

{exports}

Then try: a region with its zones and prices; images of it by operating system and architecture;
how many images of its own acme may have there.

{call("RegionService/ListRegions", page_size=1)}
{call("ImageService/ListImages", region_id=region_id, filter=linux, page_size=2)}
{call("QuotaService/GetQuota", quota_id="QUOTA_ID_CUSTOM_IMAGES", region_id=region_id)}

What else there is, the service tells itself; README.md goes on from here.{hint}

{grpcurl} {address} describe cunho.v1.ImageService

Ctrl-C stops it; the next start finds everything as it was.
"""


def _grpcurl() -> tuple[str, str]:
    """The grpcurl to paste, the one on PATH or else the one beside this Python, and a hint if there is none."""
    beside = Path(sys.executable).parent / "grpcurl"
    if shutil.which("grpcurl"):
        return "grpcurl", ""
    if beside.exists():
        return shlex.quote(str(beside)), ""
    return "grpcurl", "\nThere is no grpcurl on PATH: install it from https://github.com/fullstorydev/grpcurl first."
