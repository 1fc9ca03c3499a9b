"""Enforcing, explaining and the order of refusals agree, for every action and whatever the facts are."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cunho_rules import images
from cunho_rules.actions import ACTIONS, IMAGE_ACTIONS, INSTANCE_ACTIONS
from cunho_rules.checks import Action, Check, Outcome, Stage, Verdict, action, check
from cunho_rules.model import (
    Account,
    Caller,
    DeprecationState,
    Facts,
    Image,
    ImageState,
    Instance,
    InstanceState,
    InstanceType,
    Limit,
    Place,
    Recipient,
    Region,
    Role,
    Upload,
)
from cunho_rules.refusals import Code, Reason, Refusal
from cunho_rules.rules import RULES

NOW = datetime(2026, 1, 31, tzinfo=UTC)
ACME, GLOBEX = (Caller(account_id, Role.ACCOUNT, account_id) for account_id in ("acme", "globex"))
OPERATOR = Caller("", Role.OPERATOR, "operator")
HERE, THERE = (
    Region(region_id, "", "INTERNATIONAL", "EUR", 1, 0, 0, [f"{region_id}-1"]) for region_id in ("here", "there")
)
SMALL, ARM = InstanceType("small", "X86_64", 1, 1 << 30, 20 << 30), InstanceType("arm", "ARM64", 1, 1 << 30, 20 << 30)
CHECKS = sorted({each for action in ACTIONS for each in action.checks}, key=lambda each: (each.rule, each.demand))


def stored(kind: type[Any], **values: object) -> Any:
    """A row with these values, blank elsewhere."""
    return kind._make(values.get(field, "") for field in kind._fields)


# --- facts that allow acme most actions, and what may be otherwise

IMAGE = stored(
    Image,
    image_id="img-00000001",
    region_id="here",
    owner_account_id="acme",
    state="AVAILABLE",
    architecture="X86_64",
    min_disk_bytes=1 << 30,
    min_memory_bytes=0,
    deprecation_state="CURRENT",
    share_count=0,
    share_limit=50,
    version=1,
    shared_with_caller=False,
)
INSTANCE = stored(
    Instance,
    instance_id="ins-00000001",
    region_id="here",
    account_id="acme",
    state="RUNNING",
    operation_id=None,
    version=1,
)
FITTING = Facts(
    action="Action",
    caller=ACME,
    account_id="acme",
    account=Account("acme", "", "ACTIVE", 1, NOW, NOW, ["here"]),
    image_id="img-00000001",
    image=IMAGE,
    instance_id="ins-00000001",
    instance=INSTANCE,
    region_id="here",
    region=HERE,
    zone_id="here-1",
    instance_type_id="small",
    instance_type=SMALL,
    recipients=(Recipient("third", True, True, None),),
    place=Place("here", True, 9, 10, 0, "web", False),
    upload=Upload("https://images.example.org/web.qcow2", "QCOW2", 1, 1, ["images.example.org"]),
    family="web",
    shared_with=["globex"],
    replacement_image_id="img-00000002",
    replacement=IMAGE._replace(image_id="img-00000002"),
    limit=Limit("CUSTOM_IMAGES", 3, 3),
)

#: What may be otherwise: values of fields of the facts, and of what they hold.
OTHERWISE: dict[str, list[Any]] = {
    "account_id": ["globex", ""],
    "account": [None],
    "account.state": ["SUSPENDED"],
    "account.version": [2],
    "account.region_ids": [[]],
    "image": [None],
    "image.owner_account_id": ["globex", None],
    "image.shared_with_caller": [True],
    "image.region_id": ["there"],
    "image.state": [*ImageState],
    "image.architecture": ["I386", "ARM64"],
    "image.min_disk_bytes": [30 << 30],
    "image.min_memory_bytes": [2 << 30],
    "image.deprecation_state": [*DeprecationState],
    "image.share_count": [1, 50],
    "image.share_limit": [0, 1],
    "image.version": [2],
    "instance": [None],
    "instance.account_id": ["globex"],
    "instance.region_id": ["there"],
    "instance.state": [*InstanceState],
    "instance.operation_id": ["op-00000001"],
    "instance.version": [2],
    "etag": ["v1", "v2"],
    "region_id": ["there", None],
    "region": [THERE, None],
    "zone_id": ["there-1", None],
    "instance_type_id": [None],
    "instance_type": [ARM, None],
    "recipients": [
        None,
        (),
        (Recipient("acme", True, True, None),),
        (Recipient("third", False, False, None),),
        (Recipient("third", True, False, None), Recipient("fourth", False, False, None)),
        (Recipient("third", True, True, NOW), Recipient("fourth", True, True, None)),
    ],
    "place": [None],
    "place.region_id": ["there"],
    "place.active": [False],
    "place.images_used": [10],
    "place.name": [None],
    "place.name_taken": [True],
    "upload": [None],
    "upload.uri": ["http://images.example.org/web", "https://evil.example/web", "https://images.example.org/web.raw"],
    "upload.format": ["RAW"],
    "upload.size_bytes": [51 << 30],
    "upload.min_disk_bytes": [501 << 30],
    "replacement_image_id": [""],
    "replacement": [None],
    "replacement.region_id": ["there"],
    "replacement.owner_account_id": [None],
    "force": [True],
    "copies": [2],
    "limit": [None],
    "limit.limit": [0, 4],
    "unknown_region_ids": [["nowhere"]],
    "region_ids_in_use": [["here"]],
}
CALLERS = (ACME, GLOBEX, OPERATOR)


def changed(facts: Facts, name: str, value: Any) -> Facts:
    """The facts with one thing otherwise; with none, if it is part of what they do not hold."""
    whole, _, part = name.partition(".")
    if part:
        held = getattr(facts, whole)
        value = held and held._replace(**{part: value})
    return facts._replace(**{whole: value})


@st.composite
def all_facts(draw: st.DrawFn) -> Facts:
    """Fitting facts but for at most six things, as anybody may call."""
    facts = FITTING._replace(caller=draw(st.sampled_from(CALLERS)))
    for name in draw(st.lists(st.sampled_from([*OTHERWISE]), max_size=6, unique=True)):
        facts = changed(facts, name, draw(st.sampled_from(OTHERWISE[name])))
    return facts


def judged(facts: Facts) -> Iterator[tuple[Action, Facts, list[Outcome]]]:
    """What the checks of every action say of the facts."""
    for each in ACTIONS:
        known = facts._replace(action=each.name)
        yield each, known, [*each.outcomes(known)]


def said(refusal: Refusal | None) -> tuple[object, ...]:
    """All that a refusal tells."""
    return (refusal.reason, refusal.rule, dict(refusal.metadata), str(refusal)) if refusal else ()


def enforced(action: Action, facts: Facts, *, partial: bool) -> Refusal | None:
    """What enforcing the action raises."""
    try:
        action.enforce(facts, partial=partial)
    except Refusal as refusal:
        return refusal
    return None


# --- enforcing and explaining


@pytest.mark.rule("ALL-6")
@given(all_facts())
def test_enforcing_raises_the_first_refusal_of_the_explanation(facts: Facts) -> None:
    for each, known, outcomes in judged(facts):
        first = next((outcome.refusal for outcome in outcomes if outcome.verdict is Verdict.DENIED), None)
        assert said(enforced(each, known, partial=True)) == said(each.refusal(known)) == said(first)


@given(all_facts())
def test_enforcing_is_a_bug_where_a_check_lacks_its_facts_before_anything_refuses(facts: Facts) -> None:
    for each, known, outcomes in judged(facts):
        refusing = [outcome.verdict is Verdict.DENIED for outcome in outcomes]
        before = outcomes[: refusing.index(True)] if any(refusing) else outcomes
        if all(outcome.check.answerable(known) for outcome in before):
            assert said(enforced(each, known, partial=False)) == said(each.refusal(known))
        else:
            with pytest.raises(TypeError, match=each.name):
                each.enforce(known)


@pytest.mark.rule("ALL-6")
@given(all_facts())
def test_once_a_stage_has_refused_no_later_one_is_evaluated(facts: Facts) -> None:
    for _, known, outcomes in judged(facts):
        denied = [outcome.check.stage for outcome in outcomes if outcome.verdict is Verdict.DENIED]
        assert len({*denied}) <= 1
        for outcome in outcomes:
            beyond = bool(denied) and outcome.check.stage > denied[0]
            evaluated = outcome.check.answerable(known) and not beyond
            assert (outcome.verdict is not Verdict.NOT_EVALUATED) == evaluated
            assert (outcome.refusal is not None) == (outcome.verdict is Verdict.DENIED)


@pytest.mark.rule("ALL-6")
@pytest.mark.parametrize("each", ACTIONS, ids=[each.name for each in ACTIONS])
def test_the_checks_of_an_action_are_in_the_order_of_their_stages(each: Action) -> None:
    stages = [check.stage for check in each.checks]
    assert stages == sorted(stages)
    assert len({*each.checks}) == len(each.checks)


CODES = {
    Stage.SHAPE: {Code.INVALID_ARGUMENT},
    Stage.VISIBILITY: {Code.NOT_FOUND},
    Stage.PERMISSION: {Code.PERMISSION_DENIED},
    Stage.QUOTA: {Code.RESOURCE_EXHAUSTED},
}
#: Refusals whose code is that of another stage: a limit is the thing that QUOTA_BELOW_USAGE is about.
OTHER_CODES = {Reason.QUOTA_BELOW_USAGE: Code.FAILED_PRECONDITION}


@pytest.mark.rule("ALL-6")
@given(all_facts())
def test_the_code_of_a_refusal_is_that_of_its_stage_and_its_rule_that_of_its_check(facts: Facts) -> None:
    for _, _, outcomes in judged(facts):
        for each, _, refusal in outcomes:
            if refusal is None:
                continue
            assert refusal.rule == each.rule
            assert refusal.code in CODES.get(each.stage, {*Code}) or refusal.code == OTHER_CODES[refusal.reason]
            if each.stage is Stage.STATE:
                assert refusal.code not in (Code.PERMISSION_DENIED, Code.RESOURCE_EXHAUSTED)


def test_every_check_passes_some_of_these_facts_and_denies_others() -> None:
    verdicts = {
        (outcome.check, outcome.verdict)
        for caller in CALLERS
        for name, values in OTHERWISE.items()
        for value in values
        for _, _, outcomes in judged(changed(FITTING._replace(caller=caller), name, value))
        for outcome in outcomes
    }
    for verdict in (Verdict.PASSED, Verdict.DENIED):
        unseen = [(each.rule, each.demand) for each in CHECKS if (each, verdict) not in verdicts]
        assert unseen == [], verdict


# --- what explanations must not tell

SECRETS = ("4321", "8765", "9753", "secret-recipient")


def keeping_secrets(facts: Facts) -> Facts:
    """The facts with numbers and names that are the owner's alone."""
    image = (facts.image or IMAGE)._replace(
        owner_account_id="acme", shared_with_caller=True, share_count=4321, share_limit=8765
    )
    return facts._replace(image=image, copies=9753, shared_with=["secret-recipient"] * 3)


@pytest.mark.rule("SHR-12")
@given(all_facts())
def test_a_recipients_explanation_of_what_the_owner_may_never_tells_of_other_shares(facts: Facts) -> None:
    facts = keeping_secrets(facts)._replace(caller=GLOBEX)
    for name, each in IMAGE_ACTIONS.items():
        outcomes = [*each.outcomes(facts._replace(action=name))]
        told = str([(outcome.check.demand, said(outcome.refusal)) for outcome in outcomes])
        assert not any(secret in told for secret in SECRETS)
        if name not in ("CreateInstance", "LeaveImageShare"):
            assert any(outcome.verdict is Verdict.DENIED for outcome in outcomes)


@pytest.mark.rule("SHR-12", "CUS-11")
def test_the_owners_explanation_does_tell_of_them() -> None:
    delete = IMAGE_ACTIONS["DeleteImage"]
    told = str([said(outcome.refusal) for outcome in delete.outcomes(keeping_secrets(FITTING))])
    assert all(secret in told for secret in ("4321", "9753", "secret-recipient"))


@pytest.mark.rule("SEL-2")
@given(all_facts())
def test_a_stranger_is_told_the_same_of_a_foreign_image_and_of_none(facts: Facts) -> None:
    foreign = (facts.image or IMAGE)._replace(owner_account_id="acme", shared_with_caller=False)
    facts = facts._replace(caller=GLOBEX, replacement=None)
    for each in (each for each in ACTIONS if images.image_visible in each.checks):
        told = [
            [(outcome.verdict, said(outcome.refusal)) for outcome in each.outcomes(known)]
            for known in (facts._replace(image=foreign), facts._replace(image=None))
        ]
        assert told[0] == told[1]


# --- what every check has


@pytest.mark.parametrize("each", CHECKS, ids=[each.rule for each in CHECKS])
def test_a_check_names_its_rule_and_what_it_demands(each: Check) -> None:
    assert each.rule in RULES
    assert each.demand.endswith(".")
    assert each.demand[0].isupper()
    assert "\n" not in each.demand


def test_what_can_be_explained_is_among_the_actions() -> None:
    assert {*IMAGE_ACTIONS.values()} | {*INSTANCE_ACTIONS.values()} <= {*ACTIONS}
    assert all(name == each.name for name, each in (IMAGE_ACTIONS | INSTANCE_ACTIONS).items())


def passing(facts: Facts) -> Refusal | None:
    """Nothing is demanded."""
    return None


def test_a_check_of_no_rule_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no rule NEW-1"):
        check("NEW-1", Stage.SHAPE)


def test_an_action_whose_checks_are_out_of_order_is_a_mistake() -> None:
    quota, shape = check("CUS-5", Stage.QUOTA)(passing), check("ALL-5", Stage.SHAPE)(passing)
    assert action("Ordered", shape, quota).checks == (shape, quota)
    with pytest.raises(ValueError, match="Unordered: checks are not in the order of their stages"):
        action("Unordered", quota, shape)
