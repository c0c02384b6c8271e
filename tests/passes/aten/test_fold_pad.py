"""fold-pad on ATen graphs: paddings of either spelling before convolutions and poolings."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from tests.aten.support import assert_same, exported, ops, refusals, result, rewritten  # noqa: E402


class Padded(nn.Module):
    """A padding, and a layer behind it."""

    def __init__(self, pad, layer) -> None:
        super().__init__()
        self.pad, self.layer = pad, layer

    def forward(self, x):
        return self.layer(self.pad(x))


def run(pad, layer, rank: int = 4):
    module = Padded(pad, layer).eval()
    x = torch.randn(2, 4, *[9] * (rank - 2), generator=torch.Generator().manual_seed(6))
    candidate = rewritten(exported(module, x), "fold-pad")
    assert_same(module, result(candidate), (x,))
    return candidate


def zeros(*amounts: int):
    return lambda x: torch.ops.aten.constant_pad_nd(x, list(amounts), 0)


@pytest.mark.parametrize(("pad", "layer", "rank"), [
    (nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3), 4),
    (zeros(1, 1, 2, 2), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 4),
    (lambda x: F.pad(x, (2, 2)), nn.Conv2d(4, 6, 3), 4),
    (lambda x: F.pad(x, (1, 1, 1, 1, 0, 0)), nn.Conv2d(4, 6, 3, padding="valid"), 4),
    (nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3, padding="same"), 4),
    (lambda x: F.pad(x, (1, 1)), nn.Conv1d(4, 6, 3, dilation=2), 3),
    (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1)), nn.Conv3d(4, 6, 3), 5),
    (nn.ZeroPad2d(1), nn.AvgPool2d(3), 4),
    (nn.ZeroPad2d(1), nn.AvgPool2d(3, count_include_pad=False), 4),
    (lambda x: F.pad(x, (1, 1, 1, 1), value=-torch.inf), nn.MaxPool2d(3, 2), 4),
    (lambda x: F.pad(x, (1, 1), value=-torch.inf), nn.MaxPool1d(2), 3),
])  # fmt: skip
def test_padding_of_the_operator(pad, layer, rank):
    assert ops(result(run(pad, layer, rank))).total() == 1


def test_zeros_are_never_the_largest_behind_relu():
    assert sorted(ops(result(run(lambda x: F.pad(torch.relu(x), (1, 1, 1, 1)), nn.MaxPool2d(3))))) == ["max_pool2d", "relu"]


@pytest.mark.parametrize(("pad", "layer", "reason"), [
    (lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), nn.Conv2d(4, 6, 3), "not pad with a constant"),
    (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3), "one side more than the other"),
    (lambda x: F.pad(x, (-1, -1)), nn.Conv2d(4, 6, 3), "cuts off"),
    (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), nn.Conv2d(6, 6, 3), "the batch or the channels"),
    (lambda x: F.pad(x, (1, 1), value=2), nn.Conv2d(4, 6, 3), "pads with 2"),
    (nn.ZeroPad2d(1), nn.ConvTranspose2d(4, 6, 3), None),
    (nn.ZeroPad2d(1), nn.Conv2d(4, 6, 2, padding="same"), "differs from side to side"),
    (nn.ZeroPad2d(6), nn.Conv2d(4, 4, 13, groups=4), "169 taps is slower"),
    (nn.ZeroPad2d(1), nn.MaxPool2d(3), "the largest of a window"),
    (nn.ZeroPad2d(2), nn.AvgPool2d(3), "more than half"),
    (nn.ZeroPad2d(1), nn.AvgPool2d(3, ceil_mode=True), "rounds the size"),
    (nn.ZeroPad2d(1), nn.AvgPool2d(4, padding=1, count_include_pad=False), "out of the average"),
    (lambda x: F.pad(x, (1, 1, 1, 1), value=-torch.inf), nn.MaxPool2d(3, dilation=2), "dilated"),
])  # fmt: skip
def test_refusals(pad, layer, reason):
    candidate = run(pad, layer)
    assert not candidate.applications
    assert refusals(candidate) == [] if reason is None else reason in refusals(candidate)[0]


def test_a_padded_column_is_left():
    module, x = Padded(lambda x: F.pad(x, (0, 0, 4, 4)), nn.Conv2d(16, 4, (9, 1))).eval(), torch.randn(1, 16, 64, 1)
    candidate = rewritten(exported(module, x), "fold-pad")
    assert "a padded column" in refusals(candidate)[0] and not candidate.applications
    assert_same(module, result(candidate), (x,))


def test_a_padded_value_that_others_use_is_refused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            y = F.pad(x, (1, 1, 1, 1))
            return self.conv(y), y

    module, x = Two(), torch.randn(1, 4, 5, 5)
    candidate = rewritten(exported(module, x), "fold-pad")
    assert "also an output" in refusals(candidate)[0]
    assert_same(module, result(candidate), (x,))
