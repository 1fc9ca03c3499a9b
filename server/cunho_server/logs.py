"""The log: where it goes and in what form, and the lines that calls leave in it.

A call that changes something, or was refused to, leaves a line of the logger "cunho.audit"; others leave one at debug.
Nothing that a caller wrote can break a line or begin one.
"""

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cunho_server.settings import Settings

if TYPE_CHECKING:
    from cunho_server.call import Call

#: The id of the call under way, which every line that is written meanwhile tells.
call_id: ContextVar[str] = ContextVar("call_id", default="")

_AUDIT = logging.getLogger("cunho.audit")
_READS = logging.getLogger("cunho.reads")


def configure(settings: Settings) -> None:
    """Sends the log to standard error, in the form that the settings say."""
    handler = logging.StreamHandler()
    handler.addFilter(_matters)
    handler.setFormatter(_FORMS[settings.log_format]())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def _matters(record: logging.LogRecord) -> bool:
    """False for gRPC's traceback of a caller who left just when a refusal was sent: nothing went wrong here."""
    return not (record.name.startswith("grpc.") and str(record.msg).startswith("ExecuteBatchError"))


def tell(call: "Call") -> None:
    """Leaves the line of a call that has ended."""
    logger, level = (_AUDIT, logging.INFO) if call.method.mutates else (_READS, logging.DEBUG)
    if logger.isEnabledFor(level):
        # Not by `log`, a third of whose time goes into finding the line of ours that calls it.
        facts = {"facts": _facts(call)}
        logger.handle(logger.makeRecord(logger.name, level, "", 0, call.method.name, (), None, extra=facts))


def _facts(call: "Call") -> dict[str, Any]:
    facts: dict[str, Any] = {
        "service": call.method.service,
        "peer": call.peer,
        "code": call.code,
        "duration_ms": round(call.seconds * 1000, 3),
        "targets": call.targets,
    }
    if call.caller:
        facts |= {"actor": call.caller.actor, "account_id": call.caller.account_id}
    if call.refusal:
        facts |= {"reason": call.refusal.reason.value, "rule": call.refusal.rule}
    marks = {"rehearsal": call.rehearsal, "replayed": call.replayed}
    return facts | {name: True for name, marked in marks.items() if marked}


class _Json(logging.Formatter):
    """A line is an object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        exception = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        said = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        return json.dumps({"timestamp": _time(record)} | said | _told(record) | exception, default=str)


class _Console(logging.Formatter):
    """A line is to be read by people; those of a traceback are indented, so that none passes for a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = "".join(f" {name}={value!r}" for name, value in sorted(_told(record).items()))
        said = f"{_printable(record.getMessage()):<30} [{record.name}]"
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        lines = (f"{_time(record)} [{record.levelname.lower():<9}] {said}{facts}", *map(_indented, trace))
        return "\n".join(lines)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _told(record: logging.LogRecord) -> dict[str, Any]:
    """What the record tells besides: the call under way, and its facts."""
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    under_way = call_id.get()
    return {"call_id": under_way, **facts} if under_way else {**facts}


def _indented(line: str) -> str:
    return f"    {_printable(line)}"


def _printable(text: str) -> str:
    """The text without characters that are no text."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


_FORMS: dict[str, type[logging.Formatter]] = {"console": _Console, "json": _Json}
