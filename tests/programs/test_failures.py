"""Where and why a module could not be captured: the line of its own code, the cause and the remedy, for each kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from graphopt.errors import InputError  # noqa: E402
from graphopt.programs.capture import capture  # noqa: E402
from graphopt.programs.failures import is_users, line_in_text  # noqa: E402

HERE = Path(__file__)


@torch.library.custom_op("graphopt_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """An operator of which torch is not told what shape comes of it."""
    return x * 2


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # here: Branch
            return x
        return -x


class SizeOfValues(nn.Module):
    def forward(self, x):
        found = x.nonzero()
        return x[: found.shape[0] - 2] if found.shape[0] > 2 else x  # here: SizeOfValues


class LoopOfValue(nn.Module):
    def forward(self, x):
        for _ in range(int(x.abs().sum())):  # here: LoopOfValue
            x = x * 2
        return x


class Address(nn.Module):
    def forward(self, x):
        return x * (x.data_ptr() % 2)  # here: Address


class Untold(nn.Module):
    def forward(self, x):
        return torch.ops.graphopt_tests.twice(x)  # here: Untold


class Crashes(nn.Module):
    def forward(self, x):
        raise ValueError("the cause\nand more of it")  # here: Crashes


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)  # here: Drops


class BatchNormTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, training=True)  # here: BatchNormTraining


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)  # here: Noise


CASES = [
    (Branch, "what happens next depends on a value in a tensor", "torch.where or torch.cond"),
    (SizeOfValues, "a size or an index depends on a value in a tensor", "torch._check"),
    (LoopOfValue, "a size or an index depends on a value in a tensor", "torch._check"),
    (Address, "it asks where a tensor lies in memory", "torch.library.custom_op"),
    (Untold, "it calls an operator whose result's shape torch cannot tell", "register_fake"),
    (Crashes, "fails on the example inputs", "ValueError: the cause"),
    (Drops, "(aten.dropout.default) is Dropout in training mode", "module.eval()"),
    (BatchNormTraining, "(aten.batch_norm.default) is BatchNorm in training mode", "module.eval()"),
    (Noise, "(aten.randn_like.default) draws random numbers", "none can be verified"),
]


@pytest.mark.parametrize(("kind", "cause", "remedy"), CASES, ids=[case[0].__name__ for case in CASES])
def test_the_line_the_cause_and_the_remedy(kind: type[nn.Module], cause: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        capture(kind().eval(), torch.full((3, 4), 0.5))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{kind.__name__}: ")
    assert cause in message and remedy in message
    text = HERE.read_text().splitlines()
    (number,) = [count for count, line in enumerate(text, 1) if line.endswith(f"# here: {kind.__name__}")]
    assert f"{HERE}:{number} ({text[number - 1].strip()}" in message


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class Collects(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return sum(self.seen)


@pytest.mark.parametrize(("kind", "name"), [(Counts, "calls"), (Collects, "seen")])
def test_answers_that_depend_on_attributes_that_forward_changes(kind: type[nn.Module], name: str) -> None:
    with pytest.raises(InputError, match=rf"its answers depend on '{name}', which forward changes.*register it as a buffer"):
        capture(kind().eval(), torch.randn(3, 4))


VALUE = [2.0]


class Outside(nn.Module):
    """Its answers depend on what is no part of it, and which it changes."""

    def forward(self, x):
        VALUE[0] += 1.0
        return x * VALUE[0]


def test_a_module_whose_answers_change_from_call_to_call() -> None:
    with pytest.raises(InputError, match="Outside: gives another answer when it is called again with the same inputs"):
        capture(Outside().eval(), torch.randn(3, 4))


class Numpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2.0)


def test_numpy_in_forward_is_traced_where_it_can_be() -> None:
    captured = capture(Numpy().eval(), torch.randn(3, 4))
    x = torch.randn(5, 4)
    torch.testing.assert_close(captured.program.module()(x), x * 2)


class NumpyOpaque(nn.Module):
    def forward(self, x):
        import numpy as np

        return torch.from_numpy(np.linalg.matrix_power(np.asarray(x.tolist(), dtype=np.float32), 2))


def test_numpy_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(InputError, match=rf"{re.escape(str(HERE))}:\d+ .*numpy|a value in a tensor"):
        capture(NumpyOpaque().eval(), torch.randn(3, 3))


class Needs(nn.Module):
    def forward(self, x, mask):
        return x * mask


def test_example_inputs_that_lack_an_argument() -> None:
    for inputs in (torch.randn(2), {"x": torch.randn(2)}, {"x": torch.randn(2), "masks": torch.randn(2)}):
        with pytest.raises(InputError, match=r"Needs: the example inputs do not fit forward\(x, mask\): .*argument: 'mask'"):
            capture(Needs().eval(), inputs)
    with pytest.raises(InputError, match="Needs: needs example inputs: a tuple in the order of forward's arguments"):
        capture(Needs().eval())


def test_norms_without_running_statistics_use_the_batchs_in_eval_mode_too() -> None:
    module = nn.BatchNorm2d(3, track_running_stats=False).eval()
    captured = capture(module, torch.randn(2, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(captured.program.module()(x), module(x))


def test_dropout_that_does_nothing_is_none() -> None:
    assert capture(nn.Dropout(0.5).eval(), torch.randn(2, 3)).inputs == ("input",)


def test_lines_of_torch_and_of_python_are_not_the_users() -> None:
    assert not is_users(torch.__file__) and not is_users(re.__file__) and is_users(str(HERE))
    trace = f'  File "{HERE}", line 1, in forward\n    x\n  File "{torch.__file__}", line 7, in f\n    y'
    line = line_in_text(trace)
    assert line is not None and (line.file, line.number) == (str(HERE), 1)
