"""Texts, numbers and bytes that programs trip over, and right ones made wrong, drawn at random. Knows no server."""

from random import Random

from tests.end_to_end.test_bad_input import NO_MESSAGE, SAMPLES, TEXTS, tagged, varint

#: Where numbers end, as they are stored, sent and counted.
NUMBERS = (
    *(0, 1, -1, 2, 7, 10, 11, 32, 50, 51, 60, 61, 64, 100, 101, 1000, 1001),
    *(2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**19, 10**40),
)

#: Parts of texts, which are put together: what ends texts, numbers, statements, lines and paths elsewhere.
_PIECES = (
    *SAMPLES,
    *TEXTS.values(),
    *("'", '"', "\\", "%", "_", "%s", "$1", "{}", "${x}", "%00", "../..", "/", ";--", "\n", "\r\n", "\t", " ", "\x7f"),
    *("é", "语", "\U0001f600", "👩‍👩‍👧‍👦", "🇨🇳", "\U0010ffff", "\ufdd0", "İ", "ß", "ﷺ", "\u0300" * 40, "א", "ı"),  # noqa: RUF001
    *("img-00000000", "ins-00000000", "op-00000000", "operations/op-00000000", "acc-0000000000", "NaN", "-Infinity"),
    *("a", "A", "0", "-", "=", "1e308", "0x10", "null", "true", "[]", "{", "<", "&", "'; x", "http://[::1]", "file:"),
)

_NOT_UTF8 = (b"\xff", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"a\xe8\xaa", b"\xf4\x90\x80\x80")
#: Small ones, since thousands are sent.
_NO_MESSAGE = tuple(data for data in NO_MESSAGE.values() if len(data) < 1000)
_SIZES = (1, 1, 1, 2, 2, 3, 5, 60, 61, 64, 256, 257)


def text(draw: Random) -> str:
    """A text, mostly short."""
    if draw.random() < 0.6:
        return draw.choice(_PIECES)
    if draw.random() < 0.3:
        return draw.choice(_PIECES) * draw.choice(_SIZES)
    return "".join(draw.choice(_PIECES) for _ in range(draw.choice((2, 2, 3, 5))))


def number(draw: Random, bits: int) -> int:
    """An integer of so many bits, signed."""
    value = draw.choice(NUMBERS) if draw.random() < 0.8 else draw.getrandbits(bits) >> draw.randrange(bits)
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def edited(draw: Random, original: str) -> str:
    """The text with something in it removed, repeated or replaced."""
    made = original
    for _ in range(draw.choice((1, 1, 2, 4))):
        start = draw.randrange(len(made) + 1)
        end = min(len(made), start + draw.choice((0, 1, 1, 2, 8)))
        middle = draw.choice(("", made[start:end] * 2, draw.choice(_PIECES), chr(draw.randrange(0xD800))))
        made = made[:start] + middle[:300] + made[end:]
    return made


def flipped(draw: Random, original: str) -> str:
    """The text of printable ASCII characters with another such character at one place."""
    at = draw.randrange(len(original))
    other = chr(33 + (ord(original[at]) - 33 + draw.randrange(1, 94)) % 94)
    return original[:at] + other + original[at + 1 :]


# --- bytes


def broken(draw: Random, data: bytes, other: bytes) -> bytes:
    """The bytes of a message changed as no serializer would.

    Args:
        other: the bytes of another message, to splice with.
    """
    made = data
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        made = draw.choice(_WAYS)(draw, made, other)
    return made


def _bits_flipped(draw: Random, data: bytes, other: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8)) if made else 0):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _cut(draw: Random, data: bytes, other: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _spliced(draw: Random, data: bytes, other: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def _merged(draw: Random, data: bytes, other: bytes) -> bytes:
    """Every field twice, or those of another message."""
    return data + draw.choice((data, other))


def _another_wire_type(draw: Random, data: bytes, other: bytes) -> bytes:
    return bytes([data[0] & 0xF8 | draw.randrange(8)]) + data[1:] if data else data


def _unknown_field(draw: Random, data: bytes, other: bytes) -> bytes:
    field = draw.choice((15, 99, 18_999, 19_999, 2**29 - 1))
    return data + draw.choice((tagged(field, other), varint(field << 3) + varint(draw.getrandbits(64))))


def _not_utf8(draw: Random, data: bytes, other: bytes) -> bytes:
    return data + tagged(draw.randrange(1, 20), draw.choice(_NOT_UTF8))


def _no_message(draw: Random, data: bytes, other: bytes) -> bytes:
    return data + draw.choice(_NO_MESSAGE)


def _nested(draw: Random, data: bytes, other: bytes) -> bytes:
    """A field in itself, again and again."""
    field, made = draw.randrange(1, 20), other
    for _ in range(draw.choice((3, 50, 99, 101, 300))):
        made = tagged(field, made)
    return data + made


def _repeated(draw: Random, data: bytes, other: bytes) -> bytes:
    """A small field thousands of times."""
    return data + tagged(draw.randrange(1, 20), draw.choice((b"", b"a", b"name"))) * draw.choice((2, 101, 1001, 5000))


def _noise(draw: Random, data: bytes, other: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.choice((1, 2, 8, 64))) + data[at:]


_WAYS = (
    *(_bits_flipped, _cut, _spliced, _merged, _another_wire_type, _unknown_field),
    *(_not_utf8, _no_message, _nested, _repeated, _noise),
)
