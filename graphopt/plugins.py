"""The skeleton of a plug-in: a pass that works and its test, for an author to change."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from graphopt.errors import OptionError, OutputError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_PASS = '''"""What the pass is for, in a line or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt import Editor, Effect, Match, Pattern, Refuse, Rewrite, op, option, var


@dataclass(frozen=True)
class @CLASS@(Rewrite):
    """Replace Neg(Neg(x)) by x."""

    name = "@NAME@"
    effect = Effect.EXACT  # or ROUNDING: the same function but for rounding; or LOSSY: another function

    keep_shared: bool = option(False, "leave a pair alone if the value between its nodes is used elsewhere too")

    def patterns(self) -> Sequence[Pattern]:
        """Where to look: a Neg that is fed by a Neg."""
        return (op("Neg", op("Neg", var("x"), bind="inner"), bind="outer"),)

    def rewrite(self, match: Match, editor: Editor) -> None:
        """Refuse with a reason what would not be safe, then state the replacement."""
        between = match["inner"].outputs[0]
        if self.keep_shared and len(between.uses()) > 1:
            raise Refuse("the value between the two nodes is used elsewhere too")
        editor.replace(match["outer"].outputs[0], match["x"])
'''

_TEST = '''"""@NAME@: the graph that it makes, what it refuses, and that the numbers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from graphopt import ChangeLog, Context, Registry

REGISTRY = Registry()
REGISTRY.load_plugin(str(Path(__file__).with_name("@MODULE@.py")))

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
graph (float[2, 3] x) => (float[2, 3] y) {
    a = Neg(x)
    b = Neg(a)
    y = Relu(b)
}"""
SHARED = MODEL.replace("Relu(b)", "Add(a, b)")


def optimized(text: str, **options: object) -> tuple[ir.Model, ChangeLog]:
    model, log = ir.from_onnx_text(text), ChangeLog("@NAME@")
    REGISTRY.get("@NAME@").configure(options).run(Context(model, log))
    return model, log


def answers(model: ir.Model) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    return session.run(None, {"x": x})[0]


def test_the_pair_goes_and_the_numbers_stay() -> None:
    after, log = optimized(MODEL)
    assert [node.op_type for node in after.graph] == ["Relu"]
    assert log.applied == 1
    np.testing.assert_array_equal(answers(after), answers(ir.from_onnx_text(MODEL)))


def test_a_shared_value_can_be_kept() -> None:
    after, log = optimized(SHARED, keep_shared=True)
    assert [node.op_type for node in after.graph] == ["Neg", "Neg", "Add"]
    assert [r.reason for r in log.refusals] == ["the value between the two nodes is used elsewhere too"]


def test_a_shared_value_is_no_obstacle_otherwise() -> None:
    after, _ = optimized(SHARED)
    assert [node.op_type for node in after.graph] == ["Neg", "Add"]
    np.testing.assert_array_equal(answers(after), answers(ir.from_onnx_text(SHARED)))
'''


def write_skeleton(name: str, folder: Path) -> tuple[Path, Path]:
    """Write the pass `name` and its test into a folder; returns both files, `<name>.py` with "_" for "-" and its test.

    Raises:
        OptionError: the name is not kebab-case.
        OutputError: a file is there already, or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f"pass name {name!r}: expected kebab-case, such as fuse-conv-bn")
    module = name.replace("-", "_")
    if keyword.iskeyword(module):
        raise OptionError(f"pass name {name!r}: is a word of Python's own, which no module can be called")
    if not folder.is_dir():
        raise OutputError(f"{folder}: there is no such folder")
    source, test = folder / f"{module}.py", folder / f"test_{module}.py"
    for path in (source, test):
        if path.exists():
            raise OutputError(f"{path}: is there already; it is not overwritten")
    fill = {"@NAME@": name, "@MODULE@": module, "@CLASS@": "".join(p.capitalize() for p in name.split("-"))}
    for path, text in ((source, _PASS), (test, _TEST)):
        for mark, value in fill.items():
            text = text.replace(mark, value)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    return source, test
