"""What a check and an action are. An action is an ordered tuple of checks; enforcing, explaining and validating all
walk that one tuple, so they cannot disagree.

No rule of the domain here: those are in `images`, `instances` and `accounts`.
"""

import inspect
from collections.abc import Callable, Iterator
from enum import IntEnum, StrEnum
from typing import NamedTuple

from cunho_rules.model import Facts
from cunho_rules.refusals import Refusal
from cunho_rules.rules import RULES


class Stage(IntEnum):
    """The order in which rules refuse, the same everywhere. Source: ALL-6.

    Credentials come before, checked by the server.
    """

    SHAPE = 1
    VISIBILITY = 2
    PERMISSION = 3
    STATE = 4
    QUOTA = 5


class Verdict(StrEnum):
    """What a check says; mirrors cunho.v1.RuleOutcome.Outcome."""

    PASSED = "PASSED"
    DENIED = "DENIED"
    NOT_EVALUATED = "NOT_EVALUATED"


class Check(NamedTuple):
    """One rule of one action, as a question to the facts."""

    rule: str
    stage: Stage
    #: What is demanded, in a sentence.
    demand: str
    #: The facts without which there is no answer, for example "place" or "place.name".
    needs: tuple[str, ...]
    judge: Callable[[Facts], Refusal | None]

    def answerable(self, facts: Facts) -> bool:
        """True if the facts that the check needs are known."""
        return all(_known(facts, need) for need in self.needs)


def _known(facts: Facts, need: str) -> bool:
    fact: object = facts
    for name in need.split("."):
        fact = getattr(fact, name, None)
    return fact is not None


class Outcome(NamedTuple):
    """What one check says of an action."""

    check: Check
    verdict: Verdict
    refusal: Refusal | None


def check(
    rule: str, stage: Stage, *, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Facts], Refusal | None]], Check]:
    """Turns a function from facts to a refusal or None into the check of `rule`. Raises ValueError if there is none."""
    if rule not in RULES:
        raise ValueError(f"no rule {rule}")

    def make(judge: Callable[[Facts], Refusal | None]) -> Check:
        demand = (inspect.getdoc(judge) or "").split("\n\n")[0]

        def judge_as_rule(facts: Facts) -> Refusal | None:
            refusal = judge(facts)
            if refusal is not None:
                refusal.rule = rule
            return refusal

        return Check(rule, stage, demand, needs, judge_as_rule)

    return make


class Action(NamedTuple):
    """What a call does, as the ordered checks that may refuse it."""

    name: str
    checks: tuple[Check, ...]

    def refusal(self, facts: Facts) -> Refusal | None:
        """The first refusal, or None."""
        return next((outcome.refusal for outcome in self.outcomes(facts) if outcome.refusal), None)

    def enforce(self, facts: Facts, *, partial: bool = False) -> None:
        """Raises the first refusal.

        Args:
            partial: checks whose facts are not known are passed over. Default: that is a bug, TypeError.
        """
        for check in self.checks:
            if check.needs and not check.answerable(facts):
                if partial:
                    continue
                raise TypeError(f"{self.name}: the check of {check.rule} needs {check.needs}")
            if refusal := check.judge(facts):
                raise refusal

    def outcomes(self, facts: Facts) -> Iterator[Outcome]:
        """What every check says, in order.

        Once a stage has refused, later stages are not evaluated: what they say could tell a caller who may not see or
        touch a thing more about it than the refusal does.
        """
        denied: Stage | None = None
        for check in self.checks:
            if (denied is not None and check.stage > denied) or not check.answerable(facts):
                yield Outcome(check, Verdict.NOT_EVALUATED, None)
            elif refusal := check.judge(facts):
                denied = check.stage
                yield Outcome(check, Verdict.DENIED, refusal)
            else:
                yield Outcome(check, Verdict.PASSED, None)


def action(name: str, *checks: Check) -> Action:
    """The action `name`; its checks must be in the order of their stages."""
    if [*checks] != sorted(checks, key=lambda check: check.stage):
        raise ValueError(f"{name}: checks are not in the order of their stages")
    return Action(name, checks)
