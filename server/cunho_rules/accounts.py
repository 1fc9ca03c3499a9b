"""The checks about accounts: roles, regions, suspension, and the place of a new image in the account's quota.

Each check returns the refusal, or None.
"""

from cunho_rules.checks import Check, Stage, check
from cunho_rules.model import AccountState, Facts, Place, Role, etag
from cunho_rules.refusals import Reason, Refusal

# --- shape


@check("INS-1", Stage.SHAPE, needs=("region_id",))
def region_exists(facts: Facts) -> Refusal | None:
    """The region exists."""
    return Refusal(Reason.REGION_NOT_FOUND, region_id=facts.region_id) if facts.region is None else None


@check("INS-1", Stage.SHAPE, needs=("zone_id", "region"))
def zone_in_region(facts: Facts) -> Refusal | None:
    """The zone is one of the region's."""
    assert facts.region is not None
    if facts.zone_id not in facts.region.zone_ids:
        return Refusal(
            Reason.ZONE_NOT_IN_REGION,
            zone_id=facts.zone_id,
            region_id=facts.region.region_id,
            zones=[*facts.region.zone_ids],
        )
    return None


@check("INS-2", Stage.SHAPE, needs=("instance_type_id",))
def instance_type_exists(facts: Facts) -> Refusal | None:
    """The instance type exists."""
    if facts.instance_type is None:
        return Refusal(Reason.INSTANCE_TYPE_NOT_FOUND, instance_type=facts.instance_type_id)
    return None


@check("INS-1", Stage.SHAPE)
def regions_exist(facts: Facts) -> Refusal | None:
    """Every region that is named exists."""
    if facts.unknown_region_ids:
        return Refusal(Reason.REGION_NOT_FOUND, region_id=[*facts.unknown_region_ids])
    return None


# --- visibility


@check("SHR-10", Stage.VISIBILITY)
def account_visible(facts: Facts) -> Refusal | None:
    """The account is registered, and is the caller's own unless the caller is the operator."""
    foreign = facts.caller.role is not Role.OPERATOR and facts.account_id != facts.caller.account_id
    if facts.account is None or foreign:
        return Refusal(Reason.ACCOUNT_NOT_FOUND, account_ids=facts.account_id)
    return None


# --- permission


@check("CUS-14", Stage.PERMISSION)
def by_account(facts: Facts) -> Refusal | None:
    """The caller is an account, not the operator."""
    return None if facts.caller.role is Role.ACCOUNT else Refusal(Reason.ACCOUNT_ROLE_REQUIRED, action=facts.action)


@check("PUB-8", Stage.PERMISSION)
def by_operator(facts: Facts) -> Refusal | None:
    """The caller is the operator."""
    return None if facts.caller.role is Role.OPERATOR else Refusal(Reason.OPERATOR_ROLE_REQUIRED, action=facts.action)


# --- state


@check("CUS-13", Stage.STATE)
def not_suspended(facts: Facts) -> Refusal | None:
    """The account is not suspended."""
    if facts.account is not None and facts.account.state == AccountState.SUSPENDED:
        return Refusal(Reason.ACCOUNT_SUSPENDED, account_id=_who(facts), action=facts.action)
    return None


@check("CUS-13", Stage.STATE, needs=("recipients",))
def not_suspended_to_share_further(facts: Facts) -> Refusal | None:
    """The account is not suspended, if accounts are added."""
    return not_suspended.judge(facts) if facts.added else None


@check("CUS-14", Stage.STATE, needs=("region_id",))
def active_in_region(facts: Facts) -> Refusal | None:
    """The account is active in the region."""
    if facts.account is None or facts.region_id not in facts.account.region_ids:
        return Refusal(Reason.ACCOUNT_NOT_IN_REGION, account_id=_who(facts), region_id=facts.region_id)
    return None


@check("CUS-14", Stage.STATE, needs=("place",))
def place_active(facts: Facts) -> Refusal | None:
    """The account is active where the image would be."""
    place = _place(facts)
    if not place.active:
        return Refusal(Reason.ACCOUNT_NOT_IN_REGION, account_id=_who(facts), region_id=place.region_id)
    return None


@check("SEL-4", Stage.STATE, needs=("place.name",))
def name_free(facts: Facts) -> Refusal | None:
    """The owner has no other image of that name in the region."""
    place = _place(facts)
    return Refusal(Reason.IMAGE_NAME_TAKEN, name=place.name, region_id=place.region_id) if place.name_taken else None


@check("ALL-4", Stage.STATE)
def account_etag(facts: Facts) -> Refusal | None:
    """The etag, if given, is the account's."""
    assert facts.account is not None
    current = etag(facts.account.version)
    if facts.etag and facts.etag != current:
        return Refusal(Reason.ETAG_MISMATCH, resource_id=facts.account.account_id, given=facts.etag, current=current)
    return None


@check("ALL-5", Stage.STATE)
def account_new(facts: Facts) -> Refusal | None:
    """No account is registered under the id."""
    return Refusal(Reason.ACCOUNT_ALREADY_EXISTS, account_id=facts.account_id) if facts.account else None


@check("SHR-9", Stage.STATE)
def regions_left_empty(facts: Facts) -> Refusal | None:
    """The account has nothing left in the regions that it would leave."""
    if facts.region_ids_in_use:
        return Refusal(Reason.ACCOUNT_REGION_IN_USE, account_id=facts.account_id, region_ids=[*facts.region_ids_in_use])
    return None


# --- quota


@check("CUS-5", Stage.QUOTA, needs=("place",))
def image_quota(facts: Facts) -> Refusal | None:
    """The account has room for one more custom image in the region."""
    place = _place(facts)
    if place.images_used >= place.images_limit:
        return Refusal(
            Reason.CUSTOM_IMAGE_QUOTA_EXCEEDED,
            account_id=_who(facts),
            region_id=place.region_id,
            limit=place.images_limit,
            usage=place.images_used,
        )
    return None


def _limit_covers_usage(rule: str) -> Check:
    def judge(facts: Facts) -> Refusal | None:
        """The new limit is at least what is used."""
        assert facts.limit is not None
        if facts.limit.limit < facts.limit.usage:
            return Refusal(Reason.QUOTA_BELOW_USAGE, **facts.limit._asdict())
        return None

    return check(rule, Stage.QUOTA, needs=("limit",))(judge)


image_limit_covers_usage = _limit_covers_usage("CUS-5")
share_limit_covers_usage = _limit_covers_usage("SHR-8")


def _who(facts: Facts) -> str:
    return facts.account_id or facts.caller.account_id


def _place(facts: Facts) -> Place:
    assert facts.place is not None
    return facts.place
