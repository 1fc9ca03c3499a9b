"""What the exit code of a run means; scripts rely on it. The help and docs/cli.md print this table."""

from typing import NamedTuple


class ExitCode(NamedTuple):
    """An exit code, when it comes, and the gRPC codes that it stands for."""

    code: int
    meaning: str
    grpc_codes: tuple[str, ...] = ()


FAILED, MISUSED, DENIED, INTERRUPTED, BROKEN_PIPE = 1, 2, 5, 130, 141

EXIT_CODES = (
    ExitCode(0, "done"),
    ExitCode(FAILED, "something failed that should not have", ("INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED")),
    ExitCode(MISUSED, "the words or their values are wrong", ("INVALID_ARGUMENT", "OUT_OF_RANGE")),
    ExitCode(3, "there is no such thing, or it is hidden from you", ("NOT_FOUND",)),
    ExitCode(4, "you may not, or did not prove who you are", ("PERMISSION_DENIED", "UNAUTHENTICATED")),
    ExitCode(DENIED, "a state or a limit forbids it", ("FAILED_PRECONDITION", "RESOURCE_EXHAUSTED")),
    ExitCode(6, "something else was there first", ("ALREADY_EXISTS", "ABORTED")),
    ExitCode(7, "the service was not reached in time; try again", ("UNAVAILABLE", "DEADLINE_EXCEEDED")),
    ExitCode(8, "the operation was cancelled", ("CANCELLED",)),
    ExitCode(INTERRUPTED, "Ctrl-C"),
    ExitCode(BROKEN_PIPE, "nobody reads the output any more, as after `| head`"),
)


def exit_code(grpc_code: str) -> int:
    """The exit code for a refusal, by the name of its gRPC code."""
    return next((row.code for row in EXIT_CODES if grpc_code in row.grpc_codes), FAILED)


def exit_codes_in_lines() -> str:
    """The table as text."""
    return "\n".join(f"  {row.code:>3}  {row.meaning}" for row in EXIT_CODES)
