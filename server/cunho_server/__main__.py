"""The command `cunho-server`: reads its words and says in a sentence what is refused. `commands` does what they say."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cunho_server import commands, settings
from cunho_server.settings import Settings, SettingsError

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130
_STANDARD_ERROR = 2


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. `words` are the process's own if not given."""
    _open_streams()
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # read when gRPC is imported; nothing here forks
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # another program's folder: the server makes its own
    given, strays = _parser().parse_known_args(words)
    try:
        _refuse(strays, given.parser)
        given.run(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except commands.FoundError:
        return _FAILED
    except SettingsError as error:
        print(error, file=sys.stderr)
        return _MISUSED
    except _refusals() as error:
        print(_told(error), file=sys.stderr)
        return _FAILED
    except _database_errors() as error:
        cause = str(error) or type(error).__name__
        print(f"the database cannot be used ({cause}): check it and CUNHO_DATABASE_URL", file=sys.stderr)
        return _FAILED
    return 0


def _open_streams() -> None:
    """Opens the standard streams that are closed: files and sockets opened later would take their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(number, True)
    os.close(number)


def _told(error: Exception) -> str:
    """What was refused and, of a call, what to do about it in a line of its own."""
    from cunho import Refused

    return "\n".join(filter(None, (error.message, error.remedy))) if isinstance(error, Refused) else str(error)


def _refusals() -> tuple[type[Exception], ...]:
    """What says by itself what is wrong outside of the program, and needs no traceback."""
    from cunho import Refused
    from cunho_rules.refusals import Refusal
    from cunho_server.address import AddressError
    from cunho_server.catalog import CatalogError
    from cunho_server.exposition import MetricsAddressError
    from cunho_server.keys import KeyFileError
    from cunho_server.output import OutputError
    from cunho_server.probe import ProbeError
    from cunho_server.supervisor import StartError
    from cunho_storage.embedded import EmbeddedError
    from cunho_storage.installation import UnfitError
    from cunho_storage.migrations import MigrationError

    of_start = AddressError, EmbeddedError, KeyFileError, MetricsAddressError, MigrationError, StartError, UnfitError
    return *of_start, CatalogError, OutputError, ProbeError, Refusal, Refused


def _database_errors() -> tuple[type[Exception], ...]:
    """What the driver raises; files and the address have errors of their own, so that OSError is the database's too."""
    import asyncpg

    return asyncpg.PostgresError, asyncpg.ClientConfigurationError, OSError


# --- the words


class _Columns(argparse.HelpFormatter):
    """Has room for the names of commands, which stand further right than argparse expects."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100)
        self._action_max_length = 14


class _Parser(argparse.ArgumentParser):
    """Takes flags by their whole names only, and refuses in one line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Columns)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        if unknown := re.fullmatch(
            r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL
        ):
            known = re.findall(r"[a-z-]+", unknown[2])
            message = (
                f"{unknown[1]!r} is no command: {settings.meant(unknown[1], known, 'there are ' + ', '.join(known))}"
            )
        self.exit(_MISUSED, f"{self.prog}: {message} ({self.prog} --help says more)\n")


#: Commands are added here.
_Commands = argparse._SubParsersAction  # it has no public name

#: The settings that say where the database is.
_DATABASE = ("database_url", "data_dir")


def _parser() -> _Parser:
    parser = _Parser(prog="cunho-server", description="Self-hosted image and instance service.")
    words = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = _add(words, "serve", commands.serve, "answer calls until SIGTERM or SIGINT", Settings.model_fields)
    serve.usage = "%(prog)s [--SETTING VALUE ...]"
    reached = ("address", "tls_certificate", "tls_key", "tls_client_ca")
    _add(words, "health", commands.health, "ask the server on this machine whether it serves", reached)
    _add_check(words)
    _add_accounts(words)
    _add_quotas(words)
    _add_catalog(words)
    _add_keys(words)
    _add_token(words)
    migrate = _add(words, "migrate", commands.migrate, "bring the database's schema up to date", _DATABASE)
    migrate.add_argument("--dry-run", action="store_true", help="Only name what would be applied.")
    protoset = _add(words, "protoset", commands.protoset, "write the API's descriptors, for `grpcurl -protoset`")
    protoset.add_argument("file", metavar="FILE", type=Path, nargs="?", help="The file. Default: standard output.")
    _add(words, "version", commands.show_version, "print the version")
    return parser


def _add_check(words: "_Commands[_Parser]") -> None:
    check = _add(words, "check", commands.check, "tell whether the installation is sound", Settings.model_fields)
    check.usage = "%(prog)s [--json] [--SETTING VALUE ...]"
    check.description = (
        "Tell whether the installation is sound: PostgreSQL's settings, the schema, "
        "the rights of the server's role, the\n"
        "counters and states that are stored, certificates and keys. Nothing is changed, and servers may be running.\n"
        "Each finding has a line with what to do; the exit code is 1 if one of them is a problem."
    )
    _add_json(check)


def _add_accounts(words: "_Commands[_Parser]") -> None:
    accounts = _add_group(words, "accounts", "list, register, change and suspend accounts")
    _add_call(accounts, "list", commands.list_accounts, "print every account")
    _add_call(accounts, "show", commands.show_account, "print one account", "account")
    register = _add_call(accounts, "register", commands.register_account, "register an account", "account")
    update = _add_call(accounts, "update", commands.update_account, "change an account's name and regions", "account")
    for command in (register, update):
        command.add_argument("--name", metavar="NAME", help="The name to show.")
    regions: dict[str, Any] = {"metavar": "REGION", "type": _id, "nargs": "+", "default": []}
    register.add_argument("--regions", help="The regions that it is active in. Default: none.", **regions)
    which = update.add_mutually_exclusive_group()
    which.add_argument("--regions", help="The regions that it is active in from now on.", **regions)
    which.add_argument("--add-region", help="Regions that it becomes active in.", **regions)
    update.add_argument("--remove-region", help="Regions that it leaves; it must have nothing there.", **regions)
    _add_call(accounts, "suspend", commands.suspend_account, "let an account make, share and launch nothing", "account")
    _add_call(accounts, "activate", commands.activate_account, "end the suspension of an account", "account")


def _add_quotas(words: "_Commands[_Parser]") -> None:
    quotas = _add_group(words, "quotas", "show and set how much accounts may have")
    _add_call(quotas, "list", commands.list_quotas, "print an account's quotas, by region", "account")
    _add_call(quotas, "show-image", commands.show_image_quota, "print with how many an image may be shared", "image")
    images = "set how many custom images an account may have in a region"
    set_ = _add_call(quotas, "set", commands.set_quota, images, "account", "region")
    set_.add_argument("--images", metavar="COUNT", type=int, required=True, help="The most there may be.")
    shares = "set how many accounts an image may be shared with"
    set_image = _add_call(quotas, "set-image", commands.set_image_quota, shares, "image")
    set_image.add_argument("--shares", metavar="COUNT", type=int, required=True, help="The most there may be.")


def _add_catalog(words: "_Commands[_Parser]") -> None:
    catalog = _add_group(words, "catalog", "check or apply a catalogue file, or print the built-in one")
    check = _add(catalog, "check", commands.check_catalog, "tell what is wrong with a catalogue file")
    apply = _add(catalog, "apply", commands.apply_catalog, "bring the database to a catalogue file", _DATABASE)
    for command in (check, apply):
        command.add_argument("file", metavar="FILE", type=Path, help="The file, in TOML.")
    _add(catalog, "show", commands.show_catalog, "print the built-in catalogue, to start one's own from")


def _add_keys(words: "_Commands[_Parser]") -> None:
    purpose = "make certificates and keys for a first installation, where there are none"
    keys = _add(words, "keys", commands.keys, purpose)
    keys.add_argument("folder", metavar="FOLDER", type=Path, help="Where they are put. Nothing is overwritten.")
    hosts = "The server's names and addresses. Default: those of this machine to itself."
    keys.add_argument("--host", metavar="HOST", nargs="+", default=[], help=hosts)
    clients = (
        "Make a certificate for each: cunho://account/ID, cunho://operator/NAME or\ncunho://service/NAME?acts_for=ID,ID"
    )
    keys.add_argument("--client", metavar="URI", nargs="+", default=[], help=clients)


def _add_token(words: "_Commands[_Parser]") -> None:
    claims = [name for name in Settings.model_fields if name.startswith("token_")]
    token = _add(words, "token", commands.token, "print a signed token", ["data_dir", *claims])
    token.usage = "%(prog)s (--account ID | --operator NAME | --service NAME --acts-for ID ...) [--key FILE] [...]"
    subject = token.add_mutually_exclusive_group(required=True)
    subject.add_argument("--account", metavar="ID", type=_id, help="The account that calls.")
    subject.add_argument("--operator", metavar="NAME", type=_id, help="The operator who calls.")
    subject.add_argument("--service", metavar="NAME", type=_id, help="The service that calls for accounts.")
    acts_for = 'Those accounts; "*" for every account.'
    token.add_argument("--acts-for", metavar="ID", type=_id_or_all, nargs="+", default=[], help=acts_for)
    seconds = "How long it is valid. Default: as long as the server accepts."
    token.add_argument("--seconds", metavar="SECONDS", type=int, help=seconds)
    key = "PEM file of the private key to sign with. Default: the development key."
    token.add_argument("--key", metavar="FILE", type=Path, help=key)


def _add_group(words: "_Commands[_Parser]", name: str, purpose: str) -> "_Commands[_Parser]":
    """A command that has commands."""
    group = words.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
    return group.add_subparsers(metavar="COMMAND", required=True)


def _add_call(
    words: "_Commands[_Parser]", name: str, run: Callable[[argparse.Namespace], None], purpose: str, *ids: str
) -> _Parser:
    """A command that calls the service, with the ids that it takes."""
    parser = _add(words, name, run, purpose, _DATABASE)
    for id in ids:
        parser.add_argument(id, metavar=id.upper(), type=_id, help=f"The id of the {id}.")
    by = "The operator whom the log names. Default: the user of this machine who runs it."
    parser.add_argument("--as", dest="operator", metavar="NAME", type=_id, help=by)
    _add_json(parser)
    return parser


def _add_json(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON, for programs.")


def _add(
    words: "_Commands[_Parser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    purpose: str,
    flags: Iterable[str] = (),
) -> _Parser:
    """A command, with the settings in `flags` as its flags."""
    parser = words.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog="Variables of the environment are shown with their defaults; flags override them." if flags else None,
        formatter_class=partial(argparse.RawTextHelpFormatter, max_help_position=8, width=100),
    )
    group = parser.add_argument_group("settings")
    for setting in flags:
        explained = settings.explained(setting).replace("%", "%%")
        group.add_argument(settings.flag(setting), metavar=setting.rpartition("_")[2].upper(), help=explained)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _refuse(strays: Sequence[str], parser: _Parser) -> None:
    """Raises SettingsError if there are words that the command does not take."""
    known = re.findall(r"--[a-z-]+", parser.format_help())
    wrong = [word.partition("=")[0] for word in strays if word.startswith("-")] or strays
    if wrong:
        hint = f"{parser.prog} --help lists what it takes"
        raise SettingsError(
            "\n".join(f"{parser.prog} takes no {word}: {settings.meant(word, known, hint)}" for word in wrong)
        )


def _id(word: str) -> str:
    from cunho_rules.shapes import account_id

    if problem := account_id(word):
        raise argparse.ArgumentTypeError(f"{word!r} {problem}")
    return word


def _id_or_all(word: str) -> str:
    return word if word == "*" else _id(word)


if __name__ == "__main__":
    sys.exit(main())
