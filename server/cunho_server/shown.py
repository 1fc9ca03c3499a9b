"""Images as reads answer them: as the bytes of their messages.

What is the same for everybody is kept beside the image's row; what depends on who asks, or changes without a new
version, is added. Protobuf reads bytes that follow each other as one message. Where nothing is kept of an image as it
is now, the read takes the whole row, and keeps its message for the next.
"""

import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple

from cunho import v1 as pb
from cunho_rules import actions
from cunho_rules.images import kind
from cunho_rules.model import Caller, Facts, Image, JudgedImage, Kind, Role, ShownImage
from cunho_rules.orders import Key
from cunho_rules.refusals import Refusal
from cunho_server import messages
from cunho_storage import images
from cunho_storage.database import Conflict, Connection

#: Format, version of the image, size of what everybody sees; then that, and then what its owner sees besides.
_HEAD = struct.Struct(">IQI")

#: The format of what is kept. Add one when `messages.image_for_all` or `messages.image_for_owner` say something else.
FORMAT = 1


class Entry(NamedTuple):
    """An image on a page."""

    message: bytes
    #: The values of the list's keys.
    cursor: Sequence[Any]


async def image(connection: Connection, caller: Caller, image_id: str) -> bytes:
    """The image as the caller sees it. Refuses: IMAGE_NOT_FOUND."""
    if caller.role is not Role.OPERATOR:
        row = await images.get_shown(connection, image_id, caller.account_id)
        actions.GET_IMAGE.enforce(Facts(action="GetImage", caller=caller, image_id=image_id, shown_image=row))
        if row and (message := message_of(caller, row)):
            return message
    whole = await images.get(connection, image_id, caller.account_id)
    actions.GET_IMAGE.enforce(Facts(action="GetImage", caller=caller, image_id=image_id, image=whole))
    assert whole is not None, "the rules refuse an image that is not there"
    (entry,) = await _of_whole(connection, caller, [whole], [])
    return entry.message


async def judged(connection: Connection, caller: Caller, image: JudgedImage) -> pb.Image:
    """The image as an account sees it that has read no more of it. Raises Conflict if it has changed since."""
    if message := message_of(caller, image):
        return pb.Image.FromString(message)
    whole = await images.get(connection, image.image_id, caller.account_id)
    if whole is None or whole.version != image.version:
        raise Conflict("image")
    return messages.image(caller, whole._replace(share_count=image.share_count, share_limit=image.share_limit))


async def page(connection: Connection, caller: Caller, asked: images.Asked) -> list[Entry]:
    """The images of a page, as the caller sees them; all of them are of one moment."""
    if caller.role is not Role.OPERATOR:
        rows = await images.shown_page(connection, asked)
        entries = [Entry(message, row.cursor) for row in rows if (message := message_of(caller, row))]
        if len(entries) == len(rows):
            return entries
    return await _of_whole(connection, caller, await images.page(connection, asked), asked.keys)


async def _of_whole(connection: Connection, caller: Caller, found: Sequence[Image], keys: Sequence[Key]) -> list[Entry]:
    """Whole images as the caller sees them, who cannot tell that they were; what is to be kept of them is kept."""
    cursors = [[getattr(image, key.field) for key in keys] for image in found]
    if caller.role is Role.OPERATOR:  # who sees more than is kept
        shown = [messages.image(caller, image).SerializeToString() for image in found]
        return [*map(Entry, shown, cursors)]
    rows = [_row(image) for image in found]
    await _keep(connection, rows)
    return [
        Entry(message, cursor)
        for row, cursor in zip(rows, cursors, strict=True)
        if (message := message_of(caller, row))
    ]


def list_response(shown: Iterable[bytes], next_page_token: str) -> bytes:
    """A ListImagesResponse, serialized."""
    end = pb.ListImagesResponse(next_page_token=next_page_token).SerializeToString()
    return b"".join([part for message in shown for part in (_IMAGES, _varint(len(message)), message)]) + end


def message_of(caller: Caller, image: JudgedImage | ShownImage) -> bytes | None:
    """The image's message for an account; None if none is kept of the image as it is now."""
    if image.message is None:
        return None
    format, version, size_bytes = _HEAD.unpack_from(image.message)
    if (format, version) != (FORMAT, image.version):
        return None
    of_kind = kind(caller, image)
    assert of_kind is not None, "only visible images are shown"
    added = _of_kind(
        of_kind,
        image.os_family,
        image.jurisdiction,
        image.currency,
        image.image_storage_nanos,
        image.windows_license_nanos,
    )
    if of_kind is Kind.CUSTOM:
        return image.message[_HEAD.size :] + added + _sharing(image.share_count, image.share_limit)
    return image.message[_HEAD.size : _HEAD.size + size_bytes] + added


def _row(image: Image) -> ShownImage:
    """The row that a read finds once the image's message is kept."""
    values = image._asdict() | {"message": kept(image), "cursor": ()}
    return ShownImage._make(values[name] for name in ShownImage._fields)


async def _keep(connection: Connection, rows: Sequence[ShownImage]) -> None:
    """Keeps the messages of images. That it fails is no reason to refuse a read: the next one tries again."""
    with suppress(Refusal, Conflict):
        await images.keep(connection, {(row.image_id, row.version): row.message or b"" for row in rows})


def kept(image: Image) -> bytes:
    """What to keep beside the image's row."""
    for_all = messages.image_for_all(image).SerializeToString()
    return (
        _HEAD.pack(FORMAT, image.version, len(for_all)) + for_all + messages.image_for_owner(image).SerializeToString()
    )


@lru_cache(maxsize=4096)
def _of_kind(kind: Kind, os_family: str, jurisdiction: str, currency: str, storage: int, license: int) -> bytes:
    return messages.image_of_kind(kind, os_family, jurisdiction, currency, storage, license).SerializeToString()


@lru_cache(maxsize=4096)
def _sharing(count: int, limit: int) -> bytes:
    return messages.image_sharing(count, limit).SerializeToString()


#: What stands before each image of the response: the number of its field, which is of variable length.
_IMAGES = bytes([pb.ListImagesResponse.IMAGES_FIELD_NUMBER << 3 | 2])


@cache
def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
