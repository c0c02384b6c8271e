"""What a pass is: a frozen dataclass with a name, an effect, options as typed fields, and `run`."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from graphopt.errors import OptionError, PluginError

if typing.TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.aten import AtenContext
    from graphopt.rewriting.context import Context
    from graphopt.rewriting.editor import Editor
    from graphopt.rewriting.pattern import Match, Pattern


#: What may become of a pass that can lose, where speed is not measured.
UNMEASURED = ("keep", "leave-out")


class Effect(enum.StrEnum):
    """What a pass may do to the numbers, from the weakest to the strongest."""

    EXACT = "exact"
    """Outputs stay bit-identical."""
    ROUNDING = "rounding"
    """The same function over the reals; only floating-point rounding differs."""
    LOSSY = "lossy"
    """A different function: quantization, pruning."""

    @property
    def strength(self) -> int:
        """0 for exact, 1 for rounding, 2 for lossy."""
        return list(Effect).index(self)


class Refuse(Exception):
    """Raised by a guard: the pattern is there but the rewrite would not be safe or would not pay.

    Attributes:
        reason: one clause, in plain words, without the node's name ("the output has several consumers").
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason



def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """Declare an option of a pass: a dataclass field with its help and its range (both ends included)."""
    return dataclasses.field(
        default=default,
        metadata={"help": help, "minimum": minimum, "maximum": maximum, "choices": tuple(choices) if choices else None},
    )


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass, as read from its dataclass field."""

    name: str
    type: type
    default: Any
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[Any, ...] | None

    def parse(self, value: Any, owner: str) -> Any:
        """Convert a value from TOML or the command line to the option's type and check its range.

        Raises:
            OptionError: the value has the wrong type or is out of range.
        """
        where = f"option {owner}.{self.name}"
        try:
            parsed = _convert(value, self.type)
        except (TypeError, ValueError):
            raise OptionError(f"{where}: {value!r} is not a valid {self.type.__name__}") from None
        if self.choices and parsed not in self.choices:
            raise OptionError(f"{where}: {parsed!r} is not one of {', '.join(map(str, self.choices))}")
        if self.minimum is not None and parsed < self.minimum:
            raise OptionError(f"{where}: {parsed!r} is below the minimum of {self.minimum:g}")
        if self.maximum is not None and parsed > self.maximum:
            raise OptionError(f"{where}: {parsed!r} is above the maximum of {self.maximum:g}")
        return parsed


def _convert(value: Any, kind: type) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        if str(value).lower() not in words:
            raise ValueError(value)
        return words[str(value).lower()]
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(value)
        return int(value)
    if kind is float:
        if isinstance(value, bool):
            raise ValueError(value)
        return float(value)
    if kind is str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value
    raise TypeError(f"options of type {kind} are not supported")


@dataclasses.dataclass(frozen=True)
class Pass:
    """One named, typed transformation of a graph.

    A subclass is a frozen dataclass whose fields are its options, declared with `option`. It holds no state:
    what a run learns lives in the `Context`. The first line of the docstring is what `graphopt passes` prints.

    Attributes:
        name: kebab-case.
        effect: what it may do to the numbers.
        kinds: the kinds of graph that it works on.
        providers: short names of the execution providers that it pays on ("cpu"); a preset leaves it out on others.
            Empty: all.
        measured: it can lose on some targets: a run that measures speed keeps it or undoes it by what it measures.
        hides: the operators that it keeps the runtime from making ("com.microsoft::SkipLayerNormalization"). Where the runtime
            makes no more of them without the pass, it has nothing to gain, and a run that measures undoes it.
        narrows: each application makes one unit of the graph run on narrower numbers; a run that measures speed decides
            which of them are worth it.
        smaller: it is there to make the model smaller: it stays where that makes it slower, and the report says so.
        corrects: it makes up for what lossy passes before it rounded, and has nothing to do where they did nothing.
        calibrates: it asks for statistics of values on calibration samples (`context.calibrate`).
        before_export: of a pass on torch programs: whether it is of use where the program becomes an ONNX model.
        unmeasured: what becomes of it in a run that does not: "keep" or "leave-out".
        kept_on: short names of providers on which it is kept in such a run whatever `unmeasured` says.
    """

    name: ClassVar[str] = ""
    effect: ClassVar[Effect] = Effect.EXACT
    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    providers: ClassVar[frozenset[str]] = frozenset()
    measured: ClassVar[bool] = False
    hides: ClassVar[frozenset[str]] = frozenset()
    narrows: ClassVar[bool] = False
    corrects: ClassVar[bool] = False
    smaller: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    before_export: ClassVar[bool] = True
    unmeasured: ClassVar[str] = "keep"
    kept_on: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def options(cls) -> list[Option]:
        """The options of the pass, in the order of its fields."""
        hints = typing.get_type_hints(cls)
        return [
            Option(f.name.replace("_", "-"), hints[f.name], f.default, f.metadata.get("help", ""), f.metadata.get("minimum"),
                   f.metadata.get("maximum"), f.metadata.get("choices"))
            for f in dataclasses.fields(cls)
        ]

    @classmethod
    def configure(cls, values: Mapping[str, Any] | None = None) -> typing.Self:
        """An instance with the given option values.

        Raises:
            OptionError: an unknown option, or a value of the wrong type or out of range.
        """
        known = {o.name: o for o in cls.options()}
        parsed = {}
        for key, value in (values or {}).items():
            name = key.replace("_", "-")
            if name not in known:
                raise OptionError(f"pass {cls.name} has no option {key!r} (it has: {', '.join(known) or 'none'})")
            parsed[name.replace("-", "_")] = known[name].parse(value, cls.name)
        return cls(**parsed)

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().split("\n")[0]

    def run(self, context: Context) -> None:
        """Transform `context.model` in place, asking `context.log` before each change and telling it after."""
        raise NotImplementedError(f"{type(self).__name__}.run")

    def run_aten(self, context: AtenContext) -> None:
        """The same on `context.program`, an ATen graph, for a pass whose `kinds` name "torch"."""
        raise NotImplementedError(f"{type(self).__name__}.run_aten")


class Rewrite(Pass):
    """A pass given as pattern, guards and replacement.

    The driver finds candidates by the root operator of each pattern, calls `rewrite` on each match, and visits
    a node again only when something near it changed.
    """

    def patterns(self) -> Sequence[Pattern]:
        """The patterns, tried in order at each candidate; the first that matches is used."""
        raise NotImplementedError(f"{type(self).__name__}.patterns")

    def rewrite(self, match: Match, editor: Editor) -> None:
        """Check the guards and state the replacement through `editor`.

        Nothing is changed until this returns; raising `Refuse` leaves the graph as it was. Returning without
        having stated a replacement means that there was nothing to do.
        """
        raise NotImplementedError(f"{type(self).__name__}.rewrite")

    def run(self, context: Context) -> None:
        """Apply the rewrite to a fixpoint."""
        from graphopt.rewriting.driver import drive

        drive(self, context)


def check_contract(cls: type[Pass]) -> None:
    """Check that a class found in a plug-in keeps the contract of a pass.

    Raises:
        PluginError: naming the class and what is missing.
    """
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not cls.name or cls.name != cls.name.lower() or not all(p.isalnum() for p in cls.name.split("-")):
        raise PluginError(f"{where}: a pass needs a kebab-case name, not {cls.name!r}")
    if not cls.summary() or cls.summary().startswith(f"{cls.__name__}("):  # what dataclass writes where there is none
        raise PluginError(f"{where}: a pass needs a docstring; its first line is what `graphopt passes` prints")
    if not isinstance(cls.effect, Effect):
        raise PluginError(f"{where}: effect must be one of graphopt.Effect, not {cls.effect!r}")
    if cls.unmeasured not in UNMEASURED:
        raise PluginError(f"{where}: unmeasured must be one of {', '.join(UNMEASURED)}, not {cls.unmeasured!r}")
    params = vars(cls).get("__dataclass_params__")  # its own: an inherited one says nothing of this class's options
    if params is None or not params.frozen:
        raise PluginError(f"{where}: a pass must be a frozen dataclass")
    try:
        declared = cls.options()
    except Exception as error:
        raise PluginError(f"{where}: its options cannot be read: {error}") from error
    for field in declared:
        if field.default is dataclasses.MISSING:
            raise PluginError(f"{where}: option {field.name} needs a default")


def node_label(node: ir.Node) -> str:
    """How a report names a node: its name, or its operator and first output where it has none."""
    if node.name:
        return node.name
    for value in node.outputs:
        if value.name:
            return f"{node.op_type}({value.name})"
    return f"{node.op_type}(?)"
