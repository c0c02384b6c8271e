"""What tests of attention fusions ask: that a spelling is fused, refused with a reason, or no match at all."""

from __future__ import annotations

import onnx

from tests.passes.attention.spelled import Spelled
from tests.support import assert_same, ops, reasons, run_pass


def fused(name: str, operator: str, spelled: Spelled, *, rtol: float = 2e-5, **sizes: int) -> onnx.ModelProto:
    before = spelled.build()
    after, log = run_pass(before, name)
    count = ops(after)
    assert count[operator] == 1 and not count["Softmax"] and not count["MatMul"], reasons(log)
    for seed in range(2):
        assert_same(before, after, spelled.feeds(seed, **sizes), rtol=rtol)
    return after


def refused(name: str, before: onnx.ModelProto, reason: str) -> None:
    after, log = run_pass(before, name)
    assert ops(after) == ops(before)
    assert any(reason in r for r in reasons(log)), reasons(log)


def unmatched(name: str, before: onnx.ModelProto) -> None:
    after, log = run_pass(before, name)
    assert ops(after) == ops(before) and not reasons(log)
