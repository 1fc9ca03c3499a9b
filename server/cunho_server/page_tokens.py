"""Tokens of pages: signed, and bound to the caller and to the other arguments of the call.

A token holds the cursor that the next page comes after, not a row: it outlives that row.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.message import Message

from cunho_rules.model import Caller
from cunho_rules.refusals import Reason, Refusal, Violation

_DIGEST_BYTES = 16


class PageTokens:
    """Makes and reads page tokens. Servers that share a database share the key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, caller: Caller, request: Any, cursor: Sequence[Any]) -> str:
        """The token of the page after `cursor`: values of text, integer or time."""
        values = json.dumps([value.isoformat() if isinstance(value, datetime) else value for value in cursor])
        body = values.encode()
        return _encoded(self._digest(caller, request, body) + body)

    def cursor(self, caller: Caller, request: Any) -> list[Any] | None:
        """The cursor that the page of the request comes after; None for the first page. Refuses: INVALID_PAGE_TOKEN."""
        token = request.page_token
        if not token:
            return None
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            raw = b""
        if _encoded(raw) != token:  # other texts stand for the same bytes
            raise _refused("it is not one that the service gave")
        digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if not hmac.compare_digest(digest, self._digest(caller, request, body)):
            raise _refused("it was given to another caller or for other arguments, or is not one that the service gave")
        values: list[Any] = json.loads(body)
        return values

    def _digest(self, caller: Caller, request: Message, body: bytes) -> bytes:
        bound = type(request)()
        bound.CopyFrom(request)
        bound.ClearField("page_token")
        bound.ClearField("page_size")
        parts = (
            request.DESCRIPTOR.full_name,
            caller.role,
            caller.account_id,
            bound.SerializeToString(deterministic=True),
        )
        sealed = hashlib.blake2b(key=self._key, digest_size=_DIGEST_BYTES)
        for part in (*parts, body):
            data = part if isinstance(part, bytes) else part.encode()
            sealed.update(len(data).to_bytes(8, "big") + data)
        return sealed.digest()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _refused(problem: str) -> Refusal:
    return Refusal(Reason.INVALID_PAGE_TOKEN, problem=problem, violations=(Violation("page_token", problem),))
