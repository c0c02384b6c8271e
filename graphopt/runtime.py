"""Sessions of ONNX Runtime: how they are made, on what provider they run, and what their errors mean in one line.

Every session of graphopt comes from `session`, so that references, candidates and timings are made alike. ONNX Runtime
is imported by the first call that needs it: importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, InputError, ProviderError
from graphopt.settings import LEVELS, Settings

if TYPE_CHECKING:
    import onnxruntime as ort

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_SUFFIX = "executionprovider"

# Names that people use for a provider whose ONNX Runtime name is another one.
_ALIASES = {"gpu": "cuda", "trt": "tensorrt", "onednn": "dnnl", "mkldnn": "dnnl", "directml": "dml", "apple": "coreml"}

# The pip package that brings a provider, where there is one to name.
_INSTALL = {
    "cuda": "pip install graphopt[gpu]",
    "tensorrt": "pip install graphopt[gpu] (and TensorRT itself)",
    "openvino": "pip install onnxruntime-openvino",
    "dml": "pip install onnxruntime-directml",
}


@functools.cache
def _ort():
    """ONNX Runtime, imported once and told to keep quiet: what it has to say comes back as exceptions."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def version() -> str:
    """The version of ONNX Runtime."""
    return _ort().__version__


def usable_cores() -> int:
    """Cores that this process may run on: its affinity mask where the system has one (containers, taskset), all otherwise."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # no affinity on macOS and Windows
        return os.cpu_count() or 1


def resolve_provider(name: str) -> str:
    """ONNX Runtime's name of a provider, e.g. "CUDAExecutionProvider" for "cuda", "CUDA" or "CUDAExecutionProvider".

    Raises ProviderError where ONNX Runtime knows no such provider or this build of it lacks the provider; the message
    lists those it has. A provider that the build has may still fail to start: `session` finds that out.
    """
    ort = _ort()
    short = _ALIASES.get(short_name(name), short_name(name))
    available = ort.get_available_providers()
    for known in available:
        if short_name(known) == short:
            return known
    have = ", ".join(short_name(p) for p in available)
    if any(short_name(p) == short for p in ort.get_all_providers()):
        hint = f"; to get it: {_INSTALL[short]}" if short in _INSTALL else ""
        raise ProviderError(f"execution provider '{name}' is not in this build of ONNX Runtime {ort.__version__} (available: {have}){hint}")
    raise ProviderError(f"unknown execution provider '{name}' (available: {have})")


@functools.cache
def _kernels() -> dict[tuple[str, str, str], list[tuple[int, int, frozenset[str]]]]:
    """By provider, domain and operator: from which opset to which a kernel serves, and the types that it names."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[tuple[str, str, str], list[tuple[int, int, frozenset[str]]]] = {}
    for kernel in state.get_all_opkernel_def():
        types = frozenset(t for names in kernel.type_constraints.values() for t in names)
        first, last = kernel.version_range
        found.setdefault((kernel.provider, kernel.domain, kernel.op_name), []).append((first, last, types))
    return found


@functools.cache
def has_kernel(provider: str, domain: str, op_type: str, opset: int, element: str) -> bool | None:
    """Whether this build has a kernel of an operator with tensors of a type ("float16"); None: it tells nothing of the provider."""
    name = next((known for known in {key[0]: None for key in _kernels()} if same_provider(known, provider)), None)
    if name is None:
        return None
    domain = "" if domain == "ai.onnx" else domain
    served = _kernels().get((name, domain, op_type), ())
    return any(first <= opset <= last and f"tensor({element})" in types for first, last, types in served)


def session(
    model: str | os.PathLike | bytes,
    *,
    optimize: bool = True,
    threads: int = 0,
    provider: str = "cpu",
    settings: Settings | None = None,
    optimized_path: str | os.PathLike | None = None,
    profile_prefix: str | os.PathLike | None = None,
    severity: int = 4,
) -> ort.InferenceSession:
    """A session on a model file, or on the bytes of one.

    optimize: all of the runtime's own graph optimizations; off, the graph runs node by node as it is written.
    threads: threads within an operator; 0 for as many as there are usable cores. Operators run one after another.
    provider: any name that `resolve_provider` takes. The CPU runs the nodes that the provider has no kernel for.
    settings: which of the optimizations are run, where they are, and further entries; its threads are for the caller to pass.
    optimized_path: where the runtime shall write the graph that it ends with.
    profile_prefix: switches profiling on; `end_profiling` then returns the file, named from this prefix.
    severity: from which severity on the runtime writes its log to standard error; 4, fatal errors, for silence.

    Raises InputError (one line: file, node, cause) where the runtime turns the model down, and ProviderError where the
    provider is absent, fails to start or runs no node of the model, instead of running on the CPU without a word.
    """
    ort = _ort()
    wanted = resolve_provider(provider)
    if threads < 0:
        raise ValueError(f"threads must be 0 or more, not {threads}")
    settings = settings or Settings()
    options = ort.SessionOptions()
    options.log_severity_level = severity
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[settings.level if optimize else "disabled"])
    # Worker threads that spin after a run take the cores from whatever runs next, such as the other model of a pair.
    for key, value in {"session.force_spinning_stop": "1", **settings.config}.items():
        options.add_session_config_entry(key, value)
    if wanted != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if optimized_path is not None:
        options.optimized_model_filepath = os.fspath(optimized_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile_prefix)
    if wanted == CUDA or "Tensorrt" in wanted:
        _preload_cuda(ort)
    name = "model" if isinstance(model, bytes) else os.fspath(model)
    try:
        # Without enable_fallback=0 a provider that fails to start is swapped for the CPU after a line on standard output.
        made = ort.InferenceSession(
            model if isinstance(model, bytes) else name, options, providers=_chain(wanted, ort), enable_fallback=0,
            disabled_optimizers=list(settings.disabled) or None,
        )  # fmt: skip
    except Exception as error:  # the runtime's exceptions have no base class but Exception
        if wanted != CPU:
            # Whose fault is it? If the CPU takes the model, the provider's; if not, this raises what is wrong with the model.
            session(model, optimize=optimize, threads=threads)
            raise ProviderError(f"{name}: execution provider '{short_name(wanted)}' fails: {_SOURCE.sub('', _bare(error))}") from error
        raise _translate(error, name, wanted) from error
    made.graphopt_name = name
    _check_provider(made, wanted)
    return made


def run(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of one run by name, in the model's order: arrays, or lists and None for sequences and optionals.

    Raises InputError (one line) where a feed is missing, unknown or of the wrong type or shape, or where a node fails.
    """
    name = getattr(session, "graphopt_name", "model")
    check_feeds(session, feeds)
    outputs = [o.name for o in session.get_outputs()]
    try:
        return dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))
    except Exception as error:  # the runtime's exceptions have no base class but Exception
        raise _translate(error, name, session.get_providers()[0]) from error


def check_feeds(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> None:
    """Raises InputError where an input of the model has no feed, a feed has no input, or an array has the wrong type."""
    name = getattr(session, "graphopt_name", "model")
    inputs = [i.name for i in session.get_inputs()]
    overridable = {i.name for i in session.get_overridable_initializers()}
    missing = [i for i in inputs if i not in feeds]
    if missing:
        raise InputError(f"{name}: no value for input {_quoted(missing)}")
    for i in session.get_inputs():
        # The runtime's own message does not say which input it was.
        want, got = _DTYPES.get(i.type), getattr(feeds[i.name], "dtype", None)
        if want and got is not None and str(got) != want:
            raise InputError(f"{name}: input '{i.name}' is {got}, the model takes {want}")
    unknown = [f for f in feeds if f not in inputs and f not in overridable]
    if unknown:
        raise InputError(f"{name}: no input named {_quoted(unknown)} (the inputs are {_quoted(inputs) or 'none'})")


def assignment(session: ort.InferenceSession) -> dict[str, int] | None:
    """Nodes of the final graph that each provider runs, {provider: count}; None where the runtime did not record it.

    Recorded for every provider but the CPU, by ONNX Runtime versions that have `get_provider_graph_assignment_info`.
    """
    try:
        parts = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):  # an older runtime, or a session made without the recording
        return None
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):  # Fail: not recorded
            return None
        raise
    counts: dict[str, int] = {}
    for part in parts:
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts


# numpy's name of each of the runtime's types that numpy itself has.
_DTYPES = {f"tensor({t})": t for t in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
_DTYPES |= {"tensor(float16)": "float16", "tensor(float)": "float32", "tensor(double)": "float64"}


def short_name(name: str) -> str:
    """A provider's name as people write it: "cpu" for "CPUExecutionProvider"."""
    return name.strip().lower().removesuffix(_SUFFIX)


def same_provider(one: str, other: str) -> bool:
    """Whether two names, as people write them, are those of one provider."""
    first, second = (_ALIASES.get(short_name(n), short_name(n)) for n in (one, other))
    return first == second


def _quoted(names) -> str:
    shown = [f"'{n}'" for n in names]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:8], f"and {len(shown) - 8} more"])


def _chain(wanted: str, ort) -> list[str]:
    """Providers in the order in which the runtime offers them each node: what TensorRT leaves goes to CUDA, the rest to the CPU."""
    chain = [wanted]
    if "Tensorrt" in wanted and CUDA in ort.get_available_providers():
        chain.append(CUDA)
    if wanted != CPU:
        chain.append(CPU)
    return chain


@functools.cache
def _preload_cuda(ort) -> None:
    """Loads CUDA and cuDNN from the nvidia-* wheels where they are installed: they are on no library path."""
    if hasattr(ort, "preload_dlls"):
        # It prints what it does not find. That is no error: the system's own libraries may do.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _check_provider(made: ort.InferenceSession, wanted: str) -> None:
    """Raises ProviderError where the session does not really run on the provider that was asked for."""
    if wanted == CPU:
        return
    if wanted not in made.get_providers():
        raise ProviderError(
            f"execution provider '{short_name(wanted)}' is in this build of ONNX Runtime but fails to start here: {_why(wanted)}"
        )
    counts = assignment(made)
    if counts and sum(counts.values()) and not counts.get(wanted):
        raise ProviderError(
            f"{made.graphopt_name}: execution provider '{short_name(wanted)}' can run no node of this model; "
            "ONNX Runtime gave them all to " + ", ".join(sorted(short_name(p) for p in counts))
        )


def _why(wanted: str) -> str:
    """Why a provider's library does not start: what the dynamic loader says, the one who knows of a missing library."""
    import ctypes

    capi = Path(_ort().__file__).parent / "capi"
    name = {CUDA: "cuda"}.get(wanted, short_name(wanted))
    library = capi / f"libonnxruntime_providers_{name}.so"
    if library.exists():
        try:
            ctypes.CDLL(str(capi / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(library))
        except OSError as error:
            hint = "; to get CUDA's libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'" if wanted == CUDA else ""
            return _one_line(str(error)) + hint
    return "no usable device or driver"


def _one_line(text: str) -> str:
    return " ".join(text.split())


# What the runtime says, and what to say instead. Tried in order on the message without its "[ONNXRuntimeError]" marks.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (r"No graph was found in the protobuf", "not an ONNX model: it holds no graph"),
    (r"rotobuf parsing failed", "not an ONNX model, or truncated (it does not parse)"),
    (r"File doesn't exist", "no such file"),
    (
        r'In Node, \("(?P<node>[^"]*)", (?P<op>\S+), "(?P<domain>[^"]*)".*Error No Op registered for \S+ with domain_version of (?P<v>\d+)',
        "node '{node}': ONNX Runtime has no operator {domain_op} in opset {v}",
    ),
    (
        r'In Node, \("(?P<node>[^"]*)", (?P<op>\S+), "(?P<domain>[^"]*)".*Error No opset import for domain',
        "node '{node}' ({domain_op}): the model imports no opset of domain '{domain}'",
    ),
    (
        r'In Node, \("(?P<node>[^"]*)", (?P<op>\S+), "(?P<domain>[^"]*)".*?, Error (?P<cause>.*)',
        "node '{node}' ({domain_op}): {cause}",
    ),
    (
        r"(?P<domain>[\w.\-]*):(?P<op>[\w.]+)\(-?\d+\) is not a registered function/op",
        "unsupported operator {domain_op}: ONNX Runtime has no such operator",
    ),
    (
        r"Could not find an implementation for (?P<op>\w+)\((?P<v>\d+)\) node with name '(?P<node>[^']*)'",
        "node '{node}': ONNX Runtime has no kernel of {op} (opset {v}) for these types",
    ),
    (
        r"Unsupported model IR version: (?P<v>\d+), max supported IR version: (?P<max>\d+)",
        "IR version {v} is newer than ONNX Runtime supports (up to {max})",
    ),
    (
        r"Opset (?P<v>\d+) is under development.*support for domain (?P<domain>\S+) is till opset (?P<max>\d+)",
        "opset {v} of domain {domain} is newer than ONNX Runtime supports (up to {max})",
    ),
    (
        r"initializer: (?P<tensor>.+?)\. .*External data path does not exist: \"(?P<file>[^\"]*)\"",
        "external data file missing: {file} (tensor '{tensor}')",
    ),
    (
        r"External initializer: (?P<tensor>\S+) offset: .*?given file_length: \d+ are out of bounds.*",
        "external data file too short for tensor '{tensor}'",
    ),
    (
        r"running (?P<op>\S+) node\. Name:'(?P<node>[^']*)' Status Message: (?P<cause>.*)",
        "node '{node}' ({op}) failed: {cause}",
    ),
    (r"Node \((?P<node>[^)]*)\) Op \((?P<op>\w+)\) (?P<cause>.*)", "node '{node}' ({op}): {cause}"),
    (r"This is an invalid model\.? (?:Error: )?(?P<cause>.*)", "invalid model: {cause}"),
    (
        r"Got invalid dimensions for input: (?P<input>.+?) for the following indices (?P<cause>.*?)(?: Please fix.*)?$",
        "input '{input}' has a shape that the model does not take: {cause}",
    ),
    (
        r"Invalid rank for input: (?P<input>.+?) Got: (?P<got>\d+) Expected: (?P<want>\d+)",
        "input '{input}' has {got} dimensions, the model takes {want}",
    ),
    (r"(?:bad_alloc|BFCArena::\S* .*|Failed to allocate memory.*)", "out of memory ({0})"),
)

# Where in the runtime's sources an error arose: a file with a line and often a whole C++ signature. It helps no user.
_SOURCE = re.compile(r"(?:/\S+/)?\w+\.(?:cc|h|cu|cuh|cpp):\d+ (?:[\w:<>~ *&]*\([^()]*(?:\([^()]*\)[^()]*)*\)(?: const)? )?")


def _bare(error: Exception) -> str:
    """What an exception of the runtime says, on one line and without its codes."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", _one_line(str(error)))
    return re.sub(r"^Load model from .*? failed:\s*", "", text) or type(error).__name__


def _translate(error: Exception, name: str, provider: str) -> GraphoptError:
    """The runtime's exception as one of ours, in one line that names the file, the node and the cause."""
    text = _bare(error)
    if provider != CPU and re.search(r"\bCUDA (?:failure|error)|CUDNN_STATUS|CUBLAS_STATUS|no CUDA-capable", text, re.I):
        return ProviderError(f"{name}: execution provider '{short_name(provider)}' failed: {_SOURCE.sub('', text)}")
    for pattern, meaning in _MEANINGS:
        if found := re.search(pattern, text):
            parts = found.groupdict(default="")
            if "op" in parts:
                parts["domain_op"] = f"{parts['domain']}::{parts['op']}" if parts.get("domain") else parts["op"]
            parts = {k: _SOURCE.sub("", v).strip() for k, v in parts.items()}
            return InputError(f"{name}: {meaning.format(found.group(0), **parts)}")
    return InputError(f"{name}: {_SOURCE.sub('', text).strip()}")
