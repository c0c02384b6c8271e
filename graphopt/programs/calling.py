"""Running modules of torch on arrays by name, as verification and timing do; the user's own module is left as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.programs.captured import Captured
from graphopt.programs.failures import line_of_error
from graphopt.programs.torch_side import in_eval_mode, preserved

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """That many threads within an operator of torch inside (0: every usable core), and as many as before after."""
    import torch

    from graphopt.runtime import usable_cores

    before = torch.get_num_threads()
    torch.set_num_threads(threads or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Caller:
    """A module that takes what a captured one takes and gives what it gives, run on arrays.

    Where a call changes buffers or inputs, each run is of a module as it was at first, called twice: the answers of
    both calls, and what the buffers and inputs hold after each, are outputs too.

    Attributes:
        output_names: of the captured outputs; then, with state, of the second call and of what changed.
    """

    def __init__(self, captured: Captured, module: torch.nn.Module, *, threads: int = 0, state: bool = True) -> None:
        """state: whether what changes is among the outputs, where anything does."""
        signature = captured.program.graph_signature
        self.captured, self.threads = captured, threads
        self.buffers = tuple(dict.fromkeys(signature.buffers_to_mutate.values()))
        self.changed = tuple(dict.fromkeys(signature.user_inputs_to_mutate.values()))
        self.module = apart(module, self.buffers)
        self.output_names = list(captured.outputs)
        self.calls = 1
        if state and self.stateful:
            self.calls = 2
            self.output_names = [
                f"{name}{suffix}"
                for suffix in ("", " (second call)")
                for name in (*captured.outputs, *(f"buffer {b}" for b in self.buffers), *(f"input {i}, changed" for i in self.changed))
            ]

    @property
    def stateful(self) -> bool:
        """Whether a call changes anything that a second one sees, or that the caller does."""
        return bool(self.buffers or self.changed)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for feeds, arrays by input.

        Raises:
            GraphoptError: the module raises; one line, with the line of the user's code where it did.
        """
        import torch

        module = apart(self.module, self.buffers) if self.stateful else self.module
        found: list[np.ndarray] = []
        with threads_of(self.threads), torch.no_grad(), in_eval_mode(module), preserved(module):
            for _ in range(self.calls):
                tensors = self.tensors(feeds)
                found += self._answer(module, tensors)
                if self.calls > 1:
                    held = dict(module.named_buffers(remove_duplicate=False))
                    found += [as_array(held[name], own=True) for name in self.buffers]
                    found += [as_array(tensors[name], own=True) for name in self.changed]
        return dict(zip(self.output_names, found, strict=True))

    def ready(self, feeds: Mapping[str, Any]) -> Callable[[], Any]:
        """What runs the module once on feeds that are in place, as a server would: without gradients or any copy."""
        import torch

        args, kwargs = self.captured.call_with(self.tensors(feeds))
        module = self.module

        def call() -> Any:
            with torch.inference_mode():
                return module(*args, **kwargs)

        return call

    def tensors(self, feeds: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The feeds as tensors of their own, where the example inputs are."""
        from graphopt.aten.arrays import to_tensor

        examples = self.captured.tensors()
        return {name: to_tensor(np.array(feeds[name])).to(example.device) for name, example in examples.items()}

    def _answer(self, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
        from torch.utils import _pytree as pytree

        args, kwargs = self.captured.call_with(tensors)
        try:
            leaves = pytree.tree_leaves(module(*args, **kwargs))
        except Exception as error:  # the user's own code: it may raise anything
            raise GraphoptError(raised(error)) from error
        wanted = self.captured.program.graph_signature.user_outputs
        if len(leaves) != len(wanted):
            raise GraphoptError(f"it returns {len(leaves)} values, not {len(wanted)}")
        return [as_array(leaf, own=self.stateful) for leaf, name in zip(leaves, wanted, strict=True) if isinstance(name, str)]


def apart(module: torch.nn.Module, buffers: tuple[str, ...] = ()) -> torch.nn.Module:
    """A module of its own that shares the parameters, and the buffers that no call changes, with `module`.

    Where a module cannot be copied it is the module itself; its buffers are put back after every run then.
    """
    own = {id(b) for name, b in module.named_buffers(remove_duplicate=False) if name in buffers}
    shared = [*module.parameters(), *(b for b in module.buffers() if id(b) not in own)]
    try:
        made = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
        for part in made.modules():  # not eval(), which exported programs do not have
            part.training = False
        return made
    except Exception:  # locks, files, generators: what a module may hold that has no copy
        return module


def as_array(value: Any, *, own: bool = False) -> np.ndarray:
    """A result of a module as an array; types that numpy lacks as float32. `own`: not shared with the tensor."""
    import torch

    from graphopt.aten.arrays import to_array

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    dense = value.detach()
    if dense.is_quantized:
        dense = dense.dequantize()
    if dense.layout is not torch.strided:
        dense = dense.to_dense()
    array = to_array(dense)
    if array is None:
        array = dense.to(torch.float32).cpu().numpy()
    return np.array(array) if own else array


def raised(error: BaseException) -> str:
    """An exception of the user's code in one line, with the line where it was raised."""
    place = line_of_error(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}" + (f": {first[:300]}" if first else "") + (f", at {place}" if place is not None else "")
