"""What single rewrites gain: small models, each with one thing that ONNX Runtime leaves, timed before and after.

    python -m benchmarks.probes [NAME...] [--preset default] [--threads 1] [--seconds 5]

Each probe is built, optimized (without dropping what is slower) and timed against its original in interleaved pairs,
fresh sessions, all runtime optimizations on. A ratio above 1 is faster; the interval is its 95 % confidence interval.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from graphopt.measurement import compare
from graphopt.request import Request
from graphopt.run import optimize
from tests.support import array, model, node

Nodes = list[onnx.NodeProto]
Weights = dict[str, np.ndarray]


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Values of such a size that activations keep theirs from layer to layer."""
    return array(*shape, seed=seed) / np.float32(np.sqrt(max(1, np.prod(shape[1:] if len(shape) > 2 else shape[:1]))))


def norm(x: str, y: str, channels: int, seed: int) -> tuple[Nodes, Weights]:
    """A BatchNormalization."""
    weights = {f"{y}_{p}": array(channels, seed=seed + i, low=0.5) for i, p in enumerate("sbmv")}
    return [node("BatchNormalization", [x, *weights], [y])], weights


def built(nodes: Sequence[onnx.NodeProto], x: Sequence[int], weights: Weights, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    return model(nodes, {"x": list(x)}, list(outputs), weights)


def denormals(kind: str, share: float) -> onnx.ModelProto:
    """One operator, a share of whose weights is denormal."""
    data = weight(256, 256) if kind == "MatMul" else weight(64, 64, 3, 3)
    data[np.random.default_rng(0).random(data.shape) < share] = 1e-40
    shape = (1, 64, 256) if kind == "MatMul" else (1, 64, 28, 28)
    return built([node(kind, ["x", "w"], ["y"])], shape, {"w": data})


def parallel_convs(count: int, channels: int, *, meet: bool) -> onnx.ModelProto:
    """1x1 convolutions of one input, whose outputs meet in a Concat or are used apart."""
    nodes, weights, outputs = [], {}, []
    for i in range(count):
        weights |= {f"w{i}": weight(channels, 64, 1, 1, seed=i), f"k{i}": array(channels, seed=i)}
        nodes += [node("Conv", ["x", f"w{i}", f"k{i}"], [f"c{i}"]), node("Relu", [f"c{i}"], [f"r{i}"])]
        outputs.append(f"r{i}")
    if meet:
        nodes.append(node("Concat", outputs, ["y"], axis=1))
    return built(nodes, (1, 64, 28, 28), weights, ["y"] if meet else outputs)


def repvgg(kernels: Sequence[int], *, depthwise: bool, average: bool) -> onnx.ModelProto:
    """Blocks of convolutions with norms, a norm of the input and perhaps an average, added up."""
    channels, nodes, weights, x = 64, [], {}, "x"
    for block in range(3):
        terms = []
        for i, size in enumerate(kernels):
            name = f"b{block}_{i}"
            weights[f"{name}_w"] = weight(channels, 1 if depthwise else channels, size, size, seed=i)
            nodes.append(node("Conv", [x, f"{name}_w"], [f"{name}_c"], pads=[size // 2] * 4, group=channels if depthwise else 1))
            terms.append(name)
        if average:
            nodes.append(node("AveragePool", [x], [f"b{block}_a_c"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1))
            terms.append(f"b{block}_a")
        for i, name in enumerate((*terms, f"b{block}_n")):
            made, parameters = norm(f"{name}_c" if name in terms else x, name, channels, 10 * i)
            nodes, weights = nodes + made, weights | parameters
        y = "y" if block == 2 else f"x{block}"
        nodes += [node("Sum", [*terms, f"b{block}_n"], [f"b{block}_s"]), node("Relu", [f"b{block}_s"], [y])]
        x = y
    return built(nodes, (1, channels, 28, 28), weights)


def matmul_mul_add() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "m"], ["b"]), node("Add", ["b", "k"], ["y"])]
    return built(nodes, (1, 128, 256), {"w": weight(256, 256), "m": array(256, low=0.5), "k": array(256, seed=1)})


def input_normalization(pad: int) -> onnx.ModelProto:
    nodes = [
        node("Sub", ["x", "mean"], ["a"]), node("Div", ["a", "std"], ["b"]),
        node("Conv", ["b", "w", "k"], ["c"], pads=[pad] * 4, strides=[2, 2]), node("Relu", ["c"], ["y"]),
    ]  # fmt: skip
    weights = {"mean": array(1, 3, 1, 1, low=0.1), "std": array(1, 3, 1, 1, seed=1, low=0.5), "w": weight(16, 3, 3, 3), "k": array(16)}
    return built(nodes, (1, 3, 224, 224), weights)


def conv_reshape_mul_add() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w", "k"], ["a"], pads=[1] * 4), node("Reshape", ["a", "shape"], ["b"]), node("Mul", ["b", "m"], ["c"]),
        node("Add", ["c", "n"], ["y"]),
    ]  # fmt: skip
    weights = {"w": weight(64, 64, 3, 3), "k": array(64), "shape": np.asarray([1, 64, 784]), "m": array(64, 1, low=0.5), "n": array(64, 1)}
    return built(nodes, (1, 64, 28, 28), weights)


def attention_inputs(rows: int) -> onnx.ModelProto:
    """Q, K and V: three products of one input."""
    nodes, weights = [], {}
    for name in "qkv":
        weights |= {f"w{name}": weight(384, 384, seed=ord(name)), f"k{name}": array(384, seed=ord(name))}
        nodes += [node("MatMul", ["x", f"w{name}"], [f"m{name}"]), node("Add", [f"m{name}", f"k{name}"], [name])]
    return built(nodes, (1, rows, 384), weights, list("qkv"))


def norm_conv(*, between: str | None) -> onnx.ModelProto:
    """A norm before a convolution, with a pooling or a Relu between them."""
    nodes, weights = norm("x", "n", 64, 3)
    last = "n"
    if between:
        nodes.append(node(between, ["n"], ["p"], **({"kernel_shape": [2, 2], "strides": [2, 2]} if between == "MaxPool" else {})))
        last = "p"
    return built([*nodes, node("Conv", [last, "w", "k"], ["y"])], (1, 64, 56, 56), weights | {"w": weight(64, 64, 3, 3), "k": array(64)})


def norm_of_rows() -> onnx.ModelProto:
    """A norm of rank 2 with nothing beside it, which must stay: Mul and Add are a third as fast."""
    nodes, weights = norm("x", "n", 512, 3)
    return built([*nodes, node("Relu", ["n"], ["y"])], (256, 512), weights)


def norm_behind_concat() -> onnx.ModelProto:
    nodes = [node("Conv", ["x", f"w{i}"], [f"c{i}"], pads=[1] * 4) for i in range(3)] + [node("Concat", ["c0", "c1", "c2"], ["d"], axis=1)]
    made, weights = norm("d", "n", 96, 3)
    weights |= {f"w{i}": weight(32, 32, 3, 3, seed=i) for i in range(3)}
    return built([*nodes, *made, node("Relu", ["n"], ["y"])], (1, 32, 28, 28), weights)


def scaled_blocks() -> onnx.ModelProto:
    """A hard swish, a learned scale and shift, and a padded depthwise convolution: four times, as in PP-LCNet."""
    nodes, weights, x = [], {"a": np.float32(0.7), "b": np.float32(0.1)}, "x"
    for i in range(4):
        weights[f"w{i}"] = weight(64, 1, 3, 3, seed=i)
        y = "y" if i == 3 else f"y{i}"
        nodes += [
            node("HardSwish", [x], [f"h{i}"]), node("Mul", [f"h{i}", "a"], [f"m{i}"]), node("Add", [f"m{i}", "b"], [f"s{i}"]),
            node("Conv", [f"s{i}", f"w{i}"], [y], pads=[1] * 4, group=64),
        ]  # fmt: skip
        x = y
    return built(nodes, (1, 64, 56, 56), weights)


def padded_column() -> onnx.ModelProto:
    """A Pad before a long kernel over one column, which must stay: padding in the Conv is a quarter as fast."""
    nodes = [
        node("Conv", ["x", "v"], ["a"]), node("Relu", ["a"], ["b"]), node("Pad", ["b", "pads", ""], ["c"]), node("Conv", ["c", "w"], ["y"]),
    ]  # fmt: skip
    weights = {"v": weight(128, 128, 1, 1), "w": weight(16, 128, 64, 1), "pads": np.asarray([0, 0, 31, 0, 0, 0, 32, 0])}
    return built(nodes, (1, 128, 128, 1), weights)


def padded_conv() -> onnx.ModelProto:
    """A Pad before a 3x3 kernel, in the form that the runtime does not fold itself."""
    nodes = [node("Conv", ["x", "v"], ["b"]), node("Pad", ["b", "pads", ""], ["c"]), node("Conv", ["c", "w"], ["y"])]
    weights = {"v": weight(32, 32, 1, 1), "w": weight(32, 32, 3, 3), "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1])}
    return built(nodes, (1, 32, 56, 56), weights)


PROBES: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"denormal-{k.lower()}-{s:g}%": partial(denormals, k, s / 100) for k in ("MatMul", "Conv") for s in (0.1, 1, 10)},
    "parallel-convs-concat": partial(parallel_convs, 4, 16, meet=True),
    "parallel-convs-concat-narrow": partial(parallel_convs, 4, 8, meet=True),
    "parallel-convs-apart-narrow": partial(parallel_convs, 4, 8, meet=False),
    "parallel-convs-apart-wide": partial(parallel_convs, 3, 64, meet=False),
    "repvgg": partial(repvgg, (3, 1), depthwise=False, average=False),
    "repvgg-average": partial(repvgg, (3, 1), depthwise=False, average=True),
    "mobileone": partial(repvgg, (3, 3, 3, 3, 1), depthwise=True, average=False),
    "matmul-mul-add": matmul_mul_add,
    "input-normalization": partial(input_normalization, 0),
    "input-normalization-padded": partial(input_normalization, 1),
    "conv-reshape-mul-add": conv_reshape_mul_add,
    "qkv-1": partial(attention_inputs, 1),
    "qkv-16": partial(attention_inputs, 16),
    "qkv-128": partial(attention_inputs, 128),
    "norm-conv": partial(norm_conv, between=None),
    "norm-pool-conv": partial(norm_conv, between="MaxPool"),
    "norm-of-rows": norm_of_rows,
    "norm-behind-concat": norm_behind_concat,
    "scale-shift-conv": scaled_blocks,
    "padded-conv": padded_conv,
    "padded-column": padded_column,
}


def row(name: str, proto: onnx.ModelProto, options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "probe.onnx", Path(folder) / "result.onnx"
        onnx.save(proto, source)
        report = optimize(Request(source, target, preset=options.preset, threads=options.threads, bench=False)).report
        dims = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
        speed = compare(source, target, {"x": array(*dims)}, threads=options.threads, max_seconds=options.seconds)
    return (
        f"| {name} | {report.verification['verdict']} | {report.before['nodes']} to {report.after['nodes']} | {speed.ratio:.2f} "
        f"| {speed.low:.2f} to {speed.high:.2f} | {speed.before_ms:.3f} | {speed.after_ms:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all without it: {', '.join(PROBES)}".replace("%", "%%"))
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, for each probe")
    options = parser.parse_args()
    print("| probe | verdict | nodes | ratio | interval | ms before | ms after |\n|---|---|---|---|---|---|---|")
    for name in options.names or PROBES:
        print(row(name, PROBES[name](), options), flush=True)


if __name__ == "__main__":
    main()
