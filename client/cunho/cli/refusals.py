"""How a refusal is told: on the error output, for people or as JSON, with the exit code of its class."""

from typing import TYPE_CHECKING, Any

from cunho.cli.exit_codes import exit_code
from cunho.cli.flags import word_of
from cunho.cli.printing import Cell, grid, say, say_to_programs
from cunho.v1 import Advice

if TYPE_CHECKING:
    from cunho import Refused

_HINT = (
    "Check that the service runs, its address (--address, CUNHO_ADDRESS), and whether it takes TLS (--tls, --no-tls)."
)


def tell(refused: "Refused", address: str, as_json: bool) -> int:
    """Tells a refusal and returns the exit code. `address` is where the service was called."""
    if as_json:
        say_to_programs({"error": as_object(refused)})
    else:
        say(Cell(f"refused: {_message(refused, address)}", "bold red"))
        say(grid(_lines(refused), indent=2))
    return exit_code(refused.code.name)


def as_object(refused: "Refused") -> dict[str, Any]:
    """A refusal as JSON."""
    return {
        "code": refused.code.name,
        "reason": refused.reason,
        "message": refused.message,
        "rule": refused.rule,
        "metadata": dict(sorted(refused.metadata.items())),
        "violations": refused.violations,
        "remedy": refused.remedy,
        "retry": word_of(Advice.Retry, refused.retry),
        "retry_may_help": refused.retry_may_help,
        "retry_after_seconds": refused.retry_after_seconds,
        "exit_code": exit_code(refused.code.name),
    }


def _message(refused: "Refused", address: str) -> str:
    return f"no answer from {address}: {refused.message}" if _unanswered(refused) else refused.message


def _unanswered(refused: "Refused") -> bool:
    """Whether the service was not reached, or not in time."""
    return not refused.reason and refused.code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def _lines(refused: "Refused") -> list[tuple[str, str]]:
    """What each line says: its name and the text."""
    told = [("reason", " ".join(filter(None, (refused.reason, refused.code.name, refused.rule))))]
    if refused.violations:  # which say the same with more words
        told += [("field", f"{field or 'request'}: {problem}") for field, problem in refused.violations.items()]
    else:
        told += [("", f"{key} = {value}") for key, value in sorted(refused.metadata.items())]
    told += [("remedy", remedy)] if (remedy := refused.remedy or (_HINT if _unanswered(refused) else "")) else []
    return [*told, ("retry", _retry(refused))]


def _retry(refused: "Refused") -> str:
    if refused.retry_may_help:
        after = refused.retry_after_seconds
        return f"the same command may succeed {f'after {after:g} s' if after else 'later'}"
    if refused.retry == Advice.RETRY_READ_AGAIN:
        return "look at it again, then decide anew: it has changed"
    return "does not help"
