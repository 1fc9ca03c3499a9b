"""What credentials entitle to, whether they are a token or a certificate: who calls, and for whom. Nothing is verified
here."""

from typing import Literal, NamedTuple, get_args

from cunho_rules.model import Caller, Role
from cunho_rules.shapes import account_id as account_id_problem

CallerRole = Literal["account", "operator", "service"]
ROLES: tuple[CallerRole, ...] = get_args(CallerRole)


class CredentialsError(Exception):
    """Credentials that entitle to nothing; the message is for the log, never for who sent them."""


class Entitlement(NamedTuple):
    """What verified credentials entitle to."""

    expire_time: float
    actor: str
    #: Who calls if no account is named; None if one must be.
    caller: Caller | None
    #: The accounts that may be named; None for every account.
    acts_for: frozenset[str] | None

    def may_act_for(self, account_id: str | bytes) -> bool:
        """Whether the account may be named."""
        return _is_account_id(account_id) if self.acts_for is None else account_id in self.acts_for


def entitlement(role: object, subject: object, acts_for: object, expire_time: float) -> Entitlement:
    """What those named so are entitled to, which is checked by shape alone. Raises CredentialsError.

    Args:
        acts_for: the ids of accounts, or "*" alone for every account; it counts for services only.
    """
    if not isinstance(subject, str):
        raise CredentialsError("the subject is not text")
    if problem := account_id_problem(subject):
        raise CredentialsError(f"the subject {problem}")
    match role, acts_for:
        case "account", _:
            return Entitlement(expire_time, subject, Caller(subject, Role.ACCOUNT, subject), frozenset({subject}))
        case "operator", _:
            return Entitlement(expire_time, subject, Caller("", Role.OPERATOR, subject), frozenset())
        case "service", ["*"]:
            return Entitlement(expire_time, f"service:{subject}", None, None)
        case "service", [*ids] if all(_is_account_id(each) for each in ids):
            return Entitlement(expire_time, f"service:{subject}", None, frozenset(map(str, ids)))
        case "service", _:
            raise CredentialsError('what a service acts for is neither a list of account ids nor "*" alone')
    raise CredentialsError(f"the role is none of {', '.join(ROLES)}")


def _is_account_id(value: object) -> bool:
    return isinstance(value, str) and account_id_problem(value) is None
