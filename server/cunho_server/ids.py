"""The ids of what the server makes. The database sees to it that none is used twice."""

import secrets

#: The digit of each byte: some are met eight times and others seven, which costs an id a hundredth of a bit.
_DIGITS = (b"0123456789abcdefghijklmnopqrstuvwxyz" * 8)[:256]
_LENGTH = 8


def new(prefix: str) -> str:
    """The prefix, "-" and 8 random characters of [0-9a-z], for example img-3k9x0q2z."""
    return f"{prefix}-{secrets.token_bytes(_LENGTH).translate(_DIGITS).decode()}"
