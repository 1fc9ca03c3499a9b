"""The command `cunho-server`: reads its words, calls what does the work, and says in a sentence what was refused.

Commands import what they need when they run: help, mistakes and tokens do not wait for gRPC.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from cunho_rules.shapes import account_id as id_problem
from cunho_server import settings
from cunho_server.settings import Settings, SettingsError

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. `words` are the process's own if not given."""
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # read when gRPC is imported; nothing here forks
    given, strays = _parser().parse_known_args(words)
    try:
        _refuse(strays, given.parser)
        given.run(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SettingsError as error:
        print(error, file=sys.stderr)
        return _MISUSED
    except _refusals() as error:
        print(error, file=sys.stderr)
        return _FAILED
    except _database_errors() as error:
        cause = str(error) or type(error).__name__
        print(f"the database cannot be used ({cause}): check it and CUNHO_DATABASE_URL", file=sys.stderr)
        return _FAILED
    return 0


def _refusals() -> tuple[type[Exception], ...]:
    """What says by itself what is wrong outside of the program, and needs no traceback."""
    from cunho_rules.refusals import Refusal
    from cunho_server.app import AddressError
    from cunho_server.catalog import CatalogError
    from cunho_server.identity import KeyFileError
    from cunho_storage.embedded import EmbeddedError
    from cunho_storage.migrations import MigrationError

    return AddressError, CatalogError, EmbeddedError, KeyFileError, MigrationError, Refusal


def _database_errors() -> tuple[type[Exception], ...]:
    """What the driver raises; files and the address have errors of their own, so that OSError is the database's too."""
    import asyncpg

    return asyncpg.PostgresError, asyncpg.ClientConfigurationError, OSError


# The commands


def _serve(given: argparse.Namespace) -> None:
    chosen = _settings(given)
    from cunho_server import app

    uvloop.run(app.serve(chosen))


def _migrate(given: argparse.Namespace) -> None:
    chosen = _settings(given)
    from cunho_server import app

    applied = uvloop.run(app.migrate(chosen))
    print(*applied or ["the schema is up to date"], sep="\n")


def _check_catalog(given: argparse.Namespace) -> None:
    from cunho_server import catalog

    declared = catalog.read(given.file)
    counts = (
        f"{len(declared.regions)} regions, {len(declared.instance_types)} instance types, {len(declared.images)} images"
    )
    print(f"{given.file}: {counts}")


def _apply_catalog(given: argparse.Namespace) -> None:
    chosen = _settings(given)
    from cunho_server import app

    done = uvloop.run(app.apply_catalog(chosen, given.file))
    print(f"public images: {done.published} published, {done.changed} changed, {done.unchanged} unchanged")


def _token(given: argparse.Namespace) -> None:
    chosen = _settings(given)
    from cunho_server.identity import ROLES, KeyFileError, Signer, TokenRole, private_key

    if chosen.token_key:
        raise SettingsError(
            f"with the token key {chosen.token_key} the server accepts no tokens of the development key"
        )
    if bool(given.service) != bool(given.acts_for):
        raise SettingsError("--service and --acts-for need each other: a service acts for accounts, others do not")
    most = chosen.token_age_max_seconds
    seconds = most if given.seconds is None else given.seconds
    if not 1 <= seconds <= most:
        raise SettingsError(f"--seconds is {seconds}: must be a whole number from 1 to {most}")
    try:
        signer = Signer(private_key(chosen.development_key))
    except KeyFileError as error:
        hint = "the server makes it when it first starts; name the server's data folder with --data-dir"
        raise KeyFileError(f"{error}: {hint}") from error
    role: TokenRole = next(role for role in ROLES if getattr(given, role))
    acts_for = ["*"] if "*" in given.acts_for else given.acts_for
    print(signer.token(getattr(given, role), role, acts_for=acts_for, seconds=seconds))


def _version(given: argparse.Namespace) -> None:
    print(version("cunho-server"))


# The words


class _Parser(argparse.ArgumentParser):
    """Takes flags by their whole names only, and refuses in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(_MISUSED, f"{self.prog}: {message} ({self.prog} --help says more)\n")


def _parser() -> _Parser:
    parser = _Parser(prog="cunho-server", description="Self-hosted image and instance service.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = _add(commands, "serve", _serve, "answer calls until SIGTERM or SIGINT", Settings.model_fields)
    serve.usage = "%(prog)s [--SETTING VALUE ...]"

    token = _add(commands, "token", _token, "print a token signed with the development key", ["data_dir"])
    subject = token.add_mutually_exclusive_group(required=True)
    subject.add_argument("--account", metavar="ID", type=_id, help="The account that calls.")
    subject.add_argument("--operator", metavar="NAME", type=_id, help="The operator who calls.")
    subject.add_argument("--service", metavar="NAME", type=_id, help="The service that calls for accounts.")
    acts_for = 'Those accounts; "*" for every account.'
    token.add_argument("--acts-for", metavar="ID", type=_id_or_all, nargs="+", default=[], help=acts_for)
    seconds = "How long it is valid. Default: as long as the server accepts."
    token.add_argument("--seconds", metavar="SECONDS", type=int, help=seconds)

    catalog = commands.add_parser("catalog", help="check or apply a catalogue file")
    catalog_commands = catalog.add_subparsers(metavar="COMMAND", required=True)
    check = _add(catalog_commands, "check", _check_catalog, "tell what is wrong with a catalogue file")
    apply = _add(catalog_commands, "apply", _apply_catalog, "bring the database to a catalogue file", _DATABASE)
    for command in (check, apply):
        command.add_argument("file", metavar="FILE", type=Path, help="The file, in TOML.")

    _add(commands, "migrate", _migrate, "bring the database's schema up to date", _DATABASE)
    _add(commands, "version", _version, "print the version")
    return parser


#: The settings that say where the database is.
_DATABASE = ("database_url", "data_dir")


def _add(
    commands: "argparse._SubParsersAction[_Parser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    purpose: str,
    flags: Iterable[str] = (),
) -> _Parser:
    """A command, with the settings in `flags` as its flags."""
    parser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog="Variables of the environment are shown with their defaults; flags override them." if flags else None,
        formatter_class=partial(argparse.RawTextHelpFormatter, max_help_position=8, width=100),
    )
    for setting in flags:
        explained = settings.explained(setting).replace("%", "%%")
        parser.add_argument(settings.flag(setting), metavar=setting.rpartition("_")[2].upper(), help=explained)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _settings(given: argparse.Namespace) -> Settings:
    """The settings, of which those given as flags override the environment's. Raises SettingsError."""
    flags: dict[str, Any] = {name: vars(given).get(name) for name in Settings.model_fields}
    return settings.load({name: value for name, value in flags.items() if value is not None})


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
    if problem := id_problem(word):
        raise argparse.ArgumentTypeError(f"{word!r} {problem}")
    return word


def _id_or_all(word: str) -> str:
    return word if word == "*" else _id(word)


if __name__ == "__main__":
    sys.exit(main())
