"""Statistics of inner values against what ONNX Runtime gives out and its own calibrator finds."""

import gc
import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.calibration import Given, calibrate, open_source
from graphopt.calibration import collect as collecting
from graphopt.calibration.sources import Source
from graphopt.errors import CalibrationError
from graphopt.formats import Tapped, load_model
from graphopt.verification.samples import Sample
from tests.calibration.small import chain, dense, dense_proto
from tests.support import model, node, session


def rows(*counts: int, width: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal((n, width)).astype(np.float32) for n in counts]


def watched(graph: ir.Model, names: list[str], samples: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The values, from a session with all of them as outputs."""
    proto = ir.to_proto(graph)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    made = session(proto)
    found = [made.run(names, {"x": sample}) for sample in samples]
    return {name: [f[i] for f in found] for i, name in enumerate(names)}


@pytest.mark.parametrize("limit", [1, 3000, 10_000_000])
def test_statistics_are_those_of_the_values(limit: int) -> None:
    graph, samples = chain(7), rows(3, 1, 40, 2, width=64)
    names = ["t4", "x", "t0", "t6", "t3"]
    found = calibrate(graph, names, open_source(samples, graph), limit=limit, channels={"t2": 1}, moments=["t0"])
    assert list(found) == ["t4", "x", "t0", "t6", "t3", "t2"]
    values = watched(graph, ["t4", "t0", "t6", "t3", "t2"], samples) | {"x": samples}
    for name, statistics in found.items():
        flat = np.concatenate([v.reshape(-1) for v in values[name]])
        assert (statistics.low, statistics.high) == (flat.min(), flat.max())
        assert statistics.elements == flat.size
        assert statistics.samples == 4
        assert statistics.histogram.total == flat.size
    together = np.concatenate(values["t2"])
    np.testing.assert_array_equal(found["t2"].channel_low, together.min(axis=0))
    together = np.concatenate(values["t0"]).astype(np.float64)
    np.testing.assert_allclose(found["t0"].moment, together.T @ together / len(together), rtol=1e-4, atol=1e-6)


def test_the_limit_decides_on_the_passes_over_the_samples(monkeypatch) -> None:
    graph, samples = chain(6), rows(4, 4, width=64)
    made = []
    write = Tapped.write

    def spy(self, values, **options):
        made.append((list(values), options))
        return write(self, values, **options)

    monkeypatch.setattr(Tapped, "write", spy)
    names = [f"t{i}" for i in range(6)]
    calibrate(graph, names, open_source(samples, graph), limit=2 * 4 * 64 * 4)
    assert [values for values, _ in made] == [names, ["t0", "t1"], ["t2", "t3"], ["t4", "t5"]]
    made.clear()
    calibrate(graph, names, open_source(samples, graph))
    assert [values for values, _ in made] == [names, names]


def test_a_sample_much_larger_than_the_first(monkeypatch) -> None:
    """The rest of the samples is read in smaller parts; nothing is counted twice or left out."""
    graph, samples = chain(6), rows(1, 60, 2, 70, 3, width=64)
    names = ["x", *(f"t{i}" for i in range(6))]
    found = calibrate(graph, names, open_source(samples, graph), limit=6 * 64 * 4)
    for name in names:
        assert found[name].elements == 64 * (1 + 60 + 2 + 70 + 3)
        assert found[name].samples == 5


def test_agrees_with_the_calibrator_of_onnx_runtime(tmp_path) -> None:
    calibrator_of = pytest.importorskip("onnxruntime.quantization.calibrate")
    graph, samples = dense(), rows(8, 8, 8)
    onnx.save(dense_proto(), tmp_path / "m.onnx")

    class Reader(calibrator_of.CalibrationDataReader):
        left = list(samples)

        def get_next(self):
            return {"x": self.left.pop(0)} if self.left else None

    for average in (False, True):
        Reader.left = list(samples)
        theirs = calibrator_of.create_calibrator(
            str(tmp_path / "m.onnx"), ["MatMul", "Relu", "Softmax"], augmented_model_path=str(tmp_path / "augmented.onnx"),
            extra_options={"moving_average": average},
        )  # fmt: skip
        theirs.collect_data(Reader())
        expected = theirs.compute_data()
        found = calibrate(graph, ["h", "r", "y"], open_source(samples, graph), method="min-max")
        for name in ("h", "r", "y"):
            low, high = (float(np.reshape(v, ())) for v in expected[name].range_value)
            range_ = found[name].range("moving-average" if average else "min-max")
            assert range_ == pytest.approx((min(low, 0), max(high, 0)), rel=1e-6)
            assert found[name].histogram is None


def test_the_graph_is_left_alone() -> None:
    graph = dense()
    before = ir.to_proto(graph).SerializeToString()
    calibrate(graph, ["h"], open_source(rows(2), graph))
    assert ir.to_proto(graph).SerializeToString() == before


def test_weights_in_files_of_their_own(tmp_path) -> None:
    proto = ir.to_proto(chain(5))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    loaded, samples = load_model(tmp_path / "m.onnx").graph, rows(3, width=64)
    found = calibrate(loaded, ["t3"], open_source(samples, loaded))
    assert found["t3"].high == watched(chain(5), ["t3"], samples)["t3"][0].max()
    assert all(isinstance(v.const_value, ir.ExternalTensor) for v in loaded.graph.initializers.values())


def test_values_that_branches_capture() -> None:
    """What a subgraph reads from outside must be there, and is not read of by name otherwise."""
    then = onnx.helper.make_graph([node("Neg", ["h"], ["a"])], "then", [], [onnx.helper.make_tensor_value_info("a", 1, None)])
    other = onnx.helper.make_graph([node("Add", ["h", "one"], ["b"])], "else", [], [onnx.helper.make_tensor_value_info("b", 1, None)])
    nodes = [node("Exp", ["x"], ["h"]), node("If", ["c"], ["i"], then_branch=then, else_branch=other), node("Abs", ["i"], ["y"])]
    proto = model(nodes, {"x": [2], "c": []}, {"y": [2]}, {"one": np.ones(2, np.float32)}, types={"c": onnx.TensorProto.BOOL})
    graph = ir.from_proto(proto)
    x = np.asarray([1, 2], np.float32)
    found = calibrate(graph, ["i", "h"], open_source([{"x": x, "c": np.asarray(flag)} for flag in (True, False)], graph))
    assert found["i"].low == pytest.approx(-np.exp(2), rel=1e-6)
    assert found["i"].high == pytest.approx(np.exp(2) + 1, rel=1e-6)
    assert found["h"].samples == 2


def test_faults_are_named_by_tensor() -> None:
    nodes = [node("Log", ["x"], ["l"]), node("Mul", ["x", "zero"], ["z"]), node("Add", ["l", "z"], ["y"])]
    graph = ir.from_proto(model(nodes, {"x": [2]}, {"y": [2]}, {"zero": np.zeros(2, np.float32)}))
    samples = [np.asarray(v, np.float32) for v in ([1, 2], [0, 2], [-1, 2])]
    found = calibrate(graph, ["l", "z"], open_source(samples, graph))
    assert "infinity in calibration samples of list, sample 2" in found["l"].fault
    assert "NaN in calibration samples of list, sample 3" in found["l"].fault
    assert "0 everywhere" in found["z"].fault


def test_what_cannot_be_calibrated() -> None:
    graph = dense()
    source = open_source(rows(1), graph)
    with pytest.raises(CalibrationError, match="tensor 'q' is no input of the main graph"):
        calibrate(graph, ["q"], source)
    with pytest.raises(CalibrationError, match="tensor 'w' is no input"):
        calibrate(graph, ["w"], source)
    with pytest.raises(CalibrationError, match="there are no calibration samples"):
        calibrate(graph, ["h"], open_source([], graph))
    with pytest.raises(ValueError, match="median"):
        calibrate(graph, ["h"], source, method="median")
    integers = ir.from_proto(model([node("ArgMax", ["x"], ["y"], axis=1)], {"x": ["N", 4]}, {"y": ["N", 1]}, types={"y": 7}))
    with pytest.raises(CalibrationError, match="'y' is INT64"):
        calibrate(integers, ["y"], source)
    assert calibrate(graph, [], source) == {}


def test_a_sample_that_the_model_does_not_run_on() -> None:
    nodes = [node("Reshape", ["x", "shape"], ["h"]), node("Neg", ["h"], ["y"])]
    graph = ir.from_proto(model(nodes, {"x": ["N"]}, {"y": [2, "M"]}, {"shape": np.asarray([2, -1])}))
    with pytest.raises(CalibrationError, match=r"sample 2: .*Reshape"):
        calibrate(graph, ["h"], open_source([np.zeros(4, np.float32), np.zeros(3, np.float32)], graph))


class Endless(Source):
    """Samples that are made when they are asked for."""

    description = "made up"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for number in range(self.count):
            yield Sample({"x": np.random.default_rng(number).standard_normal((64, 64)).astype(np.float32)}, f"sample {number}")


def test_memory_does_not_grow_with_the_samples() -> None:
    graph = chain(8)

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        found = calibrate(graph, [f"t{i}" for i in range(8)], Endless(count), channels={"t2": 1}, moments=["t1"])
        assert found["t0"].samples == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(10)
    few, many = peak(10), peak(1000)
    assert many < 1.2 * few  # wider ranges fill more bins; the samples themselves are 100 times as many


def test_given_samples() -> None:
    graph = dense()
    samples = tuple(Sample({"x": r}, f"made {i}") for i, r in enumerate(rows(2, 3)))
    assert calibrate(graph, ["h"], Given(samples))["h"].samples == 2
    assert collecting.LIMIT > 1 << 20
