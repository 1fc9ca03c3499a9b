"""The root of the commands: what they share, and how a run of one begins and ends. Each noun has its own file.

Nouns are imported when they are named, gRPC when a call is sent, rich when something is shown: help does not wait.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from cunho.cli import streams
from cunho.cli.exit_codes import BROKEN_PIPE, INTERRUPTED, exit_code, exit_codes_in_lines
from cunho.cli.flags import QUIET, with_pauses
from cunho.cli.session import Connection, Json, MisuseError, Session, flags_go_first

app: App = App(
    name="cunho",
    help="Images and instances of a private cloud, from a terminal.",
    help_format="plaintext",
    help_epilogue=f"Exit codes:\n{exit_codes_in_lines()}",
    version=lambda: f"cunho {version('cunho')}",
    default_parameter=QUIET,
    config=flags_go_first,
)
for _noun, _meaning in {
    "images": "Choose, make, copy, share, retire and delete images.",
    "instances": "Launch instances, start, stop, reinstall and delete them.",
    "operations": "Look at slow work, wait for it, cancel it.",
}.items():
    app.command(f"cunho.cli.{_noun}:app", name=_noun, help=_meaning)
app.command("cunho.cli.regions:regions", name="regions", help="Lists the regions with their zones and prices.")
app.command("cunho.cli.regions:instance_types", name="instance-types", help="Lists the instance types.")
app.command(
    "cunho.cli.quotas:quotas",
    name="quotas",
    help="Shows limits and what is used of them.",
    usage="Usage: cunho quotas [OPTIONS] [ACCOUNT_ID]",
)
app.register_install_completion_command(help="Install completion for the shell that this runs in.")


@app.meta.default
def dispatch(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    connection: Connection | None = None,
    json: Json = False,
) -> int:
    """Runs the command that the words name, with a session of these flags. Returns its exit code."""
    command, bound, wanted = app.parse_args(words)
    if not wanted:  # help and the like
        command(*bound.args, **bound.kwargs)
        return 0
    from cunho import Refused
    from cunho.cli import refusals

    with Session(connection or Connection(), json) as session:
        try:
            return command(*bound.args, **bound.kwargs, **dict.fromkeys(wanted, session)) or 0
        except Refused as refused:
            return refusals.tell(refused, session.connection.address, json)


def run(words: Sequence[str]) -> int:
    """Runs a command and returns its exit code; says in a sentence what is wrong with the words."""
    streams.prepare()
    for name in [name for name, value in os.environ.items() if name.startswith("CUNHO_") and not value]:
        del os.environ[name]  # compose files and the like set empty what is not set
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported; what matters is in the refusal
    try:
        _require_text(words)
        code = app.meta(with_pauses(words), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code or 0
    except CycloptsError as error:
        chain = " ".join(["cunho", *(error.command_chain or ())])
        return _tell(f"{error}\nSee: {chain} --help", "INVALID_ARGUMENT", words)
    except MisuseError as error:
        return _tell(str(error), "INVALID_ARGUMENT", words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        streams.discard(sys.stdout)
        return BROKEN_PIPE
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return BROKEN_PIPE  # of a help: rich has discarded the rest, and would end with 1
    except OSError as error:  # as of a disk that is full
        streams.discard(sys.stdout)
        return _tell(str(error), "UNKNOWN", words)


def _tell(message: str, grpc_code: str, words: Sequence[str]) -> int:
    """Tells what the service had no part in, as a refusal if JSON is wanted. Returns the exit code."""
    if "--json" not in words:
        with streams.telling():
            print(message, file=sys.stderr)
        return exit_code(grpc_code)
    from grpc import StatusCode

    from cunho import Refused
    from cunho.cli import refusals

    return refusals.tell(Refused(StatusCode[grpc_code], message), "", as_json=True)


def _require_text(words: Sequence[str]) -> None:
    """Raises MisuseError if a word cannot be sent: its bytes are no UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise MisuseError(f"{word!r} is not in UTF-8") from error
