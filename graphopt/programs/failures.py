"""Why a module could not be exported: the line of the user's code, the cause in a clause, and the usual remedy."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

_OURS = str(Path(__file__).resolve().parents[1])
_LIBRARY = tuple({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")})
_TORCHS = ("torch", "torchgen", "functorch", "sympy", "mpmath", "numpy", "onnxscript", "onnx_ir")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Line:
    """A line of source code."""

    file: str
    number: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" + (f" ({self.text})" if self.text else "")


#: What a message of torch looks like, what it means, and what usually helps. The first that matches counts.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"missing a required argument: '(\w+)'|missing \d+ required positional arguments?: (.+)",
        "the example inputs lack {found}",
        "give a tensor for every argument of forward that has no default",
    ),
    (
        r"got an unexpected keyword argument '(\w+)'|too many positional arguments|takes \d+ positional arguments? but",
        "the example inputs do not fit the arguments of forward",
        "give them as a tuple in the order of forward's arguments, or by name",
    ),
    (
        r"Could not guard on data-dependent expression (?:Eq\(u\d+, 1\)|.*Ne\(u\d+, 1\))|Data-dependent branching|"
        r"Dynamic control flow is not supported",
        "what happens next depends on a value in a tensor",
        "write it with torch.where or torch.cond, or make the choice a constant of the module",
    ),
    (
        r"Could not guard on data-dependent expression (.+?)\s*\(unhinted|"
        r"Could not extract specialized integer from data-dependent expression (.+?)\s*\(unhinted|"
        r"data-dependent|Tensor\.item\(\)|\.tolist\(\)",
        "a size or an index depends on a value in a tensor",
        "say what is known of it with torch._check, or take it from a shape or a constant instead",
    ),
    (
        r"\.numpy\(\) is not supported|can't convert.*numpy|__array__|numpy",
        "it leaves torch for numpy, where nothing can be traced",
        "use the torch function of the same name",
    ),
    (
        r"Constraints violated|conflicts between user-specified ranges|marked .* as dynamic but|Dim\.DYNAMIC",
        "a dim that was asked to be dynamic is not: {first}",
        "leave it fixed, or use the range suggested{suggested}",
    ),
    (
        r"dynamic_shapes",
        "the dynamic shapes do not fit the inputs: {first}",
        "name the arguments of forward and their axes, as in {{'image': {{0: 'batch'}}}}",
    ),
    (
        r"no fake impl|UnsupportedOperatorException|DataDependentOutputException|Operator does not support running with fake tensors",
        "it calls an operator whose result's shape torch cannot tell",
        "register a fake implementation with torch.library.register_fake, or replace the operator",
    ),
    (
        r"__torch__|LinearPackedParams|ScriptObject",
        "it holds an object of TorchScript (a quantized or scripted layer), which cannot be traced",
        "give the module as it was before it was quantized or scripted",
    ),
    (
        r"Found <class '(?:.*\.)?(\w+)'> in output",
        "forward returns a {found}, which torch does not know",
        "return tensors, or a tuple or dict of them",
    ),
    (
        r"data pointer",
        "it asks where a tensor lies in memory",
        "make the code that does so an operator with torch.library.custom_op, or leave it out",
    ),
    (
        r"Attempted to set|mutat|was assigned during export|buffer.*not registered",
        "forward changes an attribute of the module",
        "register what changes as a buffer with register_buffer, or return it",
    ),
    (
        r"Unsupported|graph break|not supported|Could not trace|non-fake|unbacked",
        "it does what torch.export cannot trace: {first}",
        "take that call out of forward, or write it in torch operators",
    ),
)


def line_of_error(error: BaseException) -> Line | None:
    """The innermost line of the user's own code that the error, or what caused it, went through."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        stacks = [traceback.extract_tb(current.__traceback__), getattr(current, "real_stack", None) or ()]
        for stack in stacks:
            for frame in reversed(list(stack)):
                if is_users(frame.filename):
                    return Line(frame.filename, frame.lineno or 0, (frame.line or "").strip())
        found = line_in_text(str(current))
        if found is not None:
            return found
        todo += [current.__cause__, current.__context__]
    return None


def line_in_text(text: str) -> Line | None:
    """The last line of the user's own code that a stack trace in words names."""
    found = [(file, int(number)) for file, number in _FRAME.findall(text or "") if is_users(file)]
    if not found:
        return None
    file, number = found[-1]
    return Line(file, number, linecache.getline(file, number).strip())


def is_users(file: str) -> bool:
    """Whether a file is the user's own code: no part of Python, of an installed package of torch's, or of graphopt."""
    if file.startswith("<"):
        return False
    path = str(Path(file).resolve()) if not file.startswith("/") else file
    if path.startswith(_OURS):
        return False
    parts = Path(path).parts
    for place in ("site-packages", "dist-packages"):
        if place in parts:  # a package of models, such as transformers, is a user's code; torch and what it stands on is not
            return parts[parts.index(place) + 1] not in _TORCHS
    return not path.startswith(_LIBRARY)


def explain(error: BaseException, what: str) -> str:
    """One line: what could not be exported, where, why, and what usually helps."""
    message = str(error)
    place = line_of_error(error)
    cause, remedy = _cause_of(error, message)
    where = f" at {place}" if place is not None else ""
    return f"{what}: torch.export failed{where}: {cause}" + (f"; {remedy}" if remedy else "")


def _cause_of(error: BaseException, message: str) -> tuple[str, str]:
    text = f"{type(error).__name__}: {message}"
    for pattern, cause, remedy in _CAUSES:
        match = re.search(pattern, text)
        if match is None:
            continue
        found = next((group for group in match.groups() if group), "") if match.groups() else ""
        words = {
            "found": f"'{found}'" if re.fullmatch(r"\w+", found) else found,
            "first": _first(message),
            "suggested": _suggested(message),
        }
        return cause.format(**words), remedy.format(**words)
    return f"{type(error).__name__}: {_first(message)}", ""


def _first(message: str) -> str:
    """The first line of a message that says something, without torch's advice on its own logs."""
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line.split("  (Size-like")[0].split("! For more information")[0] for line in lines if line and not line.endswith(":")]
    if len(lines) > 1 and (lines[0].startswith("Constraints violated") or lines[0].endswith("model tracing:")):
        lines = lines[1:]
    first = lines[0] if lines else "no reason was given"
    first = re.sub(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]", r"axis \2 of '\1'", first)
    first = first.split(" If you're using mark_dynamic")[0]
    return first if len(first) <= 240 else first[:237] + "..."


def _suggested(message: str) -> str:
    _, _, rest = message.partition("Suggested fixes:")
    fixes = [line.strip() for line in rest.splitlines() if "=" in line]
    return f" ({', '.join(fixes)})" if fixes else ""
