"""What a placement is: which applications are held back, and what each of them costs and gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class UnitCost:
    """What is known of one application of a pass that narrows.

    Attributes:
        number: the application's number in the run.
        pass_name: the pass.
        label: the node that it narrows, as the report names it.
        operator: that node's type.
        narrow: whether it is to run on integers.
        why: the reason, in one clause.
        float_ms, narrow_ms: milliseconds a run of the unit alone, in float and narrowed; conversions do not count.
        saves_ms: what narrowing it gains where everything else is placed as it is, conversions included; below 0: it costs that.
    """

    number: int
    pass_name: str
    label: str
    operator: str
    narrow: bool
    why: str
    float_ms: float
    narrow_ms: float
    saves_ms: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "application": self.number, "pass": self.pass_name, "node": self.label, "operator": self.operator,
            "precision": "narrow" if self.narrow else "float", "why": self.why, "float_ms": self.float_ms,
            "narrow_ms": self.narrow_ms, "saves_ms": self.saves_ms,
        }  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """Which applications of passes that narrow are worth it on a target.

    Attributes:
        hold: numbers of the applications that are better held back.
        saves: application number -> milliseconds that narrowing it saves at the margin: with everything else placed as
            here, conversions included. Of those in `hold` it is what they would save, which is mostly below 0.
        predicted_ms: milliseconds a run: "float" with none applied, "all" with all of them, "placed" without those in `hold`.
        units: one record an application, in their order.
        predict: milliseconds a run with just these applications narrow, conversions included; None where nothing was measured.
        choose: the applications that are best narrow where narrowing each costs that many milliseconds more, by number.
    """

    hold: frozenset[int] = frozenset()
    saves: Mapping[int, float] = field(default_factory=dict)
    predicted_ms: Mapping[str, float] = field(default_factory=dict)
    units: tuple[UnitCost, ...] = ()
    predict: Callable[[frozenset[int]], float] | None = field(default=None, compare=False, repr=False)
    choose: Callable[[Mapping[int, float]], frozenset[int]] | None = field(default=None, compare=False, repr=False)
