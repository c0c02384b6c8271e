"""Which of the two integers beside it a weight becomes: the ones whose errors cancel in the outputs.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": the squared error of a layer's outputs is
d E[x x^T] d^T for each output channel with rounding errors d (equation 11 and section 3.3), a quadratic form in binary
unknowns. The paper relaxes them and follows gradients over samples. Here the second moment is known, so single choices are
turned over for as long as the error falls, from where rounding to nearest and rounding with feedback begin.
"""

from __future__ import annotations

import numpy as np

_DAMPING = 0.01  # of the mean of the diagonal: what is not known of the inputs
_SWEEPS = 30
_TRIED_OUT = 10  # inputs up to which every choice is tried, 2^10 of them: all depthwise 3 x 3 kernels
_HELD = 1 << 22  # numbers that are held at a time for that
_TWO_STARTS = 256  # inputs up to which rounding with feedback is a second start; beyond, it takes longer than it gains
_IN_PAIRS = 64  # inputs up to which choices are turned over in pairs, too
_LEAST = 1e-4  # by which part of itself an error must fall for a sweep to be followed by another


def choose(units: np.ndarray, moment: np.ndarray, low: int, high: int) -> np.ndarray:
    """The integers [G, N, K], each the one below or above, within [low, high], with the least error found.

    units: weights in units of their scale, [G, N, K] float64. moment: E[x x^T] of each group's inputs, [G, K, K].
    """
    moment = damped(moment)
    below = np.clip(np.floor(units), low, high)
    above = np.clip(below + (units > below), low, high)
    nearest = np.clip(np.rint(units), low, high)
    if units.shape[2] <= _TRIED_OUT:
        return _every(units, moment, below, above)
    best, least = nearest, np.full(units.shape[:2], np.inf)
    starts = [nearest]
    if units.shape[2] <= _TWO_STARTS:
        starts.append(_with_feedback(units, moment, below, above))
    for start in starts:
        found = _descend(start, units, moment, below, above)
        if units.shape[2] <= _IN_PAIRS:
            found = _in_pairs(found, units, moment, below, above)
        error = output_error(found - units, moment)
        best = np.where((error < least)[..., None], found, best)
        least = np.minimum(error, least)
    return best


def output_error(error: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """d E[x x^T] d^T of each row of errors [G, N, K]: [G, N]."""
    return np.einsum("gnk,gnk->gn", error @ moment, error)


def damped(moment: np.ndarray) -> np.ndarray:
    """A second moment [G, K, K] with a part of its mean diagonal added, so that it is positive definite."""
    size = moment.shape[-1]
    mean = np.trace(moment, axis1=1, axis2=2) / size
    ridge = np.where(mean > 0, _DAMPING * mean, 1.0)
    return moment + ridge[:, None, None] * np.eye(size)


def _every(units: np.ndarray, moment: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The best of all choices."""
    groups, rows, inputs = units.shape
    choices = (np.arange(2**inputs)[:, None] >> np.arange(inputs)) & 1  # [2^K, K]
    best = np.empty_like(units)
    step = max(1, _HELD // (choices.size * rows))
    for start in range(0, groups, step):
        part = slice(start, start + step)
        tried = below[part, :, None] + choices * (above - below)[part, :, None]  # [g, N, 2^K, K]
        error = tried - units[part, :, None]
        total = np.einsum("gnck,gnck->gnc", error @ moment[part, None], error)
        best[part] = np.take_along_axis(tried, total.argmin(axis=2)[..., None, None], axis=2)[:, :, 0]
    return best


def _with_feedback(units: np.ndarray, moment: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Columns rounded one after the other, large ones first, each with what makes up best for the errors before it."""
    integers, error = np.empty_like(units), np.zeros_like(units)
    groups = np.arange(len(units))
    order = np.argsort(-np.einsum("gkk->gk", moment), axis=1, kind="stable")
    pulled = np.zeros_like(units)  # d E[x x^T] of the errors so far
    for step in range(units.shape[2]):
        k = order[:, step]
        wanted = units[groups, :, k] - pulled[groups, :, k] / moment[groups, k, k][:, None]
        lower, upper = below[groups, :, k], above[groups, :, k]
        chosen = np.where(wanted - lower < upper - wanted, lower, upper)
        integers[groups, :, k] = chosen
        error = chosen - units[groups, :, k]
        pulled += error[:, :, None] * moment[groups, k][:, None, :]
    return integers


def _descend(integers: np.ndarray, units: np.ndarray, moment: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Turn single choices over, column by column, for as long as that makes the error less."""
    integers = integers.copy()
    pulled = (integers - units) @ moment
    diagonal = np.einsum("gkk->gk", moment)
    before = np.inf
    for _ in range(_SWEEPS):
        for k in range(units.shape[2]):
            at = integers[:, :, k]
            step = np.where(at == below[:, :, k], above[:, :, k] - at, below[:, :, k] - at)
            gain = step * (2 * pulled[:, :, k] + step * diagonal[:, k : k + 1])
            g, n = np.nonzero(gain < 0)
            if g.size:
                integers[g, n, k] += step[g, n]
                pulled[g, n] += step[g, n][:, None] * moment[g, k]
        total = float(output_error(integers - units, moment).sum())
        if not total < before * (1 - _LEAST):
            break
        before = total
    return integers


def _in_pairs(integers: np.ndarray, units: np.ndarray, moment: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Turn over, of each row, the one or two choices that gain most, for as long as there are any."""
    integers = integers.copy()
    diagonal = np.einsum("gkk->gk", moment)
    groups, rows, inputs = units.shape
    at_once = max(1, _HELD // (rows * inputs**2))
    for start in range(0, groups, at_once):
        part = slice(start, start + at_once)
        for _ in range(4 * inputs):
            now = integers[part]
            pulled = (now - units[part]) @ moment[part]
            step = np.where(now == below[part], above[part] - now, below[part] - now)
            gain = step * (2 * pulled + step * diagonal[part, None])
            both = gain[..., :, None] + gain[..., None, :] + 2 * step[..., :, None] * step[..., None, :] * moment[part, None]
            both[..., np.arange(inputs), np.arange(inputs)] = gain
            best = both.reshape(*gain.shape[:2], -1).argmin(axis=2)
            first, second = best // inputs, best % inputs
            least = np.take_along_axis(both.reshape(*gain.shape[:2], -1), best[..., None], axis=2)[..., 0]
            g, n = np.nonzero(least < -_LEAST * diagonal[part].mean(axis=1)[:, None])
            if not g.size:
                break
            for k in (first, second):
                place = g, n, k[g, n]
                now[place] = np.where(now[place] == below[part][place], above[part][place], below[part][place])
            one = first[g, n] == second[g, n]  # was turned over and back
            place = g[one], n[one], first[g, n][one]
            now[place] = np.where(now[place] == below[part][place], above[part][place], below[part][place])
    return integers
