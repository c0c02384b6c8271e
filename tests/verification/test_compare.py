"""The verdict: what passes, what does not, and that nothing is excused that should not be."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.errors import InputError, OptionError
from graphopt.verification import Reference, Sample, synthesize, verify
from graphopt.verification import reference as reference_module
from tests.verification.small import B, F, H, I, const, conv_bn, graph_of, info, linear, model, node, weight


def samples_of(data, count=4):
    reference = Reference(data, threads=1)
    return synthesize(graph_of(data), reference.run, count=count).samples


def check(a, b, samples=None, **options):
    return verify(a, b, samples_of(a) if samples is None else samples, threads=1, **options)


def sample(**feeds):
    return Sample({k: np.asarray(v, np.float32) if not isinstance(v, np.ndarray) else v for k, v in feeds.items()}, "test")


def rows(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_a_model_against_itself():
    data = conv_bn(folded=False)
    result = check(data, data, effect="exact")
    assert result.verdict == "identical" and result.informative == result.samples == 5
    assert result.exercised == 1.0 and len(result.sizes) >= 2
    report = result.to_dict()
    json.dumps(report, allow_nan=False)
    assert {"verdict", "samples", "sizes", "outputs"} <= set(report)
    assert {"name", "max_abs", "max_rel", "cosine", "ok"} <= set(report["outputs"][0])


def test_one_sample_twice_proves_what_it_proves_once():
    data, x = linear(weight()), rows(3, 4)
    result = check(data, data, [sample(x=x), sample(x=x.copy())])
    assert result.verdict == "identical" and result.informative == 2


@pytest.mark.parametrize("effect", ["exact", "rounding"])
def test_one_weight_a_hundredth_larger(effect):
    w = weight()
    changed = w.copy()
    changed[1, 2] *= 1.01
    result = check(linear(w), linear(changed), effect=effect)
    assert result.verdict == "different" and not result.outputs[0].ok
    assert "times the tolerance" in result.outputs[0].reason


def test_a_batch_normalization_folded_in_float():
    original, candidate = conv_bn(folded=False), conv_bn(folded=True)
    assert check(original, candidate, effect="rounding").verdict == "equivalent"
    wrong = conv_bn(folded=True, seed=1)
    assert check(original, wrong, effect="rounding").verdict == "different"
    exact = check(original, candidate, effect="exact")
    assert exact.verdict == "equivalent" and any("says that it is exact" in n for n in exact.notes)


def test_a_lossy_candidate_has_a_budget():
    w = weight(16, 32)
    rounded = np.round(w * 20) / 20
    a, b = linear(w, ("N", 16)), linear(rounded, ("N", 16))
    assert check(a, b, effect="rounding").verdict == "different"
    assert check(a, b, effect="lossy").verdict == "within-budget"
    tight = check(a, b, effect="lossy", budget=1e-4)
    assert tight.verdict == "different" and "budget of 0.0001" in tight.outputs[0].reason
    assert check(a, a, effect="lossy").verdict == "identical"


def test_the_tolerance_that_was_asked_for():
    w = weight()
    a, b = linear(w), linear(w * np.float32(1.002))
    assert check(a, b).verdict == "different"
    assert check(a, b, tolerance=0.01).verdict == "equivalent"
    assert check(a, linear(w * np.float32(1.00001)), tolerance=1e-7).verdict == "different"
    with pytest.raises(OptionError, match="tolerance"):
        check(a, b, tolerance=-1)
    with pytest.raises(OptionError, match="effect"):
        check(a, b, effect="harmless")


def test_a_small_scale_is_no_excuse():
    """Outputs of 1e-9 are all that this model has to say: an absolute floor would hide anything."""
    w = weight() * np.float32(1e-9)
    changed = w.copy()
    changed[0, 0] *= 1.01
    assert check(linear(w), linear(changed)).verdict == "different"


def test_one_channel_does_not_excuse_another():
    """Boxes in pixels beside scores in [0, 1], as detectors put them in one tensor."""
    w = rows(8, 6) * np.array([600, 600, 600, 600, 1, 1], np.float32)
    changed = w.copy()
    changed[:, 5] *= 1.01
    x = sample(x=rows(64, 8))
    assert check(linear(w, ("N", 8)), linear(changed, ("N", 8)), [x]).verdict == "different"


def test_a_detector_that_answers_1e_7_everywhere():
    def detector(bias):
        nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["c"]), node("Sigmoid", ["c"], ["y"])]
        return model(nodes, [info("x", F, ["N", 8])], [info("y", F, None)], [const("w", weight(8, 20) * 0.1), const("b", bias)])

    # 1 % of 1e-7 is nothing on a scale of 0 to 1: no difference, but no proof either.
    silent = check(detector(-16.0), detector(-16.01), [sample(x=rows(4, 8)), sample(x=rows(4, 8, seed=1))])
    assert silent.verdict == "unverified" and silent.informative == 0 and silent.outputs[0].ok
    assert any("saturated" in n for n in silent.notes)
    # Where other statistics make it answer, it is told apart.
    assert check(detector(-16.0), detector(-17.0)).verdict == "different"


def test_integers_are_exact():
    def arg(shift):
        nodes = [node("Add", ["x", "s"], ["a"]), node("ArgMax", ["a"], ["y"], axis=1, keepdims=0)]
        return model(nodes, [info("x", F, ["N", 10])], [info("y", I, None)], [const("s", shift)])

    shift = np.zeros(10, np.float32)
    assert check(arg(shift), arg(shift)).verdict == "identical"
    moved = shift.copy()
    moved[3] = 3
    result = check(arg(shift), arg(moved))
    assert result.verdict == "different" and "elements differ" in result.outputs[0].reason


def test_integers_that_the_reference_itself_flips():
    """Floor of values that are whole but for a rounding: the reference's own answer flips, so a flip is no fault."""

    def floor(order):
        nodes = [node("Mul", ["x", order[0]], ["a"]), node("Mul", ["a", order[1]], ["b"]), node("Floor", ["b"], ["c"])]
        nodes.append(node("Cast", ["c"], ["y"], to=TensorProto.INT64))
        return model(nodes, [info("x", F, ["N", 64])], [info("y", I, None)], [const("p", 0.1), const("q", 0.7)])

    x = (np.arange(1, 257, dtype=np.float64).reshape(4, 64) / 0.07).astype(np.float32)
    result = check(floor("pq"), floor("qp"), [sample(x=x)])
    assert result.verdict == "equivalent"
    assert 0 < result.outputs[0].flips < 0.5 and any("in the original itself" in n for n in result.notes)


@pytest.mark.parametrize("then", [("Log",), ("Sqrt",)])
def test_nan_in_the_same_places(then):
    w = weight()
    data = linear(w, then=then)
    assert check(data, data).verdict == "identical"
    moved = check(data, linear(-w, then=then))
    assert moved.verdict == "different" and "NaN" in moved.outputs[0].reason


def test_infinities_keep_their_sign():
    def divided(sign):
        nodes = [node("Relu", ["x"], ["r"]), node("Mul", ["r", "s"], ["m"]), node("Div", ["one", "m"], ["y"])]
        return model(nodes, [info("x", F, ["N", 8])], [info("y", F, None)], [const("s", sign), const("one", 1.0)])

    x = [sample(x=rows(3, 8))]
    assert check(divided(2.0), divided(2.0), x).verdict == "identical"
    result = check(divided(2.0), divided(-2.0), x)
    assert result.verdict == "different" and "Inf" in result.outputs[0].reason


def test_shape_dtype_names_and_order():
    def ended(op, outputs=("y", "z"), **attributes):
        nodes = [node("Neg", ["x"], ["n"]), node(op, ["n"], ["y"], **attributes), node("Abs", ["x"], ["z"])]
        return model(nodes, [info("x", F, ["N", 6])], [onnx.ValueInfoProto(name=o) for o in outputs])

    plain = ended("Identity")
    shape = check(plain, ended("Flatten", axis=0))
    assert shape.verdict == "different" and "shape" in shape.outputs[0].reason
    dtype = check(plain, ended("Cast", to=TensorProto.DOUBLE))
    assert dtype.verdict == "different" and "dtype is float64" in dtype.outputs[0].reason
    order = check(plain, ended("Identity", ("z", "y")))
    assert order.verdict == "different" and "['z', 'y']" in order.notes[0]


def test_a_lost_input_is_a_difference():
    def two(inputs):
        return model([node("Neg", ["x"], ["y"])], [info(i, F, ["N", 4]) for i in inputs], [info("y", F, None)])

    result = check(two(["x", "unused"]), two(["x"]))
    assert result.verdict == "different" and "unused" in result.outputs[0].reason


def test_a_candidate_that_does_not_load_or_run():
    data = linear(weight())
    result = check(data, b"no model at all")
    assert result.verdict == "different" and "does not load" in result.outputs[0].reason
    fixed = model(
        [node("Reshape", ["x", "s"], ["r"]), node("MatMul", ["r", "w"], ["y"])],
        [info("x", F, ["N", 4])], [info("y", F, None)], [const("s", [1, 4], np.int64), const("w", weight())],
    )  # fmt: skip
    result = check(data, fixed)
    assert result.verdict == "different" and "does not run" in result.outputs[0].reason and "Reshape" in result.outputs[0].reason


def test_the_maps_of_a_classifier():
    def classifier(coefficient):
        nodes = [
            helper.make_node(
                "LinearClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", name="c", classlabels_ints=[3, 5],
                coefficients=[coefficient, -1.0, 0.5, 1.0], intercepts=[0.0, 0.1], post_transform="LOGISTIC",
            ),
            helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", name="z", classlabels_int64s=[3, 5]),
        ]  # fmt: skip
        maps = helper.make_value_info(
            "maps", helper.make_sequence_type_proto(helper.make_map_type_proto(I, helper.make_tensor_type_proto(F, [])))
        )
        return model(nodes, [info("x", F, ["N", 2])], [info("label", I, None), maps], domains={"ai.onnx.ml": 2})

    assert check(classifier(1.0), classifier(1.0)).verdict == "identical"
    result = check(classifier(1.0), classifier(1.01))
    by_name = {o.name: o for o in result.outputs}
    assert result.verdict == "different" and not by_name["maps"].ok and by_name["maps"].max_abs > 1e-4


def test_half_precision_has_its_own_eps():
    w = weight(16, 8)
    data = linear(w, ("N", 16), H)
    assert check(data, data).verdict == "identical"
    rounded = (w.astype(np.float16).astype(np.float32) * (1 + 4e-4)).astype(np.float16)
    assert check(data, linear(rounded, ("N", 16), H)).verdict == "equivalent"
    assert check(data, linear(w * 1.05, ("N", 16), H)).verdict == "different"


def test_without_proof_there_is_no_verdict():
    data = linear(weight())
    none = check(data, data, [])
    assert none.verdict == "unverified" and "--samples" in none.notes[0]
    failing = check(data, data, [Sample({"x": np.ones((2, 5), np.float32)}, "user: bad.npz")])
    assert failing.verdict == "unverified" and failing.samples == 0 and "bad.npz" in failing.notes[0]
    dead = model([node("Mul", ["x", "z"], ["y"])], [info("x", F, ["N", 4])], [info("y", F, None)], [const("z", 0.0)])
    assert check(dead, dead).verdict == "unverified"
    with pytest.raises(InputError):
        check(b"not a model", data, [sample(x=rows(2, 4))])


def test_random_outputs_are_not_compared():
    nodes = [node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"]), node("Neg", ["x"], ["z"])]
    inputs = [info("x", F, ["N", 8])]
    alone = model(nodes[:2], inputs, [info("y", F, None)])
    result = check(alone, alone)
    assert result.verdict == "unverified" and any("run to run" in n for n in result.notes)
    beside, wrong = (model([*nodes[:2], node(op, ["x"], ["z"])], inputs, [info("y", F, None), info("z", F, None)]) for op in ("Neg", "Abs"))
    assert check(beside, beside).verdict == "equivalent"
    assert check(beside, wrong).verdict == "different"


def test_a_wrong_runtime_excuses_nobody(monkeypatch):
    """The original's answer with optimizations on is nonsense: a candidate as far off as that is still different."""
    w = weight()
    data, wrong = linear(w), linear(w * np.float32(1.05))
    given = samples_of(data)
    plain = reference_module.runtime.session

    def broken(source, *, optimize=True, **options):
        return plain(wrong if optimize and source == data else source, optimize=optimize, **options)

    monkeypatch.setattr(reference_module.runtime, "session", broken)
    off = Reference(data, threads=1)
    assert verify(data, linear(w * np.float32(1.02)), given, threads=1, reference=off).verdict == "different"
    # The original itself, shipped by the same runtime, agrees with what the runtime makes of it: noted, no fault.
    same = verify(data, data, given, threads=1, reference=off)
    assert same.verdict == "identical" and any("runtime's own optimizations" in n for n in same.notes)


def test_a_candidate_that_only_breaks_when_optimized(monkeypatch):
    w = weight()
    data, candidate, wrong = linear(w), linear(w, then=("Identity",)), linear(w * 2)
    given = samples_of(data)
    plain = reference_module.runtime.session
    monkeypatch.setattr(
        reference_module.runtime, "session",
        lambda source, *, optimize=True, **o: plain(wrong if optimize and source == candidate else source, optimize=optimize, **o),
    )  # fmt: skip
    result = verify(data, candidate, given, threads=1)
    assert result.verdict == "different" and "with the runtime's optimizations" in result.outputs[0].reason


def test_a_reference_is_used_again(monkeypatch):
    data = linear(weight())
    reference = Reference(data, threads=1)
    given = samples_of(data)
    first = verify(data, data, given, threads=1, reference=reference)
    ran = []
    plain = reference_module.runtime.session
    monkeypatch.setattr(reference_module.runtime, "session", lambda source, **o: ran.append(source) or plain(source, **o))
    assert verify(data, data, given, threads=1, reference=reference).to_dict() == first.to_dict()
    assert len(ran) == 2  # the candidate, twice


def test_coverage_names_what_never_ran():
    then = helper.make_graph([node("Mul", ["x", "x"], ["ty"])], "t", [], [info("ty", F, None)])
    other = helper.make_graph([node("Neg", ["x"], ["e1"]), node("Exp", ["e1"], ["ey"])], "e", [], [info("ey", F, None)])
    data = model(
        [
            node("ReduceSum", ["x"], ["s"], keepdims=0), node("Mul", ["s", "zero"], ["dead"]),
            node("Greater", ["dead", "one"], ["c"]), node("If", ["c"], ["b"], then_branch=then, else_branch=other),
            node("Add", ["b", "dead"], ["y"]),
        ],
        [info("x", F, ["N", 4])], [info("y", F, None)], [const("zero", 0.0), const("one", 1.0)],
    )  # fmt: skip
    result = check(data, data)
    assert result.coverage["never run"] == ["If_b: then_branch"] and result.coverage["constant"] == 1
    assert 0 < result.exercised < 1 and any("If_b: then_branch" in n for n in result.notes)


def test_bools_and_files(tmp_path):
    data = model([node("Greater", ["x", "t"], ["y"])], [info("x", F, ["N", 9])], [info("y", B, None)], [const("t", 0.0)])
    other = model([node("Greater", ["x", "t"], ["y"])], [info("x", F, ["N", 9])], [info("y", B, None)], [const("t", 0.5)])
    (tmp_path / "a.onnx").write_bytes(data)
    (tmp_path / "b.onnx").write_bytes(other)
    given = samples_of(data)
    assert verify(tmp_path / "a.onnx", tmp_path / "a.onnx", given, threads=1).verdict == "identical"
    assert verify(tmp_path / "a.onnx", tmp_path / "b.onnx", given, threads=1).verdict == "different"


def test_outputs_of_sizes_alone_need_no_proof():
    """Shape answers the same to every input of one size: there is nothing to prove but that, and wrong is wrong."""

    def sized(op):
        return model([node(op, ["x"], ["y"])], [info("x", F, ["N", 4])], [onnx.ValueInfoProto(name="y")])

    assert check(sized("Shape"), sized("Shape")).verdict == "identical"
    assert check(sized("Shape"), sized("Size")).verdict == "different"
