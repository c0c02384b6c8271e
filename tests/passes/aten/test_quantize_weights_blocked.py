"""Weights of torch programs in 4 and 8 bits by blocks, and torch's kernels that read narrow weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.aten.support import exported, ops, refusals, result, rewritten  # noqa: E402
from tests.passes.aten.test_cleanup import Fn, _x  # noqa: E402

BLOCKED, PLAIN = "quantize-weights-blocked", "quantize-weights"
UNDOING = ("fold-constants", "fold-float-constants", "eliminate-common-subexpressions", "prune-dead-nodes")


def narrowed(module, x, **options):
    given = {BLOCKED: {"min-elements": 1, "method": "rtn", **{k.replace("_", "-"): v for k, v in options.items()}}}
    candidate = rewritten(exported(module, x), BLOCKED, *UNDOING, options=given, rounds=2)
    return candidate, result(candidate)


def dense(state: dict[str, torch.Tensor], name: str, columns: int, bits: int) -> np.ndarray:
    """The matrix that the buffers stand for, read with numpy and by hand: what the pass wrote, nothing of how it wrote it."""
    stored = state[f"{name}_int{bits}"].numpy().astype(np.int64)
    if bits == 4:
        byte = stored & 0xFF
        low, high = byte & 0xF, byte >> 4
        stored = np.concatenate([low - 16 * (low > 7), high - 16 * (high > 7)], axis=-1)
    zero = state[f"{name}_zero"].numpy().astype(np.int64) if f"{name}_zero" in state else 0
    wide = (stored - zero) * state[f"{name}_scale"].double().numpy()
    return wide.reshape(len(wide), -1)[:, :columns]


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (8, False), (8, True)])
@pytest.mark.parametrize("columns", [64, 100])
def test_the_answers_are_those_of_the_rounded_weight(bits, symmetric, columns):
    torch.manual_seed(0)
    module, x = nn.Linear(columns, 72), _x(3, 5, columns)
    candidate, program = narrowed(module, x, bits=bits, symmetric=symmetric)
    state, weight = program.state_dict, module.weight.detach().double().numpy()
    assert "weight" not in state and candidate.model.graph.parameters[f"weight_int{bits}"] == ("weight",)
    assert state[f"weight_int{bits}"].numel() == 72 * -(-columns // 32) * 32 * bits // 8
    made = dense(state, "weight", columns, bits)
    wanted = x.double().numpy() @ made.T + module.bias.detach().double().numpy()
    np.testing.assert_allclose(program.module()(x).detach().numpy(), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    # What is stored is the weight to half a step of its block, or one at the end of a grid that has no counterpart to its lowest.
    steps = np.repeat(state["weight_scale"].double().numpy()[..., 0], 32, axis=1)[:, :columns]
    spans = np.abs(made - weight) / np.abs(steps)
    assert spans.max() <= (1.0 if symmetric else 0.501) + 1e-3 and np.median(spans) < 0.3


def test_weights_of_products_lie_the_other_way():
    module, x = Fn(lambda self, x: x @ self.w, w=_x(64, 72)), _x(4, 64)
    candidate, program = narrowed(module, x)
    assert len(candidate.applications) >= 1 and ops(program)["matmul"] == 1
    wanted = x.double().numpy() @ dense(program.state_dict, "w", 64, 4).T
    np.testing.assert_allclose(program.module()(x).numpy(), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_of_a_table_only_the_rows_that_are_read_are_made_numbers():
    torch.manual_seed(0)
    module = nn.Embedding(50, 40)
    ids = torch.tensor([[1, 0, 49]])
    program = torch.export.export(module, (ids,), dynamic_shapes=({1: torch.export.Dim("length")},)).run_decompositions({})
    made = result(rewritten(program, BLOCKED, *UNDOING, options={BLOCKED: {"min-elements": 1}}))
    table = dense(made.state_dict, "weight", 40, 4)
    for given in (ids, torch.tensor([[3, 3, 7, 9, 11]])):
        np.testing.assert_allclose(made.module()(given).detach().numpy(), table[given.numpy()], rtol=1e-5, atol=1e-6)
    _, same = narrowed(module, ids, tables=False)
    assert list(same.state_dict) == ["weight"]


def test_half_quadratic_rounding_is_no_worse():
    torch.manual_seed(0)
    module, x = nn.Linear(128, 64), _x(4, 128)
    weight = module.weight.detach().double().numpy()

    def error(method):
        return np.abs(dense(narrowed(module, x, method=method)[1].state_dict, "weight", 128, 4) - weight).mean()

    assert error("hqq") <= error("rtn") * 1.01


def test_what_is_packed_stays_packed():
    module, x = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)), _x(2, 256)
    for bits in (4, 8):
        candidate, program = narrowed(module, x, bits=bits)
        held = sum(t.numel() * t.element_size() for t in program.state_dict.values())
        assert held < 1.25 * 2 * 256 * (256 * bits // 8 + 4 * 8) + 4 * 512
        assert any(f"2 weights in {bits} bits in blocks of 32" in note for note in candidate.runs[0].notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernel_for_int4_where_it_is_asked_for(dtype):
    torch.manual_seed(0)
    module, x = nn.Linear(128, 48).to(dtype), _x(2, 3, 128).to(dtype)
    candidate, program = narrowed(module, x, form="contrib")
    assert ops(program)["_weight_int4pack_mm_for_cpu"] == 1 and "linear" not in ops(program)
    assert any("packed for CPUs with" in note for note in candidate.runs[0].notes)
    _, other = narrowed(module, x)
    made = dense(other.state_dict, "weight", 128, 4)
    wanted = x.double().numpy() if dtype is torch.float32 else x.float().double().numpy()
    wanted = wanted @ made.T + module.bias.detach().double().numpy()
    found = program.module()(x)
    assert found.dtype is dtype and found.shape == (2, 3, 48)
    limit = 1e-5 if dtype is torch.float32 else 2e-2  # one rounding of bfloat16 is 2 ** -8
    np.testing.assert_allclose(found.detach().double().numpy(), wanted, rtol=limit, atol=limit * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("module", "shape", "options"),
    [
        (nn.Linear(128, 40), (2, 128), {}),  # outputs
        (nn.Linear(100, 48), (2, 100), {}),  # blocks that are not full
        (nn.Linear(128, 48), (2, 128), {"bits": 8}),
        (nn.Linear(128, 48), (2, 128), {"block_size": 16}),
    ],
)
def test_what_the_kernel_does_not_take_is_made_numbers(module, shape, options):
    _, program = narrowed(module, _x(*shape), form="contrib", **options)
    assert "_weight_int4pack_mm_for_cpu" not in ops(program) and ops(program)["linear"] == 1


@pytest.mark.parametrize(
    ("dtype", "rows", "kernel"),
    [
        (torch.float32, 1, True),
        (torch.float32, 2, False),
        (torch.bfloat16, 16, True),
        (torch.bfloat16, 17, False),
        (torch.float16, 1, False),
    ],
)
def test_the_kernel_for_int8_on_few_rows(dtype, rows, kernel):
    torch.manual_seed(0)
    module, x = nn.Linear(64, 24).to(dtype), _x(rows, 64).to(dtype)
    program = result(rewritten(exported(module, x), PLAIN, *UNDOING, options={PLAIN: {"min-elements": 1}}))
    assert ("_weight_int8pack_mm" in ops(program)) is kernel and ("linear" in ops(program)) is not kernel
    state = program.state_dict
    weight = state["weight_int8"].double() * state["weight_scale"].double().reshape(-1, 1)
    wanted = x.double() @ weight.T + module.bias.detach().double()
    limit = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(program.module()(x).double(), wanted, rtol=limit, atol=limit * float(wanted.abs().max()))


def test_rows_that_are_not_known_or_do_not_lie_one_after_another_are_left_to_the_graph():
    module, x = nn.Linear(64, 24), _x(1, 64)
    program = torch.export.export(module, (torch.cat([x, x]),), dynamic_shapes=({0: torch.export.Dim("batch")},)).run_decompositions({})
    assert "linear" in ops(result(rewritten(program, PLAIN)))
    turned = Fn(lambda self, x: nn.functional.linear(x.permute(1, 0), self.w), w=_x(24, 64))
    made = result(rewritten(exported(turned, _x(64, 4).bfloat16().float()), PLAIN))
    assert "linear" in ops(made)


@pytest.mark.parametrize(
    ("module", "x", "reason"),
    [
        (Fn(lambda self, x: (x @ self.w, self.w), w=_x(64, 24)), _x(4, 64), "is also an output"),
        (Fn(lambda self, x: x @ self.w + self.w.sum(), w=_x(64, 24)), _x(4, 64), "is also taken by 'sum_1'"),
        (Fn(lambda self, x: x @ self.w, w=torch.full((64, 24), torch.inf)), _x(4, 64), "would not be finite"),
        (nn.Linear(2, 24), _x(4, 2), "would take more than the weight does"),
    ],
)
def test_refusals(module, x, reason):
    candidate = rewritten(exported(module, x), BLOCKED, options={BLOCKED: {"min-elements": 1}})
    assert not candidate.applications and any(reason in r for r in refusals(candidate)), refusals(candidate)


def test_gptq_is_refused():
    candidate, program = narrowed(nn.Linear(64, 24), _x(4, 64), method="gptq")
    assert "weight" in program.state_dict and any("gptq calibrates" in r for r in refusals(candidate))
