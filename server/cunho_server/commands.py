"""What each command does, and prints. The words are read in `__main__`.

Commands import what they need when they run: help, mistakes and tokens do not wait for gRPC.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from cunho_server import settings
from cunho_server.output import say, write
from cunho_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from cunho import Client, v1

Answer = TypeVar("Answer")


class FoundError(Exception):
    """Something is wrong, and was told."""


def _settings(given: argparse.Namespace) -> Settings:
    """The settings, of which those given as flags override the environment's. Raises SettingsError."""
    flags: dict[str, Any] = {name: vars(given).get(name) for name in Settings.model_fields}
    return settings.load({name: value for name, value in flags.items() if value is not None})


# --- the server


def serve(given: argparse.Namespace) -> None:
    """Answers calls until it is told to stop."""
    chosen = _settings(given)
    from cunho_server import supervisor

    uvloop.run(supervisor.serve(chosen))


def health(given: argparse.Namespace) -> None:
    """Asks the server on this machine how it is."""
    chosen = _settings(given)
    from cunho_server import probe

    probe.health(chosen)
    say("serving")


def check(given: argparse.Namespace) -> None:
    """Prints what is found wrong with the installation. Raises FoundError."""
    chosen = _settings(given)
    from cunho_server import check

    found = uvloop.run(check.check(chosen))
    problems = sum(finding.is_problem for finding in found)
    if given.json:
        say(json.dumps({"sound": not problems, "findings": [finding._asdict() for finding in found]}, indent=2))
    else:
        lines = [f"{'problem' if finding.is_problem else 'note'}: {finding}" for finding in found]
        say("\n".join([*lines, f"not sound, problems: {problems}" if problems else "sound"]))
    if problems:
        raise FoundError


def migrate(given: argparse.Namespace) -> None:
    """Brings the schema up to date, or says what that would apply."""
    chosen = _settings(given)
    from cunho_server import opening

    names = uvloop.run((opening.pending if given.dry_run else opening.migrate)(chosen))
    say("\n".join(names) or "the schema is up to date")


def show_version(given: argparse.Namespace) -> None:
    """Prints the version."""
    say(version("cunho-server"))


# --- the catalogue and the API


def check_catalog(given: argparse.Namespace) -> None:
    """Says what is in a catalogue file, or what is wrong with it."""
    from cunho_server import catalog

    declared = catalog.read(given.file)
    counts = (
        f"{len(declared.regions)} regions, {len(declared.instance_types)} instance types, {len(declared.images)} images"
    )
    say(f"{given.file}: {counts}")


def apply_catalog(given: argparse.Namespace) -> None:
    """Brings the database to a catalogue file."""
    chosen = _settings(given)
    from cunho_server import opening

    done = uvloop.run(opening.apply_catalog(chosen, given.file))
    say(f"public images: {done.published} published, {done.changed} changed, {done.unchanged} unchanged")


def show_catalog(given: argparse.Namespace) -> None:
    """Prints the built-in catalogue."""
    say(files("cunho_server").joinpath("catalog.toml").read_text(encoding="utf-8").rstrip("\n"))


def protoset(given: argparse.Namespace) -> None:
    """Writes the API as a FileDescriptorSet."""
    from cunho_server.protoset import protoset

    if given.file:
        write(given.file, protoset())
    elif sys.stdout.isatty():
        raise SettingsError("a protoset is no text for a terminal: name a FILE to write it to")
    else:
        say(protoset())


# --- keys and tokens


def keys(given: argparse.Namespace) -> None:
    """Makes what a first installation needs to be reached by others."""
    from cunho_server import issuing

    made = issuing.make(given.folder, hosts=given.host or issuing.HOSTS, clients=given.client)
    say(issuing.guide(given.folder, made))


def token(given: argparse.Namespace) -> None:
    """Prints a token."""
    chosen = _settings(given)
    from cunho_server import issuing
    from cunho_server.credentials import ROLES, CallerRole

    if bool(given.service) != bool(given.acts_for):
        raise SettingsError("--service and --acts-for need each other: a service acts for accounts, others do not")
    role: CallerRole = next(role for role in ROLES if getattr(given, role))
    acts_for = ["*"] if "*" in given.acts_for else given.acts_for
    say(issuing.token(chosen, getattr(given, role), role, acts_for=acts_for, seconds=given.seconds, key=given.key))


# --- accounts and quotas: calls of the operator's


def list_accounts(given: argparse.Namespace) -> None:
    """Prints every account."""
    _show(given, _asked(given, lambda client: [*client.list_accounts(page_size=1000)]), _ACCOUNT)


def show_account(given: argparse.Namespace) -> None:
    """Prints one account."""
    _show(given, [_asked(given, lambda client: client.get_account(account_id=given.account))], _ACCOUNT)


def register_account(given: argparse.Namespace) -> None:
    """Registers an account."""

    def call(client: "Client") -> "v1.Account":
        return client.register_account(
            account_id=given.account, display_name=given.name or "", region_ids=given.regions
        )

    _show(given, [_asked(given, call)], _ACCOUNT)


def update_account(given: argparse.Namespace) -> None:
    """Changes the name of an account and the regions that it is active in."""
    changes = {"display_name": given.name, "region_ids": given.regions or given.add_region or given.remove_region}
    mask = [field for field, value in changes.items() if value is not None and value != []]
    if not mask:
        raise SettingsError("nothing to change: give --name, --regions, --add-region or --remove-region")

    def call(client: "Client") -> "v1.Account":
        account = client.get_account(account_id=given.account)
        account.display_name = given.name or ""
        region_ids = {*(given.regions or account.region_ids), *given.add_region} - {*given.remove_region}
        account.region_ids[:] = sorted(region_ids)
        return client.update_account(account=account, update_mask=mask)  # its etag: not over another's change

    _show(given, [_asked(given, call)], _ACCOUNT)


def suspend_account(given: argparse.Namespace) -> None:
    """Suspends an account."""
    _set_state(given, "STATE_SUSPENDED")


def activate_account(given: argparse.Namespace) -> None:
    """Ends the suspension of an account."""
    _set_state(given, "STATE_ACTIVE")


def _set_state(given: argparse.Namespace, state: str) -> None:
    from cunho import v1

    wanted = v1.Account(account_id=given.account, state=v1.Account.State.Value(state))
    _show(given, [_asked(given, lambda client: client.update_account(account=wanted, update_mask=["state"]))], _ACCOUNT)


def list_quotas(given: argparse.Namespace) -> None:
    """Prints the quotas of an account."""
    _show(given, _asked(given, lambda client: [*client.list_quotas(account_id=given.account)]), _QUOTA)


def show_image_quota(given: argparse.Namespace) -> None:
    """Prints the quota of an image."""
    from cunho.v1 import QuotaId

    def call(client: "Client") -> "v1.Quota":
        return client.get_quota(quota_id=QuotaId.QUOTA_ID_SHARES_PER_IMAGE, image_id=given.image)

    _show(given, [_asked(given, call)], _QUOTA)


def set_quota(given: argparse.Namespace) -> None:
    """Sets how many images an account may have in a region."""
    from cunho.v1 import QuotaId

    def call(client: "Client") -> "v1.Quota":
        return client.set_quota_limit(
            quota_id=QuotaId.QUOTA_ID_CUSTOM_IMAGES,
            account_id=given.account,
            region_id=given.region,
            limit=given.images,
        )

    _show(given, [_asked(given, call)], _QUOTA)


def set_image_quota(given: argparse.Namespace) -> None:
    """Sets how many accounts an image may be shared with."""
    from cunho.v1 import QuotaId

    def call(client: "Client") -> "v1.Quota":
        return client.set_quota_limit(
            quota_id=QuotaId.QUOTA_ID_SHARES_PER_IMAGE, image_id=given.image, limit=given.shares
        )

    _show(given, [_asked(given, call)], _QUOTA)


def _asked(given: argparse.Namespace, ask: Callable[["Client"], Answer]) -> Answer:
    """What the service answers the operator."""
    chosen = _settings(given)
    from cunho_server import operating

    return uvloop.run(operating.asked(chosen, given.operator or operating.user(), ask))


_ACCOUNT = "account_id state display_name region_ids".split()
_QUOTA = "quota_id account_id region_id image_id limit usage reserved is_default".split()


def _show(given: argparse.Namespace, messages: "Iterable[Message]", fields: Sequence[str]) -> None:
    """Prints messages, as JSON whole or as a table of those fields."""
    from google.protobuf.json_format import MessageToDict

    rows = [
        MessageToDict(each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for each in messages
    ]
    if given.json:
        say(json.dumps(rows, indent=2))
        return
    lines = [[field.upper() for field in fields], *([_cell(row[field]) for field in fields] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    say("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))


def _cell(value: Any) -> str:
    """A value of a message's JSON, as it is shown in a table."""
    if isinstance(value, list):
        return ",".join(value) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removeprefix("STATE_").removeprefix("QUOTA_ID_") or "-"
