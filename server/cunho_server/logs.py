"""The log: where it goes and in what form, and the lines that calls leave in it.

A call that changes something, or was refused to, leaves a line of the logger "cunho.audit"; others leave one at debug.
Nothing that a caller wrote can break a line or begin one.
"""

import logging
from typing import TYPE_CHECKING, Any

import structlog

from cunho_server.settings import Settings

if TYPE_CHECKING:
    from cunho_server.call import Call

_AUDIT = logging.getLogger("cunho.audit")
_READS = logging.getLogger("cunho.reads")


def configure(settings: Settings) -> None:
    """Sends the log to standard error, in the form that the settings say."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler()
    handler.addFilter(_matters)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *_FORMS[settings.log_format],
            ],
        )
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def _matters(record: logging.LogRecord) -> bool:
    """False for gRPC's traceback of a caller who left just when a refusal was sent: nothing went wrong here."""
    return not (record.name.startswith("grpc.") and str(record.msg).startswith("ExecuteBatchError"))


def tell(call: "Call") -> None:
    """Leaves the line of a call that has ended."""
    logger, level = (_AUDIT, logging.INFO) if call.method.mutates else (_READS, logging.DEBUG)
    if logger.isEnabledFor(level):
        logger.log(level, call.method.name, extra=_facts(call))


def _facts(call: "Call") -> dict[str, Any]:
    facts: dict[str, Any] = {
        "service": call.method.service,
        "call_id": call.call_id,
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


def _in_one_line(logger: object, name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """The event without characters that are no text; lines of a traceback are indented, so that none passes for a line."""
    event["event"] = _printable(str(event["event"]))
    if "exception" in event:
        event["exception"] = "\n".join(f"    {_printable(line)}" for line in event["exception"].splitlines())
    return event


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _console() -> list[structlog.types.Processor]:
    return [
        _in_one_line,
        structlog.dev.ConsoleRenderer(
            colors=False, repr_native_str=True, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


_FORMS: dict[str, list[structlog.types.Processor]] = {
    "console": _console(),
    "json": [structlog.processors.JSONRenderer()],
}
