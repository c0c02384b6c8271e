"""Capture: dims found and stated, names, modes, and that the module is left as it was."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.export import Dim  # noqa: E402

from graphopt.errors import InputError, OptionError  # noqa: E402
from graphopt.programs.capture import Captured, capture  # noqa: E402
from graphopt.programs.torch_side import preserved  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.norm(self.conv(image)).relu_()}


class Words(nn.Module):
    """Token ids and a mask of one batch and length; positions bound the length."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.positions = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.words(ids) + self.positions.weight[: ids.shape[1]]
        hidden = hidden * mask.unsqueeze(-1)
        return self.head(hidden), hidden.mean(1)


class Patches(nn.Module):
    """Takes one size of image and no other, but for what the stride of its convolution rounds away."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 4, stride=4)
        self.place = nn.Parameter(torch.randn(1, 16, 4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.patch(image).flatten(2).transpose(1, 2) + self.place


def same(captured: Captured, module: nn.Module, sizes: dict[str, int]) -> None:
    """The captured program agrees with the eager module at these sizes."""
    args, kwargs = captured.call_with(captured.resized(sizes))
    with torch.no_grad():
        torch.testing.assert_close(captured.program.module()(*args, **kwargs), module(*args, **kwargs), rtol=1e-5, atol=1e-6)


def test_dims_are_found_and_named_though_the_example_has_batch_one() -> None:
    module = Net().eval()
    captured = capture(module, torch.randn(1, 3, 8, 8))
    assert captured.dims == {"image": {0: "batch", 2: "height", 3: "width"}}
    assert captured.ranges["batch"] == (1, None)
    assert captured.outputs == ("features",) and captured.inputs == ("image",)
    assert captured.tensors()["image"].shape == (1, 3, 8, 8)
    assert any("'batch' is dynamic" in note for note in captured.notes)
    assert any("axis 1 of 'image' is fixed" in note for note in captured.notes)
    assert not any(str(node.target) == "aten.relu_.default" for node in captured.program.graph.nodes)
    same(captured, module, {"batch": 1})
    same(captured, module, {"batch": 3, "height": 5, "width": 9})


def test_dims_that_inputs_share_are_one_and_their_bound_is_known() -> None:
    module = Words().eval()
    captured = capture(module, {"mask": torch.ones(2, 5), "ids": torch.randint(0, 11, (2, 5))})
    assert captured.inputs == ("ids", "mask")  # in the order of forward's arguments, whatever that of the dict
    assert captured.dims == {"ids": {0: "batch", 1: "seq"}, "mask": {0: "batch", 1: "seq"}}
    assert captured.ranges == {"batch": (1, None), "seq": (2, 20)}
    assert captured.outputs == ("output_0", "output_1")
    assert {"words.weight", "head.weight"} <= set(captured.program.state_dict)  # tied, and both names stay
    same(captured, module, {"batch": 1, "seq": 20})
    with pytest.raises(OptionError, match="seq=21: may be 2 to 20"):
        captured.resized({"seq": 21})


def test_a_size_that_the_module_cannot_change_is_fixed_with_the_reason() -> None:
    captured = capture(Patches().eval(), torch.randn(1, 3, 16, 16))
    assert captured.dims == {"image": {0: "batch"}}
    assert sum("the module itself runs at none of the sizes tried" in note for note in captured.notes) == 2


class Halves(nn.Module):
    """Computes something else at odd sizes, which no check of torch's sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + len([1 for _ in range(x.shape[0]) if x.shape[0] % 2])


def test_a_dim_that_computes_something_else_at_another_size_is_fixed() -> None:
    module = Halves()
    captured = capture(module.eval(), torch.randn(4, 3))
    assert 0 not in captured.dims.get("x", {})
    args, kwargs = captured.call_with(captured.tensors())
    torch.testing.assert_close(captured.program.module()(*args, **kwargs), module(*args, **kwargs))


class ByBatch(nn.Module):
    """Squeezes the batch away where it is 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(0) if x.shape[0] == 1 else x


def test_a_program_of_any_batch_that_is_wrong_at_the_examples_is_not_taken() -> None:
    captured = capture(ByBatch().eval(), torch.randn(1, 4))
    args, kwargs = captured.call_with(captured.tensors())
    assert captured.program.module()(*args, **kwargs).shape == (4,)
    assert 0 not in captured.dims.get("x", {})


@pytest.mark.parametrize(
    "shapes",
    [
        {"image": {0: "n", 2: "rows"}},
        ({0: "n", 2: "rows"},),
        ({0: Dim("n"), 2: Dim("rows", min=4)},),
        {"image": [Dim("n"), None, "rows", 8]},
    ],
)
def test_stated_dims_are_honoured_in_every_form(shapes: object) -> None:
    module = Net().eval()
    captured = capture(module, torch.randn(1, 3, 8, 8), dynamic_shapes=shapes)
    assert captured.dims == {"image": {0: "n", 2: "rows"}}
    same(captured, module, {"n": 3, "rows": 11})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"picture": {0: "batch"}}, r"dynamic shapes for 'picture', which is no input: there are image"),
        ({"image": {4: "batch"}}, r"'image' has no axis 4: it has 4"),
        ({"image": {3: 9}}, r"axis 3 of 'image' is stated as 9, but is 8"),
        ({"image": "batch"}, r"the dynamic axes of 'image' are a str: expected \{axis: name\}"),
        (({0: "batch"}, {0: "batch"}), r"dynamic shapes for 2 inputs, of which there are 1"),
        (3, r"dynamic shapes of type int"),
    ],
)
def test_stated_dims_that_do_not_fit_are_option_errors(shapes: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        capture(Net().eval(), torch.randn(1, 3, 8, 8), dynamic_shapes=shapes)


@pytest.mark.parametrize("shapes", [{"image": {1: "channels"}}, {"image": {1: Dim("channels")}}])
def test_a_stated_dim_that_the_module_fixes_is_refused_with_its_size(shapes: object) -> None:
    with pytest.raises(InputError, match=r"a dim that was asked to be dynamic is not.*3.*leave it fixed"):
        capture(Net().eval(), torch.randn(1, 3, 8, 8), dynamic_shapes=shapes)


def test_training_mode_is_refused_unless_eval_is_asked_for() -> None:
    module = Net()
    with pytest.raises(InputError, match=r"Net: the module is in training mode: call \.eval\(\)"):
        capture(module, torch.randn(1, 3, 8, 8))
    module.eval()
    module.norm.train()
    with pytest.raises(InputError, match=r"Net: its part 'norm' is in training mode"):
        capture(module, torch.randn(1, 3, 8, 8))
    captured = capture(module, torch.randn(1, 3, 8, 8), eval=True)
    assert module.norm.training and not module.training and int(module.norm.num_batches_tracked) == 0
    assert "captured as in eval mode" in captured.notes[0]
    x = torch.randn(2, 3, 8, 8)
    with preserved(captured.reference):
        torch.testing.assert_close(captured.reference(x), captured.program.module()(x))
    assert module.norm.training and int(module.norm.num_batches_tracked) == 0


class Remembers(nn.Module):
    """Keeps what it saw last, for a look at it; its answers do not depend on that."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.last = None
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        self.last = x * 2
        self.total.add_(x.sum(0))
        print("called")
        return x * 2 + self.total


def test_the_module_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    module = Remembers().eval()
    captured = capture(module, torch.randn(3, 4))
    assert module.seen == [] and module.last is None and not module.total.any()
    assert list(captured.program.graph_signature.buffers_to_mutate.values()) == ["total"]
    assert any("forward changes 'last', 'seen' of the module" in note for note in captured.notes)
    assert capsys.readouterr().out == ""


class WritesInput(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + 1


def test_inputs_that_are_written_to_keep_their_values() -> None:
    x = torch.randn(3, 4)
    before = x.clone()
    captured = capture(WritesInput().eval(), x)
    assert torch.equal(x, before) and list(captured.program.graph_signature.user_inputs_to_mutate.values()) == ["x"]


def test_names_of_outputs_may_be_given() -> None:
    captured = capture(Words().eval(), (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5)), outputs=("logits", "mean"))
    assert captured.outputs == ("logits", "mean")
    with pytest.raises(OptionError, match="1 names for 2 outputs"):
        capture(Words().eval(), (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5)), outputs=("logits",))


class Nested(nn.Module):
    def forward(self, pair: list[torch.Tensor], scale: int = 2, *, extra: dict[str, torch.Tensor]) -> torch.Tensor:
        return (pair[0] + pair[1]) * scale + extra["bias"]


def test_nested_arguments_have_names_and_dims_of_their_own() -> None:
    module = Nested().eval()
    inputs = (([torch.randn(3, 4), torch.randn(3, 4)], 3), {"extra": {"bias": torch.randn(4)}})
    captured = capture(module, inputs)
    assert captured.inputs == ("pair_0", "pair_1", "extra_bias")
    assert captured.dims["pair_0"][0] == captured.dims["pair_1"][0] == "batch"
    same(captured, module, {"batch": 5})
    stated = capture(module, inputs, dynamic_shapes={"pair": [{0: "n"}, {0: "n"}]})
    assert stated.dims == {"pair_0": {0: "n"}, "pair_1": {0: "n"}}
