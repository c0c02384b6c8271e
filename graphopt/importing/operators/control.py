"""Control flow: If, Loop and Scan.

Where the module runs, they are Python's own. While a program is being exported, an If whose condition is data is
torch.cond, a loop whose count and conditions are known is unrolled, one of unknown length is torch's while_loop where it
can be, and everything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphopt.importing import host
from graphopt.importing.table import operator
from graphopt.importing.values import NotImportable, as_tensor, as_tensors, is_host, number, scalar

#: Passes of a loop that an exported program may hold.
UNROLLED = 256


def _exporting() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


@operator("If", hosts=True, several=True)
def if_(condition: Any, *, then_branch: fx.GraphModule, else_branch: fx.GraphModule, captures: tuple[Any, ...]) -> tuple[Any, ...]:
    if is_host(condition):
        return (then_branch if host.as_bool(condition.items[0]) else else_branch)(*captures)
    if not _exporting():
        return (then_branch if bool(condition) else else_branch)(*captures)
    operands = tuple(as_tensors(captures))
    if not all(isinstance(o, Tensor) for o in operands):
        raise NotImportable("an If on data that takes something else than tensors from around it cannot be exported")
    return tuple(torch.cond(condition.reshape(()), _own(then_branch), _own(else_branch), operands))


def _own(branch: fx.GraphModule) -> Any:
    """A branch for torch.cond, which wants no result to be an operand, nor one tensor under two names."""

    def call(*operands: Any) -> tuple[Any, ...]:
        return tuple(r.clone() for r in as_tensors(branch(*operands)))

    return call


@operator("Loop", hosts=True, several=True)
def loop(
    trips: Any, condition: Any = None, *carried: Any, body: fx.GraphModule, captures: tuple[Any, ...], outputs: int
) -> tuple[Any, ...]:
    """Passes until the count is reached or the condition is false; what is not carried on is stacked."""
    if _exporting() and not (trips is None or is_host(trips)):
        return _while(trips, condition, carried, body, captures, outputs)
    last = None if trips is None else number(trips)
    if _exporting() and not isinstance(last, int):
        return _while(trips, condition, carried, body, captures, outputs)
    state = list(carried)
    stacked: list[list[Tensor]] = [[] for _ in range(outputs - len(carried))]
    step = 0
    while (last is None or step < last) and _goes_on(condition, trips, carried):
        if _exporting() and step == UNROLLED:
            raise NotImportable(f"a Loop of more than {UNROLLED} passes is not unrolled into an exported program")
        condition, *found = body(scalar(step), condition if condition is not None else scalar(True, torch.bool), *state, *captures)
        state, scanned = found[: len(carried)], found[len(carried) :]
        for rows, row in zip(stacked, scanned, strict=True):
            rows.append(as_tensor(row))
        step += 1
    if stacked and not stacked[0]:
        return (*state, *_no_rows(body, (scalar(0), scalar(True, torch.bool), *state, *captures), 1 + len(carried)))
    return (*state, *(torch.stack(rows) for rows in stacked))


def _goes_on(condition: Any, trips: Any, carried: Sequence[Any]) -> bool:
    if condition is None:
        return True
    if is_host(condition):
        return host.as_bool(condition.items[0])
    if _exporting():
        raise NotImportable("a Loop that goes on by a condition on data cannot be exported, unless its count is data too")
    return bool(condition)


def _no_rows(body: fx.GraphModule, arguments: Sequence[Any], first: int) -> list[Tensor]:
    """What is stacked where there was no pass: no rows, of the shapes that a pass would have given."""
    try:
        rows = as_tensors(body(*arguments)[first:])
    except Exception:
        raise NotImportable("a loop that made no pass has no rows to stack, and what they would have been is not known") from None
    return [row.new_empty((0, *row.shape)) for row in rows]


def _while(
    trips: Any, condition: Any, carried: Sequence[Any], body: fx.GraphModule, captures: tuple[Any, ...], outputs: int
) -> tuple[Any, ...]:
    """torch's while_loop: the pass, whether to go on, and what is carried; nothing can be stacked on the way."""
    from torch._higher_order_ops.while_loop import while_loop

    if outputs > len(carried):
        raise NotImportable("a Loop of unknown length that stacks its results cannot be exported")
    if any(not (isinstance(v, Tensor) or is_host(v)) for v in (*carried, *captures)):
        raise NotImportable("a Loop of unknown length over something else than tensors cannot be exported")
    last = as_tensor(trips).reshape(()).to(torch.int64) if trips is not None else torch.tensor(torch.iinfo(torch.int64).max)
    going = as_tensor(condition).reshape(()) if condition is not None else torch.tensor(True)
    outside = tuple(as_tensors(captures))
    start = (torch.zeros((), dtype=torch.int64), going.clone(), *(v.clone() for v in as_tensors(carried)))

    def goes_on(step: Tensor, going: Tensor, *state: Tensor) -> Tensor:
        return torch.logical_and(going, step < last)

    def one(step: Tensor, going: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        found = as_tensors(body(step, going, *state, *outside))
        return (step + 1, found[0].reshape(()).clone(), *(f.clone() for f in found[1:]))

    return tuple(while_loop(goes_on, one, start))[2:]


@operator("Scan", since=8, hosts=True, several=True)
def scan_batched(
    lengths: Any,
    *values: Any,
    body: fx.GraphModule,
    num_scan_inputs: int,
    directions: list[int] | None = None,
    captures: tuple[Any, ...],
) -> tuple[Any, ...]:
    """Version 8: every value has a batch in front, and each sample of it a length of its own."""
    values = tuple(as_tensors(values))
    batch = values[0].shape[0]
    if lengths is not None:
        raise NotImportable("a Scan of version 8 with lengths of its sequences is not supported")
    rows = []
    for sample in range(batch):
        own = [v[sample] for v in values]
        rows.append(scan(*own, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions, captures=captures))
    return tuple(torch.stack(as_tensors(found)) for found in zip(*rows, strict=True))


@operator("Scan", since=9, hosts=True, several=True)
def scan(
    *values: Any,
    body: fx.GraphModule,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
    captures: tuple[Any, ...],
) -> tuple[Any, ...]:
    """One pass for each element along an axis of the scanned inputs."""
    carried = len(values) - num_scan_inputs
    state: list[Any] = list(values[:carried])
    scanned = as_tensors(values[carried:])
    axes = scan_input_axes or [0] * num_scan_inputs
    turned = scan_input_directions or [0] * num_scan_inputs
    steps = scanned[0].shape[axes[0]]
    if not isinstance(steps, int):
        return _scan(state, scanned, axes, turned, body, captures, scan_output_axes, scan_output_directions)
    if _exporting() and steps > UNROLLED:
        raise NotImportable(f"a Scan of more than {UNROLLED} passes is not unrolled into an exported program")
    rows: list[tuple[Any, ...]] = []
    for step in range(steps):
        at = [x.select(axis, steps - 1 - step if back else step) for x, axis, back in zip(scanned, axes, turned, strict=True)]
        found = body(*state, *at, *captures)
        state = list(found[:carried])
        rows.append(tuple(as_tensors(found[carried:])))
    if not rows:
        nothing = [x.new_zeros([d for i, d in enumerate(x.shape) if i != axis % x.dim()]) for x, axis in zip(scanned, axes, strict=True)]
        found = _no_rows(body, (*state, *nothing, *captures), carried)
        return (*state, *(f.movedim(0, scan_output_axes[i] if scan_output_axes else 0) for i, f in enumerate(found)))
    stacked = []
    for i, column in enumerate(zip(*rows, strict=True)):
        back = bool(scan_output_directions and scan_output_directions[i])
        stacked.append(torch.stack(column[::-1] if back else column, scan_output_axes[i] if scan_output_axes else 0))
    return (*state, *stacked)


def _scan(
    state: list[Any],
    scanned: list[Tensor],
    axes: list[int],
    turned: list[int],
    body: fx.GraphModule,
    captures: tuple[Any, ...],
    out_axes: list[int] | None,
    out_turned: list[int] | None,
) -> tuple[Any, ...]:
    """torch's scan, for a length that is symbolic."""
    from torch._higher_order_ops.scan import scan as torch_scan

    outside = tuple(as_tensors(captures))
    if not all(isinstance(v, Tensor) for v in (*outside, *as_tensors(state))):
        raise NotImportable("a Scan over something else than tensors cannot be exported")
    xs = [x.movedim(axis, 0).flip(0) if back else x.movedim(axis, 0) for x, axis, back in zip(scanned, axes, turned, strict=True)]

    def one(carry: list[Tensor], at: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        found = as_tensors(body(*carry, *at, *outside))
        return [f.clone() for f in found[: len(carry)]], [f.clone() for f in found[len(carry) :]]

    last, rows = torch_scan(one, [v.clone() for v in as_tensors(state)], xs)
    stacked = []
    for i, row in enumerate(rows):
        row = row.flip(0) if out_turned and out_turned[i] else row
        stacked.append(row.movedim(0, out_axes[i] if out_axes else 0))
    return (*last, *stacked)
