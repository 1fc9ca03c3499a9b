"""How explanations are shown: which actions would be allowed and, of those asked for by name, what each rule says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cunho import v1
from cunho.cli.printing import Cell, Column, Table, as_json, cell_text, grid, joined

if TYPE_CHECKING:
    from rich.console import RenderableType

_OUTCOMES = {
    v1.RuleOutcome.OUTCOME_PASSED: Cell("passed", "green"),
    v1.RuleOutcome.OUTCOME_DENIED: Cell("denied", "red"),
    v1.RuleOutcome.OUTCOME_NOT_EVALUATED: Cell("not asked", "dim"),
}


@dataclass(frozen=True)
class Explanation:
    """What a Check call answered.

    Attributes:
        answer: The answer.
        words: The word of the command for each action.
        rules: Whether each rule is shown, or a row for each action.
    """

    answer: v1.CheckImageActionsResponse | v1.CheckInstanceActionsResponse
    words: Mapping[str, str]
    rules: bool

    @property
    def json(self) -> object:
        return as_json(self.answer)

    def text(self, width: int) -> "RenderableType":
        if not self.rules:
            return self._summary().text(width)
        from rich.console import Group

        return Group(*(part for decision in self.answer.decisions for part in self._explained(decision)))

    def _summary(self) -> Table:
        columns = (
            Column("ACTION", self._word, "whole"),
            Column("", _verdict, "whole"),
            Column("RULE", lambda decision: "" if decision.allowed else _denied(decision).rule, "whole"),
            Column("WHY", _why, "wrapped"),
        )
        return Table(self.answer.decisions, columns)

    def _word(self, decision: v1.Decision) -> str:
        return self.words.get(decision.action, decision.action)

    def _explained(self, decision: v1.Decision) -> list["RenderableType"]:
        verdict = _verdict(decision)
        heading = Cell(f"{self._word(decision)} ({decision.action}): {verdict.text}", f"bold {verdict.style}")
        warnings = [Cell(f"  warning: {warning.message}", "yellow") for warning in decision.warnings]
        rows = [row for outcome in decision.outcomes for row in _outcome(outcome)]
        return [*(cell_text(cell) for cell in (heading, *warnings)), grid(rows, indent=2)]


def _outcome(outcome: v1.RuleOutcome) -> list[tuple[Cell, Cell, Cell]]:
    """What one rule says, in rows."""
    said, style = _OUTCOMES.get(outcome.outcome, Cell("unknown"))
    rows = [(said, outcome.rule, outcome.demand)]
    if outcome.outcome == v1.RuleOutcome.OUTCOME_DENIED:
        numbers = joined(f"{key} = {value}" for key, value in sorted(outcome.metadata.items()))
        told = (f"{outcome.message} ({outcome.reason})", numbers, outcome.remedy)
        rows += [("", "", text) for text in told if text]
    return [(Cell(first, style), Cell(second, style), Cell(third, style)) for first, second, third in rows]


def _verdict(decision: v1.Decision) -> Cell:
    return Cell("allowed", "green") if decision.allowed else Cell("denied", "red")


def _denied(decision: v1.Decision) -> v1.RuleOutcome:
    """What the real call would be refused with."""
    return next(each for each in decision.outcomes if each.outcome == v1.RuleOutcome.OUTCOME_DENIED)


def _why(decision: v1.Decision) -> str:
    if not decision.allowed:
        return _denied(decision).message
    return joined(warning.reason for warning in decision.warnings)


def any_denied(decisions: Sequence[v1.Decision]) -> bool:
    """Whether an action is denied."""
    return not all(decision.allowed for decision in decisions)
