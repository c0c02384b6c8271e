"""Numbers in blocks: what is packed against ONNX Runtime's own kernels, and how exact the ways of rounding are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graphopt.passes.quantization.blocks import Blocks, Layout, nearest, pack_bytes, quantize
from graphopt.passes.quantization.gptq import gptq, output_error
from graphopt.passes.quantization.hqq import half_quadratic

from graphopt.rewriting import Refuse
from tests.support import array

LAYOUTS = [Layout(bits, block, symmetric) for bits in (4, 8) for block in (16, 32, 128) for symmetric in (True, False)]


def outliers(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    weight = array(rows, columns, seed=seed)
    weight[array(rows, columns, seed=seed + 1) > 2.5] *= 6
    return weight


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [128, 77])
def test_round_to_nearest_is_off_by_half_a_step(layout: Layout, columns: int) -> None:
    weight = array(9, columns)
    made = quantize(weight, layout, nearest)
    assert made.integers.shape == (9, math.ceil(columns / layout.block), layout.block)
    assert made.integers.max() <= layout.top
    step = np.repeat(np.abs(made.scale), layout.block, axis=1)[:, :columns]
    error = np.abs(made.dense() - weight)
    # What lies beside the middle of a symmetric grid reaches one step less far above it; a rounded zero point moves both ends.
    assert (error <= step * 1.0001).all()
    assert np.median(error / step) < 0.3
    signal, noise = (weight.astype(np.float64) ** 2).sum(), ((made.dense().astype(np.float64) - weight) ** 2).sum()
    assert made.snr == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)


def test_what_is_exact_stays_exact() -> None:
    """Integers times a scale, with the extremes of the grid among them, come back as they were."""
    weight = np.random.default_rng(1).integers(-5, 11, (7, 64)).astype(np.float32) * 0.25
    weight[:, ::32], weight[:, 1::32] = -5 * 0.25, 10 * 0.25
    for fit in (nearest, half_quadratic):
        made = quantize(weight, Layout(4, 32, False), fit)
        np.testing.assert_array_equal(made.dense(), weight)
        assert made.snr == math.inf


def test_zeros_and_tiny_numbers() -> None:
    weight = array(3, 64)
    weight[0], weight[1] = 0, 1e-41
    for symmetric in (True, False):
        for fit in (nearest, half_quadratic):
            made = quantize(weight, Layout(4, 32, symmetric), fit)
            assert (made.dense()[:2] == 0).all()
            assert np.isfinite(made.scale).all()


def test_what_is_not_finite_is_refused() -> None:
    weight = array(3, 64)
    weight[2, 5] = np.nan
    with pytest.raises(Refuse, match="not be finite"):
        quantize(weight, Layout(4, 32, False), nearest)


def test_bytes() -> None:
    np.testing.assert_array_equal(pack_bytes(np.asarray([[1, 2, 15]], np.uint8), 4), [[0x21, 0x0F]])
    np.testing.assert_array_equal(pack_bytes(np.asarray([[1, 200]], np.uint8), 8), [[1, 200]])
    made = quantize(array(5, 100), Layout(4, 32, False), nearest)
    zeros = made.packed_zeros()
    assert zeros is not None
    assert (made.packed().shape, zeros.shape) == ((5, 4, 16), (5, 2))
    assert made.bytes == made.packed().nbytes + zeros.nbytes + made.scale.nbytes
    assert quantize(array(5, 100), Layout(4, 32, True), nearest).packed_zeros() is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [lambda: array(40, 200), lambda: outliers(40, 200), lambda: np.sign(array(40, 200)) * 0.3])
def test_half_quadratic_is_never_worse(layout: Layout, make) -> None:
    weight = make()
    plain, fitted = quantize(weight, layout, nearest), quantize(weight, layout, half_quadratic)
    by_block = [np.add.reduceat((m.dense() - weight) ** 2, range(0, 200, layout.block), axis=1) for m in (plain, fitted)]
    assert (by_block[1] <= by_block[0] * 1.0001 + 1e-12).all()
    if layout.bits == 4 and make().std() > 0.5:
        assert fitted.snr > plain.snr + 0.05


# --- GPTQ -----------------------------------------------------------------------------------------------------------


def correlated(columns: int, rank: int = 10, rows: int = 400, seed: int = 3) -> np.ndarray:
    return array(rows, rank, seed=seed) @ array(rank, columns, seed=seed + 1) + 0.2 * array(rows, columns, seed=seed + 2)


def grid_of(top: int, symmetric: bool = False):
    def grid(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale, zero = nearest(np.ascontiguousarray(part, np.float32), top, symmetric)
        return scale[:, 0], zero[:, 0]

    return grid


def obq(weight: np.ndarray, hessian: np.ndarray, grid, low: int, high: int, group: int) -> np.ndarray:
    """The plain loop of the paper: one column after the other, and after each the inverse without it by Gaussian elimination."""
    left, size = weight.astype(np.float64).copy(), len(hessian)
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(size))
    integers = np.empty(weight.shape, int)
    for k in range(size):
        if k % group == 0:
            scale, zero = grid(left[:, k : k + group])
        integers[:, k] = np.clip(np.rint(left[:, k] / scale) + zero, low, high)
        error = (left[:, k] - (integers[:, k] - zero) * scale) / inverse[k, k]
        left[:, k + 1 :] -= np.outer(error, inverse[k, k + 1 :])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return integers


@pytest.mark.parametrize(("columns", "group"), [(70, 16), (300, 32), (300, 300)])
def test_gptq_is_the_plain_loop(columns: int, group: int) -> None:
    weight, inputs = array(12, columns), correlated(columns)
    hessian = inputs.astype(np.float64).T @ inputs / len(inputs)
    integers, scales, zeros = gptq(weight, hessian, grid_of(15), low=0, high=15, group=group)
    assert scales.shape == zeros.shape == (12, math.ceil(columns / group))
    expected = obq(weight, hessian, grid_of(15), 0, 15, group)
    # In float32 a number near the middle between two integers may go the other way, and moves what comes after it.
    assert (integers == expected).mean() > 0.97
    assert np.abs(integers - expected).max() <= 2


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_makes_less_error_in_the_outputs(order: bool, symmetric: bool) -> None:
    weight, inputs = array(24, 160), correlated(160)
    inputs *= np.exp(array(160, seed=8))  # some columns are much larger than others
    hessian = inputs.astype(np.float64).T @ inputs / len(inputs)
    layout = Layout(4, 32, symmetric)
    integers, scales, zeros = gptq(weight, hessian, grid_of(15, symmetric), low=0, high=15, group=32, order=order)
    dense = ((integers.reshape(24, 5, 32) - zeros[..., None]) * scales[..., None]).reshape(24, 160)
    plain = quantize(weight, layout, nearest).dense()
    errors = [float(((inputs @ (w - weight).T) ** 2).sum()) / len(inputs) for w in (plain, dense)]
    assert errors[1] < 0.5 * errors[0]
    assert output_error(weight, dense, hessian) == pytest.approx(errors[1], rel=1e-3)


def test_gptq_by_channel_in_eight_bits() -> None:
    weight, inputs = array(24, 96), correlated(96)
    hessian = inputs.astype(np.float64).T @ inputs / len(inputs)

    def grid(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.abs(part).max(axis=1) / 127, np.zeros(len(part))

    integers, scales, _ = gptq(weight, hessian, grid, low=-127, high=127, order=True)
    assert scales.shape == (24, 1)
    plain = np.rint(weight / scales) * scales
    assert output_error(weight, integers * scales, hessian) < 0.7 * output_error(weight, plain, hessian)


def test_inputs_that_are_always_zero_or_always_the_same() -> None:
    """A column that was never seen is rounded by itself, and a Hessian of rank one is damped."""
    weight, inputs = array(8, 64), correlated(64)
    inputs[:, 5] = 0
    hessian = inputs.astype(np.float64).T @ inputs
    integers, scales, zeros = gptq(weight, hessian, grid_of(255), low=0, high=255, group=64)
    dense = (integers - zeros) * scales
    assert np.abs(dense - weight)[:, 5].max() <= scales.max() / 2 * 1.001
    one = np.ones((64, 64))
    integers, scales, zeros = gptq(weight, one, grid_of(15), low=0, high=15, group=64)
    assert np.isfinite(scales).all()
    assert gptq(weight, np.zeros((64, 64)), grid_of(15), low=0, high=15, group=64)[0].shape == (8, 64)


def test_a_hessian_that_cannot_be_used() -> None:
    for hessian in (np.full((16, 16), np.nan), 10 - 9 * np.eye(16)):
        with pytest.raises(Refuse, match="not positive definite"):
            gptq(array(4, 16), hessian, grid_of(15), low=0, high=15, group=16)


def test_dense_gives_back_what_was_stored() -> None:
    layout = Layout(4, 16, False)
    integers = np.random.default_rng(0).integers(0, 16, (3, 2, 16)).astype(np.uint8)
    scale, zero = array(3, 2, low=0.5), np.random.default_rng(1).integers(0, 16, (3, 2)).astype(np.uint8)
    made = Blocks(layout, 30, integers, scale, zero, 0.0)
    for n in range(3):
        for k in range(30):
            expected = np.float32(int(integers[n, k // 16, k % 16]) - int(zero[n, k // 16])) * scale[n, k // 16]
            assert made.dense()[n, k] == expected
