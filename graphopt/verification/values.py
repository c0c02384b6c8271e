"""Values for synthesized inputs: what each input gets under given sizes, a statistic and a seed.

Floats get one of several statistics, because a model that answers nothing to one may answer to another: what the input
looks like it wants (a smooth picture, a sound, zeros for a state), normal and uniform noise, dark strokes on a light
ground, other amplitudes. Integers, masks and strings follow what the graph does with them (see `bounds`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.verification.bounds import Facts
from graphopt.verification.dims import InputSpec, Layout

#: The statistics in the order in which they are tried.
STATISTICS = ("natural", "normal", "uniform", "strokes", "wide", "pixels", "small")

_WORDS = ("the", "cat", "sat", "on", "a", "mat", "red", "blue", "seven", "Zoe", "x", "north")
_INT_CAP = 50  # values of an integer that nothing bounds: small, so that an undetected table is rarely overrun


@dataclass
class Draw:
    """One draw of values: the statistic, the seed, and which of a mask's two kinds of first row to take.

    choices: input -> the value that the search settled on for it (a sample rate, a mode); bound: a limit on integers
    that an error of the runtime taught.
    """

    statistic: str
    seed: int
    ragged: bool = False
    choices: Mapping[str, float] = field(default_factory=dict)
    bound: int | None = None


def draw(layout: Layout, facts: Mapping[str, Facts], sizes: Mapping[str, int], how: Draw) -> dict[str, np.ndarray]:
    """Feeds for all inputs; sizes: slot -> size. Raises ValueError where a shape expression has no size."""
    lengths: dict[tuple[int, int], np.ndarray] = {}
    feeds: dict[str, np.ndarray] = {}
    for number, spec in enumerate(layout.inputs):
        rng = np.random.default_rng([how.seed, number])
        shape = layout.shape(spec, sizes)
        array = _array(spec, shape, facts[spec.name], sizes, how, rng, lengths)
        feeds[spec.name] = [array, array.copy()] if spec.kind == "sequence" else array
    return feeds


def _array(
    spec: InputSpec,
    shape: tuple[int, ...],
    facts: Facts,
    sizes: Mapping[str, int],
    how: Draw,
    rng: np.random.Generator,
    lengths: dict[tuple[int, int], np.ndarray],
) -> np.ndarray:
    dtype = spec.dtype
    if dtype == ir.DataType.STRING:
        words = [str(c) for c in facts.choices if isinstance(c, str)] or list(_WORDS)
        return rng.choice(np.array(words, dtype=object), size=shape) if shape else np.array(rng.choice(words), dtype=object)
    target = dtype.numpy()
    if spec.name in how.choices:
        return np.full(shape, how.choices[spec.name]).astype(target)
    if facts.choices and not isinstance(facts.choices[0], str):
        return np.asarray(rng.choice(np.asarray(facts.choices), size=shape)).astype(target)
    mask = is_mask(spec, facts)
    if mask and shape:
        keep = _kept(shape, how, rng, lengths)
        if facts.additive and dtype.is_floating_point() and not facts.mask:
            return np.where(keep, 0.0, -1e4).astype(target)  # within the range of float16
        return keep.astype(target)
    if dtype == ir.DataType.BOOL:
        return rng.integers(0, 2, size=shape).astype(bool) if shape else np.array(how.seed % 2 == 0)
    if facts.lengths:
        longest = next((sizes[d] for d in sizes if "seq" in d or "len" in d or "time" in d), max(sizes.values(), default=4))
        high = facts.high if math.isfinite(facts.high) else longest
        return np.sort(rng.integers(1, max(int(high), 1) + 1, size=shape))[..., ::-1].astype(target)
    if dtype.is_integer() or facts.indexed:
        return _integers(spec, shape, facts, sizes, how, rng, lengths).astype(target)
    values = _floats(spec, shape, facts, how, rng)
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        values = values + 1j * _floats(spec, shape, facts, how, np.random.default_rng([how.seed, 77]))
    return np.asarray(values).astype(target)


def is_mask(spec: InputSpec, facts: Facts) -> bool:
    """Whether an input marks what counts: by how the graph uses it, or by its name where the graph does not tell."""
    if facts.indexed or facts.choices:
        return False
    named = re.search(r"mask", spec.name, re.I) is not None
    if spec.dtype.is_floating_point():
        return facts.mask >= 2 or named
    return named or facts.mask >= 2 or (facts.mask == 1 and facts.compared <= {0.0, 1.0} and len(spec.dims) >= 2)


def _kept(shape: tuple[int, ...], how: Draw, rng: np.random.Generator, lengths: dict) -> np.ndarray:
    """A bool array: the first n of the last axis are kept, n ragged over the first one, the same n for every input."""
    rows, length = (shape[0] if len(shape) > 1 else 1), shape[-1]
    if (rows, length) not in lengths:
        counts = rng.integers(max(1, (length + 1) // 2), max(length, 1) + 1, size=rows)
        counts[0] = max(1, length - 1 - length // 4) if how.ragged else length
        lengths[rows, length] = counts
    counts = lengths[rows, length].reshape((rows,) + (1,) * (len(shape) - 1))
    return np.broadcast_to(np.arange(length) < counts, (rows, *shape[1:])).reshape(shape)


def _integers(spec: InputSpec, shape, facts: Facts, sizes: Mapping[str, int], how: Draw, rng, lengths) -> np.ndarray:
    low, high = bounds_of(spec, facts, sizes, how.bound)
    if facts.size:
        low, high = max(low, 1), min(high, 4)
    if facts.slack:
        high = low + (high - low) // 2  # something unknown is added before the lookup
    if re.search(r"position", spec.name, re.I) and shape:
        return np.broadcast_to(np.minimum(np.arange(shape[-1]) + low, high), shape)
    if spec.dtype == ir.DataType.UINT8 and len(shape) >= 3 and not facts.indexed:
        return np.round(_picture(shape, spec, rng) * 255)
    values = rng.integers(low, high + 1, size=shape)
    pads = [c for c in facts.compared if low <= c <= high]
    if facts.indexed and pads and len(shape) >= 2:  # a padding token: rows end in it, as far as the mask says
        values = np.where(_kept(shape, how, rng, lengths), values, int(pads[0]))
    return values


def bounds_of(spec: InputSpec, facts: Facts, sizes: Mapping[str, int], learnt: int | None = None) -> tuple[int, int]:
    """Inclusive bounds on the values of an integer input. learnt: a limit that an error of the runtime taught."""
    info = np.iinfo(spec.dtype.numpy()) if spec.dtype.numpy().kind in "iu" else None
    low = facts.low if math.isfinite(facts.low) else 0
    high = facts.high
    for name in facts.bounding:
        # An axis that is itself free: of a known slot, or of a value whose size is not known before it runs.
        high = min(high, low + max(sizes.get(name, min(sizes.values(), default=2)), 1) - 1)
    if not math.isfinite(high):
        high = low + (255 if info is not None and info.max == 255 else 127 if info is not None and info.max == 127 else _INT_CAP)
    if learnt is not None:
        high = min(high, max(low, learnt))
    if info is not None:
        low, high = max(low, int(info.min)), min(high, int(info.max))
    return int(low), int(max(high, low))


def choices_of(spec: InputSpec, facts: Facts) -> list[float]:
    """Values worth trying in turn for an input that selects what the model does: what it is compared with, then half
    of that (a sample rate's other half) and the next number, which both take the other way. Empty for other inputs."""
    if len(spec.dims) > 1 or any(d != 1 for d in spec.dims) or facts.indexed or spec.dtype == ir.DataType.STRING:
        return []
    if spec.dtype == ir.DataType.BOOL:
        return [1.0, 0.0]
    if spec.dtype.is_floating_point():
        if not facts.compared:
            return []
        # A limit: the low one of a pair is named so; without a name the middle of what it is compared with.
        ordered = sorted(facts.compared)
        if re.search(r"min|low|start", spec.name, re.I):
            return [ordered[0], ordered[0] * 0.9]
        if re.search(r"max|high|stop|end", spec.name, re.I):
            return [ordered[-1], ordered[-1] * 1.1]
        return [ordered[len(ordered) // 2], ordered[0], ordered[-1] + 1]
    found: list[float] = sorted(c for c in facts.compared if c == int(c))
    found += [c // 2 for c in found if c > 100] + [c + 1 for c in found]
    return list(dict.fromkeys(found))


def _floats(spec: InputSpec, shape: tuple[int, ...], facts: Facts, how: Draw, rng: np.random.Generator) -> np.ndarray:
    statistic = how.statistic
    picture = (len(shape) >= 3 and {"height", "width"} <= set(spec.roles)) or (len(shape) == 4 and _pictured(shape))
    sound = "audio" in spec.roles or (len(shape) in (2, 3) and max(shape, default=0) >= 512 and not picture)
    if not shape:
        return np.asarray({"wide": 10.0, "small": 0.1}.get(statistic, 1.0 + 0.25 * (how.seed % 3)))
    if facts.centre is not None and facts.centre.size in (1, shape[-1]):
        spread = facts.spread if facts.spread is not None and facts.spread.size in (1, shape[-1]) else 1.0
        width = {"wide": 3.0, "small": 0.1, "uniform": 2.0}.get(statistic, 1.0)
        base = rng.uniform(-1, 1, size=shape) if statistic == "uniform" else rng.standard_normal(shape)
        return facts.centre + width * spread * base
    if facts.state or ("past" in spec.roles and statistic == "natural"):
        return np.zeros(shape) if statistic == "natural" and facts.state else 0.1 * rng.standard_normal(shape)
    if statistic == "uniform":
        return rng.uniform(0, 1, size=shape)
    if picture and statistic in ("natural", "strokes", "pixels", "wide"):
        if statistic == "strokes":
            return _strokes(shape, spec, rng) * 2 - 1
        image = _picture(shape, spec, rng)
        return image * 255 if statistic == "pixels" else (image - 0.45) / (0.25 if statistic == "natural" else 0.025)
    if sound and statistic in ("natural", "normal", "strokes", "wide"):
        if statistic == "normal":
            return 0.1 * rng.standard_normal(shape)  # hiss; at full amplitude it is louder than any recording
        return _sound(shape, rng) * {"natural": 0.5, "strokes": 0.05, "wide": 1.0}[statistic]
    scale = {"wide": 10.0, "small": 0.01, "pixels": 100.0}.get(statistic, 1.0)
    return scale * rng.standard_normal(shape)


def _pictured(shape: tuple[int, ...]) -> bool:
    return (shape[1] in (1, 3, 4) and min(shape[2:]) >= 16) or (shape[3] in (1, 3, 4) and min(shape[1:3]) >= 16)


def _last(shape: tuple[int, ...], spec: InputSpec) -> bool:
    """Whether the channels stand last."""
    if len(shape) == 3:
        return shape[-1] in (1, 3, 4)
    if "height" in spec.roles:
        return spec.roles.index("height") == 1
    return shape[-1] in (1, 3, 4) and shape[1] not in (1, 3, 4)


def _picture(shape: tuple[int, ...], spec: InputSpec, rng: np.random.Generator) -> np.ndarray:
    """Smooth blobs with a little grain in [0, 1]: coarse noise, interpolated along the two (last) spatial axes."""
    last = _last(shape, spec)
    planes = (*shape[:-3], shape[-1], *shape[-3:-1]) if last else shape
    height, width = planes[-2:]
    coarse = rng.uniform(0, 1, size=(*planes[:-2], max(2, height // 16 + 2), max(2, width // 16 + 2)))
    image = _stretch(_stretch(coarse, height, -2), width, -1) + 0.03 * rng.standard_normal(planes)
    return np.clip(np.moveaxis(image, -3, -1) if last else image, 0, 1)


def _stretch(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation of one axis to a size."""
    at = np.linspace(0, values.shape[axis] - 1, size)
    lower = np.minimum(at.astype(int), values.shape[axis] - 2)
    part = (at - lower).reshape([-1] + [1] * (-axis - 1))
    return np.take(values, lower, axis) * (1 - part) + np.take(values, lower + 1, axis) * part


def _strokes(shape: tuple[int, ...], spec: InputSpec, rng: np.random.Generator) -> np.ndarray:
    """Dark strokes in rows on a light ground, like print, in [0, 1]: what detectors and readers of text answer to."""
    last = _last(shape, spec)
    planes = (*shape[:-3], shape[-1], *shape[-3:-1]) if last else shape
    height, width = planes[-2:]
    image = np.full((height, width), 0.95)
    step = 24 if height >= 64 else max(height, 2)
    for top in range(step // 4, height, step):
        tall = max(2, step // 2)
        at = int(rng.integers(1, 6))
        while at < width - 3:
            thick = int(rng.integers(1, 4))
            if rng.random() < 0.75:
                image[top : top + tall, at : at + thick] = 0.05
            else:
                row = top + int(rng.integers(0, tall))
                image[row : row + 2, at : at + 8] = 0.05
            at += int(rng.integers(3, 8))
    image = np.broadcast_to(image, planes) + 0.01 * rng.standard_normal(planes)
    return np.clip(np.moveaxis(image, -3, -1) if last else image, 0, 1)


def _sound(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A chord with a slow swell and some hiss in [-1, 1], along the longest axis."""
    axis = int(np.argmax(shape))
    time = np.arange(shape[axis]) / 16000.0
    rows = int(np.prod(shape)) // max(shape[axis], 1)
    out = np.empty((rows, shape[axis]))
    for row in range(rows):
        pitch = rng.uniform(90, 600)
        tone = sum(np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k for k in (1, 2, 3, 5))
        swell = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(2, 6) * time)
        out[row] = tone / 2.1 * swell + 0.02 * rng.standard_normal(len(time))
    others = tuple(s for i, s in enumerate(shape) if i != axis)
    return np.clip(np.moveaxis(out.reshape((*others, shape[axis])), -1, axis), -1, 1)
