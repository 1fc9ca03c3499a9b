"""Who calls: from the token that a call carries, or else from the client certificate of its connection.

Nothing here knows gRPC or what a caller may do. Whatever is wrong with credentials, their sender gets the same answer;
the cause goes to the log.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from cunho_rules.model import Caller, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_server import certificates, tokens
from cunho_server.credentials import CredentialsError, Entitlement
from cunho_server.keys import Key, Keys
from cunho_server.settings import Settings
from cunho_server.tokens import UnknownKeyError

log = logging.getLogger(__name__)

#: Metadata key by which a service names the account that it acts for.
ACTING_KEY = "cunho-account"

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
#: Tells what the connection was authenticated with, as gRPC's `context.auth_context` does.
Peer: TypeAlias = Callable[[], Mapping[str, Iterable[bytes]]]

_TOKENS_KEPT = 10_000
_ID_SHOWN_LENGTH = 60


class Identity:
    """Tells who calls.

    Args:
        keys: verify the tokens.
        settings: what tokens must be like.
        clock: seconds since the epoch.
    """

    def __init__(self, keys: Keys, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._settings = settings
        self._clock = clock
        #: By the whole value of the header, the one used last at the end.
        self._verified: OrderedDict[str | bytes, Entitlement] = OrderedDict()
        #: What they were verified with: with other keys, they are verified anew.
        self._verified_with: tuple[Key, ...] = keys.current

    async def keep_current(self) -> None:
        """Keeps the keys current, until cancelled."""
        await self._keys.keep_current()

    async def verify(self, metadata: Metadata, peer: Peer = dict) -> Caller:
        """As `caller`; a token of a key that is not known makes it look for new keys first."""
        try:
            return self._caller(metadata, peer)
        except UnknownKeyError:
            await self._keys.look_again()
        except CredentialsError as error:
            raise _invalid(error) from None
        return self.caller(metadata, peer)

    def caller(self, metadata: Metadata, peer: Peer = dict) -> Caller:
        """Who calls. Refuses: CREDENTIALS_MISSING, CREDENTIALS_INVALID, ACTING_NOT_ALLOWED. Source: ALL-1."""
        try:
            return self._caller(metadata, peer)
        except CredentialsError as error:
            raise _invalid(error) from None

    def _caller(self, metadata: Metadata, peer: Peer) -> Caller:
        authorization, account_id = _sent(metadata)
        entitled = self._by_certificate(peer) if authorization is None else self._by_token(authorization)
        if entitled.expire_time <= self._clock():
            raise CredentialsError("expired")
        if account_id is None and entitled.caller:
            return entitled.caller
        if account_id is None or not entitled.may_act_for(account_id):
            raise Refusal(Reason.ACTING_NOT_ALLOWED, account_id=str(account_id or "")[:_ID_SHOWN_LENGTH])
        return entitled.caller or Caller(str(account_id), Role.ACCOUNT, entitled.actor)

    def _by_token(self, authorization: str | bytes) -> Entitlement:
        if self._verified_with is not self._keys.current:
            self._verified.clear()
            self._verified_with = self._keys.current
        entitled = self._verified.get(authorization)
        if entitled is None:
            entitled = tokens.verified(_bearer(authorization), self._keys, self._settings, self._clock())
            self._verified[authorization] = entitled
            if len(self._verified) > _TOKENS_KEPT:
                self._verified.popitem(last=False)
        self._verified.move_to_end(authorization)
        return entitled

    def _by_certificate(self, peer: Peer) -> Entitlement:
        for pem in peer().get("x509_pem_cert", ()):
            return certificates.entitled(pem)
        raise Refusal(Reason.CREDENTIALS_MISSING)


def _invalid(cause: CredentialsError) -> Refusal:
    log.info("credentials refused: %.200r", str(cause))  # in quotes: a cause may hold what the sender wrote
    return Refusal(Reason.CREDENTIALS_INVALID)


def _sent(metadata: Metadata) -> tuple[str | bytes | None, str | bytes | None]:
    """The authorization header and the account named. Raises CredentialsError."""
    authorization = account_id = None
    for key, value in metadata:
        if key == "authorization":
            if authorization is not None:
                raise CredentialsError("two authorization headers")
            authorization = value
        elif key == ACTING_KEY:
            # Two accounts are none: what they make together is no id.
            account_id = value if account_id is None else f"{account_id!s},{value!s}"
    return authorization, account_id


def _bearer(authorization: str | bytes) -> str:
    """The token of an authorization header. Raises CredentialsError."""
    if not isinstance(authorization, str) or not authorization.isascii():
        raise CredentialsError("the header is not ASCII text")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise CredentialsError("the header is not of the form: Bearer TOKEN")
    return token
