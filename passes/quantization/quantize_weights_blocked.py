"""Weights in 4 or 8 bits by blocks, multiplied as they are stored."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.rewriting import Context, Effect, Pass, Refuse, constant_tensor, node_label, option

from .blocks import Blocks, Fit, Layout, decibels, nearest, padded, quantize
from .blocks_in_graph import form_for, guard_form, is_smaller, state
from .gptq import gptq, output_error
from .hqq import half_quadratic
from .weight_units import Unit, find_units

if TYPE_CHECKING:
    from graphopt.aten import AtenContext

_FITS: dict[str, Fit] = {"rtn": nearest, "hqq": half_quadratic}
_HESSIANS = 2 << 30  # bytes of second moments that are held; products beyond that are rounded without


@dataclass(frozen=True)
class QuantizeWeightsBlocked(Pass):
    """Store the weights of MatMul, Gemm and Gather in 4 or 8 bits, with a scale for each block of a row.

    As MatMulNBits and GatherBlockQuantized (com.microsoft), whose kernels read the integers: a step that reads a weight
    once, such as the decoding of one token, takes less time by what is read less. On providers without them, as
    DequantizeLinear with a block size. Rounding to nearest; half-quadratic (Badri and Shaji 2023), which needs no data;
    or GPTQ (Frantar et al. 2022), which needs calibration samples.

    Of a weight in 4 bits two applications are asked for: with the first it has 4 bits, with the second alone 8, and with
    neither it stays as it is.

    In a torch program the numbers are made again in the graph, for size; with form=contrib torch's own kernel reads 4 bits as they
    are stored, which is faster for bfloat16 on few rows and slower elsewhere, and packed for one instruction set.
    """

    name = "quantize-weights-blocked"
    effect = Effect.LOSSY
    kinds = frozenset({"onnx", "torch"})
    before_export = False  # ONNX has operators of its own for that
    smaller = True

    bits: int = option(4, "bits of a weight", choices=(4, 8))
    block_size: int = option(32, "weights that share a scale", choices=(16, 32, 64, 128, 256))
    symmetric: bool = option(False, "no zero points: smaller by bits / block-size of a bit, and less exact")
    mixed: bool = option(True, "weights that are held back from 4 bits, for what they cost in quality, get 8")
    method: str = option("hqq", "how weights are rounded; gptq calibrates", choices=("rtn", "hqq", "gptq"))
    act_order: bool = option(True, "gptq: inputs with large activations first")
    tables: bool = option(True, "tables of embeddings, too")
    form: str = option("auto", "operators of ONNX Runtime, or standard ONNX (opset 21); auto: as the target runs them",
                       choices=("auto", "contrib", "standard"))  # fmt: skip
    min_elements: int = option(1024, "smallest number of elements of a weight that is quantized", minimum=1)

    @property
    def calibrates(self) -> bool:  # type: ignore[override]
        """Only GPTQ does."""
        return self.method == "gptq"

    def run_aten(self, context: AtenContext) -> None:
        from ..aten.quantize_weights_blocked import Settings, run

        layout = Layout(self.bits, self.block_size, self.symmetric)
        run(context, Settings(layout, _FITS.get(self.method), self.tables, self.form == "contrib", self.min_elements))

    def run(self, context: Context) -> None:
        _Quantization(self, context).carry_out()


@dataclass(frozen=True)
class _Done:
    """What became of a weight; `gain`: the squared error of the outputs over that without GPTQ."""

    blocks: Blocks
    gain: float | None = None


class _Quantization:
    """One run of the pass over one graph."""

    def __init__(self, options: QuantizeWeightsBlocked, context: Context) -> None:
        self.options, self.context = options, context
        target = context.tools.target
        self.form = options.form if options.form != "auto" else form_for(None if target is None else target.provider)
        self.layout = Layout(options.bits, options.block_size, options.symmetric)
        self.wider = replace(self.layout, bits=8) if options.mixed and options.bits == 4 else None
        self.fit = _FITS.get(options.method, half_quadratic)
        self.done: list[tuple[Unit, _Done, int]] = []
        self.without = 0  # weights of products that GPTQ could do nothing for

    def carry_out(self) -> None:
        context, units = self.context, []
        for unit in find_units(context, tables=self.options.tables and self.form == "contrib", min_elements=self.options.min_elements):
            try:
                guard_form(context, unit, self.layout, self.form)
            except Refuse as refusal:
                context.log.refuse(unit.node, refusal.reason)
                continue
            units.append(unit)
        moments = self._moments(units)
        for unit in units:
            before, moment = constant_tensor(unit.weight).nbytes, moments.get(unit)  # type: ignore[union-attr]
            try:
                made = self._quantized(unit, self.layout, moment)
            except Refuse as refusal:
                context.log.refuse(unit.node, refusal.reason)
                continue
            layout = self._permitted(unit)
            if layout is None:
                continue
            if layout is not self.layout:
                made = self._quantized(unit, layout, moment)
            context.log.settled(unit.node)
            self.without += self.options.method == "gptq" and made.gain is None and bool(unit.products)
            state(context, unit, made.blocks, self.form)
            self.done.append((unit, made, before))
        if self.done:
            self._tell()

    def _permitted(self, unit: Unit) -> Layout | None:
        """In how many bits a weight may be; always asked for in the same way, so that numbers stay what they are."""
        log = self.context.log
        if self.wider is None or not is_smaller(unit, self.wider):
            return self.layout if log.permit(unit.node) else None
        few = log.permit(unit.weight, f"{node_label(unit.node)}, {self.layout.bits} bits")
        some = log.permit(unit.node)
        return self.layout if few else self.wider if some else None

    def _moments(self, units: list[Unit]) -> dict[Unit, np.ndarray]:
        """The second moments of what products read, of as many as fit into memory."""
        if self.options.method != "gptq":
            return {}
        graph, size = self.context.model.graph, 0
        wanted: dict[ir.Value, None] = {}
        for unit in units:
            for node in unit.products:
                value = node.inputs[0]
                if value in wanted or node.graph is not graph or value.graph is not graph:  # type: ignore[union-attr]
                    continue
                size += 8 * unit.size()[1] ** 2
                if size <= _HESSIANS:
                    wanted[value] = None  # type: ignore[index]
        if not wanted:
            return {}
        seen = self.context.calibrate([], method="min-max", moments=wanted)
        found: dict[Unit, np.ndarray] = {}
        for unit in units:
            inputs = [seen.get(node.inputs[0]) for node in unit.products]  # type: ignore[arg-type]
            known = [s.moment for s in inputs if s is not None and not s.faults and s.moment is not None]
            if known and len(known) == len(inputs):
                found[unit] = known[0] if len(known) == 1 else np.mean(known, axis=0)
        return found

    def _quantized(self, unit: Unit, layout: Layout, moment: np.ndarray | None) -> _Done:
        """A weight in blocks; a replay of the run takes what an earlier one worked out."""
        tensor = constant_tensor(unit.weight)
        mapped = isinstance(tensor, ir.ExternalTensor) and tensor.raw is None
        weight = tensor.numpy()  # type: ignore[union-attr]
        try:
            key = ("blocks", layout, self.options.method, self.options.act_order, unit.by_rows, weight.shape, _digest(weight),
                   None if moment is None else _digest(moment))  # fmt: skip
            return self.context.tools.once(key, lambda: self._work_out(weight if unit.by_rows else weight.T, layout, moment))
        finally:
            if mapped:
                del weight
                tensor.release()  # type: ignore[union-attr]

    def _work_out(self, weight: np.ndarray, layout: Layout, moment: np.ndarray | None) -> _Done:
        plain, top = quantize(weight, layout, self.fit), layout.top
        if moment is None:
            return _Done(plain)

        def grid(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scale, zero = self.fit(np.ascontiguousarray(part, np.float32), top, layout.symmetric)
            return scale[:, 0].astype(weight.dtype).astype(np.float32), zero[:, 0]

        try:
            integers, scale, zero = gptq(weight, moment, grid, low=0, high=top, group=layout.block, order=self.options.act_order)
        except Refuse:
            return _Done(plain)
        filled = np.repeat(zero.astype(np.uint8), layout.block, axis=1)  # what fills up the last block is its zero point
        filled[:, : weight.shape[1]] = integers
        made = Blocks(
            layout, weight.shape[1], filled.reshape(*zero.shape, layout.block), scale.astype(weight.dtype), zero.astype(np.uint8), 0.0
        )
        before, after = output_error(weight, plain.dense(), moment), output_error(weight, made.dense(), moment)
        if not after < before:
            return _Done(plain, 1.0)
        return _Done(_rated(made, weight), after / before)

    def _tell(self) -> None:
        """A line for the report: what there is, how much smaller, how exact."""
        products, tables = ([d for d in self.done if bool(d[0].products) is wanted] for wanted in (True, False))
        worst = min(self.done, key=lambda d: d[1].blocks.snr)
        ratios = sorted(d[1].blocks.snr for d in self.done)
        kind = "symmetric" if self.layout.symmetric else "with zero points"
        kinds = (("weights of products", products), ("tables", tables))
        sizes = [f"{len(found)} {what}, {_shrunk(found)}" for what, found in kinds if found]
        text = (
            f"{_counted(self.done)} in blocks of {self.layout.block}, {kind}, by {self.options.method}; {'; '.join(sizes)}; "
            f"signal-to-noise ratio of the weights {ratios[len(ratios) // 2]:.1f} dB in the median, {worst[1].blocks.snr:.1f} dB at "
            f"worst ({worst[0].weight.name})"
        )
        gains = sorted(d[1].gain for d in self.done if d[1].gain is not None)
        if gains:
            text += f"; squared error of the outputs on the samples {gains[len(gains) // 2]:.2f} times that without GPTQ, in the median"
        if self.without:
            text += f"; what {self.without} of them multiply is not known well enough for GPTQ, and they are rounded without"
        self.context.log.note(text)


def _rated(blocks: Blocks, weight: np.ndarray) -> Blocks:
    """Blocks with their signal-to-noise ratio."""
    wide = padded(weight, blocks.layout).reshape(len(weight), -1)[:, : blocks.columns]
    error = blocks.dense() - wide
    ratio = decibels(float(np.vdot(wide, wide)), float(np.vdot(error, error)))
    return Blocks(blocks.layout, blocks.columns, blocks.integers, blocks.scale, blocks.zero, ratio)


def _counted(found: list[tuple[Unit, _Done, int]]) -> str:
    """How many there are of how many bits."""
    counts = Counter(d[1].blocks.layout.bits for d in found)
    if len(counts) == 1:
        return f"{next(iter(counts))} bits"
    return " and ".join(f"{count} in {bits} bits" for bits, count in sorted(counts.items()))


def _shrunk(found: list[tuple[Unit, _Done, int]]) -> str:
    before = sum(d[2] for d in found)
    after = sum(d[1].blocks.bytes for d in found)
    return f"{before:,} bytes to {after:,} ({after / before:.3f}x)"


def _digest(array: np.ndarray) -> Hashable:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).digest()
