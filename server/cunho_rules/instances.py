"""The checks about instances.

Each check returns the refusal, or None. Checks of a later stage than VISIBILITY may rely on the instance being there.
"""

from cunho_rules.checks import Check, Stage, check
from cunho_rules.model import Caller, Facts, Instance, InstanceState, Role, etag
from cunho_rules.refusals import Reason, Refusal


def visible(caller: Caller, instance: Instance) -> bool:
    """True if the caller sees the instance. Source: INS-6."""
    return caller.role is Role.OPERATOR or instance.account_id == caller.account_id


@check("INS-6", Stage.VISIBILITY)
def instance_visible(facts: Facts) -> Refusal | None:
    """The instance exists and is the caller's."""
    if facts.instance is None or not visible(facts.caller, facts.instance):
        return Refusal(Reason.INSTANCE_NOT_FOUND, instance_id=facts.instance_id)
    return None


@check("INS-6", Stage.PERMISSION)
def owner_only(facts: Facts) -> Refusal | None:
    """The caller is the account that the instance belongs to."""
    if _instance(facts).account_id != facts.caller.account_id:
        return Refusal(Reason.INSTANCE_OWNER_ONLY, instance_id=facts.instance_id, action=facts.action)
    return None


@check("ALL-4", Stage.STATE)
def instance_etag(facts: Facts) -> Refusal | None:
    """The etag, if given, is the instance's."""
    current = etag(_instance(facts).version)
    if facts.etag and facts.etag != current:
        return Refusal(Reason.ETAG_MISMATCH, resource_id=facts.instance_id, given=facts.etag, current=current)
    return None


@check("CUS-8", Stage.STATE, needs=("region_id",))
def instance_in_region(facts: Facts) -> Refusal | None:
    """The instance is in the region."""
    instance, region_id = _instance(facts), facts.region_id
    if instance.region_id != region_id:
        return Refusal(
            Reason.INSTANCE_REGION_MISMATCH,
            instance_id=instance.instance_id,
            instance_region_id=instance.region_id,
            region_id=region_id,
        )
    return None


@check("INS-5", Stage.STATE)
def instance_idle(facts: Facts) -> Refusal | None:
    """No other operation on the instance is in progress."""
    instance = _instance(facts)
    if instance.operation_id is not None:
        return Refusal(
            Reason.INSTANCE_BUSY,
            instance_id=instance.instance_id,
            state=instance.state,
            operation=f"operations/{instance.operation_id}",
        )
    return None


def _in_state(rule: str, *allowed: InstanceState) -> Check:
    def judge(facts: Facts) -> Refusal | None:
        instance = _instance(facts)
        if instance.state in allowed:
            return None
        return Refusal(
            Reason.INSTANCE_STATE_INVALID,
            instance_id=instance.instance_id,
            state=instance.state,
            allowed=" or ".join(allowed),
            action=facts.action,
        )

    judge.__doc__ = f"The instance is {' or '.join(allowed)}."
    return check(rule, Stage.STATE)(judge)


stopped = _in_state("INS-5", InstanceState.STOPPED)
running = _in_state("INS-5", InstanceState.RUNNING)
running_or_stopped = _in_state("INS-5", InstanceState.RUNNING, InstanceState.STOPPED)
deletable = _in_state("INS-5", InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.FAILED)
imageable = _in_state("CUS-8", InstanceState.RUNNING, InstanceState.STOPPED)


def _instance(facts: Facts) -> Instance:
    assert facts.instance is not None, "visibility is checked first"
    return facts.instance
