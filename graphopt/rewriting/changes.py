"""What a pass did: applications, refusals, and where each node of the result came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.rewriting.base import node_label

if TYPE_CHECKING:
    from torch import fx

    Node = ir.Node | fx.Node

_ORIGIN = "graphopt.origin"
_APPLICATION = "graphopt.application"


@dataclass(frozen=True)
class Refusal:
    """A match that a guard turned down.

    Attributes:
        node: how the report names the node.
        reason: one clause in plain words.
    """

    node: str
    reason: str


class ChangeLog:
    """The record of one pass over one model, and the switch by which single applications are held back.

    Applications are numbered from 0 in the order in which the pass comes to them; passes are deterministic, so a
    number names the same application in every run over the same model. `allow(number)` decides whether one may
    happen: bisection replays a pass with some held back. `held` carries the nodes held back over to the pass's next
    round, where it would come to them again under new numbers.

    Attributes:
        base: what is added to a number to make it one of the whole run.
        applied: how many changes were made.
        asked: how many were asked for; those held back are counted.
        numbered: the number and the label of each change that was made.
        notes: lines for the report that are no refusals.
    """

    def __init__(
        self, name: str, allow: Callable[[int], bool] | None = None, held: set[Node] | None = None, base: int = 0
    ) -> None:  # fmt: skip
        self.name = name
        self.base = base
        self.applied = 0
        self.asked = 0
        self.numbered: list[tuple[int, str]] = []
        self.notes: list[str] = []
        self._allow = allow
        self._held = held if held is not None else set()
        self._refused: dict[Node | str, Refusal] = {}

    @property
    def refusals(self) -> list[Refusal]:
        """The refusals that still stand, in the order in which they were met."""
        return list(self._refused.values())

    def permit(self, subject: Node | ir.Value | None = None, label: str | None = None) -> bool:
        """Ask before a change at `subject`; False means that it is held back.

        `label` names the change in a bisection's answer where `subject` is not a node.
        """
        if subject in self._held:
            return False
        number = self.asked
        self.asked += 1
        if self._allow is not None and not self._allow(number):
            if subject is not None and not isinstance(subject, ir.Value):
                self._held.add(subject)
            return False
        if label is None:
            label = _label(subject)
        self.numbered.append((number, label))
        self.applied += 1
        return True

    def refuse(self, subject: Node | str, reason: str) -> None:
        """Record that a match at `subject` was turned down; a later reason replaces an earlier one."""
        label = subject if isinstance(subject, str) else _label(subject)
        self._refused[subject] = Refusal(label, reason)

    def settled(self, subject: Node) -> None:
        """Forget a refusal at `subject`: it was rewritten after all, or no longer matches."""
        self._refused.pop(subject, None)

    def note(self, text: str) -> None:
        """A line for the report that is no refusal."""
        self.notes.append(text)

    def provenance(self, new: Iterable[Node], old: Iterable[Node]) -> None:
        """Record that `new` nodes stand for `old` ones, by the last change that was permitted."""
        names: dict[str, None] = {}
        passes: dict[str, None] = {}
        for node in old:
            origin_names, origin_passes = origin(node)
            names.update(dict.fromkeys(origin_names))
            passes.update(dict.fromkeys(origin_passes))
        passes[self.name] = None
        for node in new:
            node.meta[_ORIGIN] = (tuple(names), tuple(passes))
            if self.numbered:
                node.meta[_APPLICATION] = self.base + self.numbered[-1][0]


def origin(node: Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the original nodes that `node` stands for, and the passes that made it (none: untouched)."""
    known = node.meta.get(_ORIGIN)
    return known if known is not None else ((_label(node),), ())


def application(node: Node) -> int | None:
    """The number in the run of the last application that made a node; None: no pass made it."""
    return node.meta.get(_APPLICATION)


def _label(subject: Any) -> str:
    """How a report names a node of either kind, or a value."""
    return node_label(subject) if isinstance(subject, ir.Node) else getattr(subject, "name", None) or "?"
