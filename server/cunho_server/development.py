"""What a start with the development key adds: demo accounts, tokens for them, and first calls to paste."""

import shutil
import sys
from pathlib import Path

from cunho_server import identity
from cunho_server.settings import Settings
from cunho_storage import accounts, regions
from cunho_storage.database import Database

DEMO_ACCOUNTS = ("acme", "globex")
_OPERATOR = "operator"
_ALL = 1000


async def welcome(address: str, settings: Settings, database: Database) -> None:
    """Registers the demo accounts, active in every region, and prints how to call the service."""
    async with database.transaction() as connection:
        region_ids = [region.region_id for region in await regions.list_(connection, after="", limit=_ALL)]
        for account_id in DEMO_ACCOUNTS:
            if await accounts.get(connection, account_id) is None:
                await accounts.add(connection, account_id, account_id.title(), region_ids)
    signer = identity.Signer(identity.development_key(settings.development_key))
    seconds = settings.token_age_max_seconds
    tokens = {name: signer.token(name, "account", seconds=seconds) for name in DEMO_ACCOUNTS}
    tokens[_OPERATOR] = signer.token(_OPERATOR, "operator", seconds=seconds)
    print(_text(address, tokens, seconds), flush=True)


def _text(address: str, tokens: dict[str, str], seconds: int) -> str:
    call = f'{_grpcurl()} -plaintext -H "authorization: Bearer $ACME"'
    named = "\n".join(f"export {name.upper()}={token}" for name, token in tokens.items())
    choice = '{"region_id": "ap-guangzhou", "page_size": 3, "filter": "os.family = LINUX AND architecture = X86_64"}'
    return f"""
Cunho serves on {address}. Tokens of two accounts and of the operator, good for {seconds // 3600} hours:

{named}

Paste them into another terminal, then try:

{call} {address} cunho.v1.RegionService/ListRegions
{call} -d '{choice}' {address} cunho.v1.ImageService/ListImages
{call} -d '{{"region_id": "ap-guangzhou"}}' {address} cunho.v1.InstanceService/ListInstances

Describe any method:  {_grpcurl()} -plaintext {address} describe cunho.v1.ImageService.ShareImage
Stop with Ctrl-C; everything stays in the data folder.
"""


def _grpcurl() -> str:
    """The grpcurl to paste: the one on PATH, else the one that is installed beside this Python."""
    beside = Path(sys.executable).parent / "grpcurl"
    return "grpcurl" if shutil.which("grpcurl") or not beside.exists() else str(beside)
