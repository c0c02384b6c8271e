"""The default preset over recipes: what eager computes, at two sizes, and nothing left to do for a second run."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from graphopt.aten import Program  # noqa: E402
from graphopt.model import Model  # noqa: E402
from graphopt.pipeline.presets import load_preset  # noqa: E402
from graphopt.pipeline.runner import run_pipeline  # noqa: E402
from models.recipes import RECIPES  # noqa: E402
from tests.aten.support import assert_same, exported, ops, result  # noqa: E402
from tests.support import REGISTRY  # noqa: E402

# What must be there, and what must not.
CASES = {
    "bert_base": (["scaled_dot_product_attention"], ["softmax", "clone", "_assert_tensor_metadata"]),
    "gpt2_small": (["scaled_dot_product_attention"], ["softmax", "masked_fill"]),
    "llama_like": (["scaled_dot_product_attention"], ["softmax"]),
    "vit_tiny": (["scaled_dot_product_attention"], []),
    "lstm": (["lstm"], []),
    "resnet18": (["conv2d"], ["_native_batch_norm_legit_no_training"]),
    "repvgg_a0": (["conv2d"], ["_native_batch_norm_legit_no_training"]),
}


@pytest.mark.parametrize("name", CASES)
def test_default_preset(name):
    recipe = RECIPES[name]
    fixed = recipe.fixed.get("dynamo", ())
    module = recipe.build(small=True).eval()

    def inputs(size, seed=0):
        feeds = recipe.example_inputs(seed=seed, size=size)
        return tuple(torch.as_tensor(feeds[key]) for key in recipe.inputs)

    dims = torch.export.Dim.AUTO
    dynamic = tuple({axis: dims for axis, symbol in recipe.inputs[key].axes.items() if symbol not in fixed} for key in recipe.inputs)
    program = exported(module, *inputs("small"), dynamic=dynamic)
    pipeline = load_preset("default", REGISTRY)
    first = run_pipeline(lambda: Model(Program(program), kind="torch"), pipeline)
    assert first.changed
    made = result(first)
    present, absent = CASES[name]
    assert all(ops(made)[n] for n in present) and not any(ops(made)[n] for n in absent), ops(made)
    assert_same(module, made, inputs("small", 1), inputs("small" if fixed else "medium", 2), rtol=1e-4)
    second = run_pipeline(lambda: Model(Program(made), kind="torch"), pipeline)
    assert [a.pass_name for a in second.applications] == []
