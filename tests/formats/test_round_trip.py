"""What goes in comes out: every part of a model that no pass touched."""

import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from graphopt.formats import load_model, save_model
from graphopt.formats.onnx import to_bytes
from graphopt.model import DECLARED, INFERRED, Model, count_nodes, iter_graphs

from . import build
from .build import info, model


def through(proto, tmp_path):
    """The model as saved after loading, and the Model."""
    onnx.save(proto, tmp_path / "in.onnx")
    loaded = load_model(tmp_path / "in.onnx")
    save_model(loaded, tmp_path / "out.onnx")
    return onnx.load(tmp_path / "out.onnx"), loaded


def unchanged(proto, tmp_path):
    out, loaded = through(proto, tmp_path)
    assert build.sorted_content(out) == build.sorted_content(proto)
    return loaded


@pytest.mark.filterwarnings("ignore")
def test_backend_models(tmp_path):
    """Every model of the ONNX backend test suite: node tests, and the small ones that torch once exported."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    count = 0
    cases = [*collect_testcases(None)]
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        cases += load_model_tests(kind=kind)
    for case in cases:
        proto = case.model if case.model is not None else onnx.load(f"{case.model_dir}/model.onnx")
        onnx.save(proto, tmp_path / "in.onnx")
        save_model(load_model(tmp_path / "in.onnx"), tmp_path / "out.onnx")
        out = onnx.load(tmp_path / "out.onnx")
        assert build.sorted_content(out) == build.sorted_content(proto), case.name
        count += 1
    assert count > 1500


@pytest.mark.parametrize("ir_version", [3, 4, 8, 10])
def test_plain(tmp_path, ir_version):
    unchanged(build.linear(ir_version), tmp_path)


def test_everything_around_the_graph(tmp_path):
    proto = build.linear(ir=11)
    proto.doc_string, proto.domain, proto.model_version = "a model", "my.domain", 7
    proto.producer_name, proto.producer_version = "me", "1.2"
    for holder in (proto, proto.graph, proto.graph.node[0], proto.graph.input[1], proto.graph.initializer[0]):
        holder.metadata_props.add(key="z", value="1")
        holder.metadata_props.add(key="a", value="2")
    proto.graph.doc_string = "a graph"
    proto.graph.node[1].doc_string = "a node"
    proto.graph.input[1].doc_string = "an input"
    proto.graph.output[0].doc_string = "an output"
    proto.graph.input[1].type.denotation = "IMAGE"
    proto.graph.input[1].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    proto.graph.value_info.append(info("m", ["n", 4]))
    annotation = proto.graph.quantization_annotation.add(tensor_name="m")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    training = proto.training_info.add()
    training.algorithm.name = "sgd"
    training.update_binding.add(key="w", value="w_new")
    proto.configuration.add(name="two", num_devices=2, device=["a", "b"])
    sharded = proto.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    sharded.sharding_spec.add(tensor_name="w", device=[0, 1])
    loaded = unchanged(proto, tmp_path)
    assert any("training" in note for note in loaded.notes)


def test_metadata_of_a_tensor_is_not_doubled(tmp_path):
    proto = build.linear()
    proto.graph.initializer[0].metadata_props.add(key="k", value="v")
    assert len(through(proto, tmp_path)[0].graph.initializer[0].metadata_props) == 1


@pytest.mark.parametrize("ir_version", [8, 9, 10])
def test_functions(tmp_path, ir_version):
    body = [h.make_node("Mul", ["a", "a"], ["s"]), h.make_node("Selu", ["s"], ["r"], name="selu")]
    reference = onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    body[1].attribute.append(reference)
    function = h.make_function("my", "Square", ["a"], ["r"], body, [h.make_opsetid("", 17)], attributes=["alpha"])
    if ir_version >= 10:
        function.value_info.append(info("s", ["n"]))
        function.overload = "f32"
    node = h.make_node("Square", ["x"], ["y"], domain="my", alpha=1.5)
    node.overload = function.overload
    proto = model([node], [info("x", ["n"])], [info("y", ["n"])], opset=[("", 17), ("my", 1)], ir=ir_version)
    proto.functions.append(function)
    if ir_version < 10:
        proto.graph.value_info.append(info("my::Square/s", ["n"]))
    loaded = unchanged(proto, tmp_path)
    assert count_nodes(loaded.graph) == 3
    assert [len(g) for g in iter_graphs(loaded.graph)] == [1, 2]


def test_functions_not_in_use_are_not_counted(tmp_path):
    proto = build.linear()
    proto.functions.append(h.make_function("my", "F", ["a"], ["r"], [h.make_node("Neg", ["a"], ["r"])], [h.make_opsetid("", 17)]))
    assert count_nodes(unchanged(proto, tmp_path).graph) == 3


def test_subgraphs(tmp_path):
    loaded = unchanged(build.if_model(), tmp_path)
    assert count_nodes(loaded.graph) == 3 and len(iter_graphs(loaded.graph)) == 3


def test_string_tensors_and_custom_domains(tmp_path):
    names = h.make_tensor("names", T.STRING, [2], [b"a", b"\xff\x00b"])
    nodes = [h.make_node("Mystery", ["x", "names"], ["y"], domain="com.acme", blob=b"\xff\xfe", strings=["a", "b"])]
    unchanged(model(nodes, [info("x", ["n"])], [info("y", None)], [names], opset=[("", 17), ("com.acme", 3)]), tmp_path)


@pytest.mark.parametrize("dtype", [T.FLOAT16, T.BFLOAT16, T.INT4, T.UINT4, T.FLOAT8E4M3FN, T.BOOL, T.COMPLEX64, T.DOUBLE])
@pytest.mark.parametrize("raw", [False, True])
def test_types_of_tensors(tmp_path, dtype, raw):
    if raw:
        import ml_dtypes  # noqa: F401 - numpy must know the types

        array = np.ones((3, 3)).astype(h.tensor_dtype_to_np_dtype(dtype))
        tensor = nh.from_array(array, "w")
    else:
        tensor = h.make_tensor("w", dtype, [3, 3], [1] * 9)
    unchanged(model([h.make_node("Identity", ["w"], ["y"])], [], [info("y", [3, 3], dtype)], [tensor], ir=10), tmp_path)


def sparse(name, dims=(2, 4), linear=True):
    indices = np.array([1, 5], "i8") if linear else np.array([[0, 1], [1, 1]], "i8")
    values = nh.from_array(np.array([3.0, 4.0], "f4"), name)
    return h.make_sparse_tensor(values, nh.from_array(indices, name + "_at"), list(dims))


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers(tmp_path, linear):
    nodes = [h.make_node("Add", ["x", "s"], ["y"])]
    io = [info("x", [2, 4])], [info("y", [2, 4])]
    proto = model(nodes, *io, sparse_initializer=[sparse("s", linear=linear)])
    loaded = unchanged(proto, tmp_path)
    tensor = loaded.graph.graph.initializers["s"].const_value
    dense = np.array([[0, 3, 0, 0], [0, 4, 0, 0]], "f4")
    np.testing.assert_array_equal(tensor.numpy(), dense)
    assert tensor.tobytes() == dense.tobytes() and tensor.nbytes == dense.nbytes
    if linear:
        np.testing.assert_array_equal(build.run(tmp_path / "out.onnx", {"x": np.zeros((2, 4), "f4")})[0], dense)


def test_sparse_initializer_in_a_subgraph(tmp_path):
    proto = build.if_model()
    proto.graph.node[0].attribute[0].g.sparse_initializer.append(sparse("s", [2, 4]))
    proto.graph.node[0].attribute[0].g.node[0].input[0] = "s"
    del proto.graph.node[0].attribute[0].g.output[0].type.tensor_type.shape.dim[:]
    unchanged(proto, tmp_path)


def test_sparse_constant_reads_as_its_value(tmp_path):
    nodes = [h.make_node("Constant", [], ["s"], sparse_value=sparse("s")), h.make_node("Add", ["x", "s"], ["y"])]
    proto = model(nodes, [info("x", [2, 4])], [info("y", [2, 4])])
    loaded = unchanged(proto, tmp_path)
    assert loaded.graph.graph[0].attributes["value"].as_tensor().numpy()[0, 1] == 3


def test_sparse_attribute_of_a_custom_operator(tmp_path):
    nodes = [h.make_node("Op", ["x"], ["y"], domain="d", table=sparse("s"))]
    unchanged(model(nodes, [info("x", [2, 4])], [info("y", None)], opset=[("", 17), ("d", 1)]), tmp_path)


def test_map_types(tmp_path):
    nodes = [h.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[1, 2])]
    map_type = h.make_map_type_proto(T.INT64, h.make_tensor_type_proto(T.FLOAT, []))
    output = h.make_value_info("y", h.make_sequence_type_proto(map_type))
    proto = model(nodes, [info("x", ["n", 2])], [output], opset=[("", 17), ("ai.onnx.ml", 3)])
    unchanged(proto, tmp_path)
    answer = build.run(tmp_path / "out.onnx", {"x": np.array([[0.25, 0.75]], "f4")})[0]
    assert answer == [{1: 0.25, 2: 0.75}]


def test_sequences_and_optionals(tmp_path):
    kind = h.make_optional_type_proto(h.make_sequence_type_proto(h.make_tensor_type_proto(T.FLOAT, ["n"])))
    nodes = [h.make_node("Optional", [], ["y"], type=kind.optional_type.elem_type)]
    unchanged(model(nodes, [], [h.make_value_info("y", kind)]), tmp_path)


def test_an_output_that_is_an_input_keeps_both_declarations(tmp_path):
    unchanged(model([h.make_node("Neg", ["x"], ["y"])], [info("x", ["n", 3])], [info("x", None), info("y", ["n", 3])]), tmp_path)


@pytest.mark.parametrize(
    ("imports", "version"),
    [
        ([("", 11), ("", 13)], 13), ([("", 13), ("", 11)], 11), ([("", 13), ("ai.onnx", 13)], 13),
        ([("ai.onnx", 13), ("", 11)], 11), ([("", 11), ("ai.onnx", 13)], 13), ([("ai.onnx", 13)], 13),
    ],
)  # fmt: skip
def test_opset_imported_twice(tmp_path, imports, version):
    """As ONNX Runtime reads them: Softmax means another thing from 13 on."""
    proto = model([h.make_node("Softmax", ["x"], ["y"])], [info("x", [2, 3, 4])], [info("y", [2, 3, 4])], opset=imports)
    out, loaded = through(proto, tmp_path)
    assert loaded.graph.opset_imports == {"": version}
    assert bool(loaded.notes) == (len({v for _, v in imports}) > 1)
    x = np.random.default_rng(0).random((2, 3, 4), "f4")
    np.testing.assert_array_equal(build.run(out, {"x": x})[0], build.run(proto, {"x": x})[0])


def test_newer_versions_are_noted(tmp_path):
    proto = build.linear()
    proto.ir_version, proto.opset_import[0].version = 99, 99
    out, loaded = through(proto, tmp_path)
    assert len(loaded.notes) == 2 and out == proto


def test_opset_of_files_before_ir_version_3(tmp_path):
    proto = build.linear(ir=3)
    proto.ir_version = 2
    del proto.opset_import[:]
    assert unchanged(proto, tmp_path).graph.opset_imports == {"": 1}


def test_attributes_without_a_type_in_the_oldest_files(tmp_path):
    node = h.make_node("Concat", ["x", "x"], ["y"], axis=0)
    proto = model([node], [info("x", [2])], [info("y", [4])], ir=1, opset=[])
    node = proto.graph.node[0]
    node.attribute[0].ClearField("type")
    out, _ = through(proto, tmp_path)
    assert out.graph.node[0].attribute[0].i == 0 and out.graph.node[0].attribute[0].type == onnx.AttributeProto.INT


def test_initializers_below_ir_version_4_are_constants(tmp_path):
    proto = build.linear(ir=3)
    onnx.save(proto, tmp_path / "in.onnx")
    loaded = load_model(tmp_path / "in.onnx")
    graph = loaded.graph.graph
    assert [v.name for v in graph.inputs] == ["x"]
    graph.initializers.pop("b") if not graph.initializers["b"].uses() else None
    new = ir.Value(name="c", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4]), const_value=ir.tensor(np.ones(4, "f4"), name="c"))
    graph.register_initializer(new)
    graph[1].replace_input_with(1, new)
    graph.initializers.pop("b")
    save_model(loaded, tmp_path / "out.onnx")
    out = onnx.load(tmp_path / "out.onnx")
    assert [i.name for i in out.graph.input] == ["w", "x", "c"]
    onnx.checker.check_model(out)
    x = np.ones((2, 3), "f4")
    np.testing.assert_array_equal(build.run(out, {"x": x})[0], build.run(proto, {"x": x})[0])


def test_inferred_shapes_are_not_written_and_declared_ones_are(tmp_path):
    proto = build.linear()
    proto.graph.value_info.append(info("m", ["batch", 4]))
    onnx.save(proto, tmp_path / "in.onnx")
    loaded = load_model(tmp_path / "in.onnx")
    values = {v.name: v for node in loaded.graph.graph for v in node.outputs} | {v.name: v for v in loaded.graph.graph.inputs}
    for name, value in values.items():
        if name in ("m", "y", "x"):
            value.meta[DECLARED] = (value.type, value.shape)
        value.meta[INFERRED] = True
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([8, 9])
    save_model(loaded, tmp_path / "out.onnx")
    assert build.sorted_content(onnx.load(tmp_path / "out.onnx")) == build.sorted_content(proto)
    assert all(list(v.shape) == [8, 9] for v in values.values())


def test_a_replaced_output_keeps_its_declaration(tmp_path):
    """A pass that lets another value be the output need not think of what the file said of it."""
    proto = build.linear()
    proto.graph.output[0].doc_string = "kept"
    onnx.save(proto, tmp_path / "in.onnx")
    loaded = load_model(tmp_path / "in.onnx")
    graph = loaded.graph.graph
    new = ir.Node("", "Abs", [graph[1].outputs[0]], num_outputs=1)
    new.outputs[0].name = "y"
    old = graph[2]
    graph.outputs[0] = new.outputs[0]
    graph.append(new)
    graph.remove(old, safe=True)
    save_model(loaded, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.output[0] == proto.graph.output[0]


def test_to_bytes_is_what_save_writes(tmp_path):
    onnx.save(build.linear(), tmp_path / "in.onnx")
    loaded = load_model(tmp_path / "in.onnx")
    save_model(loaded, tmp_path / "out.onnx")
    assert to_bytes(loaded.graph) == (tmp_path / "out.onnx").read_bytes()


def test_to_bytes_takes_external_weights_in(tmp_path):
    path = build.external(tmp_path)
    x = np.ones((2, 64), "f4")
    np.testing.assert_array_equal(build.run(to_bytes(load_model(path).graph), {"x": x})[0], build.run(path, {"x": x})[0])


def test_fresh_is_independent_and_checked(tmp_path):
    path = build.external(tmp_path)
    loaded = load_model(path)
    other = loaded.fresh()
    other.graph.graph.remove(list(other.graph.graph)[-1], safe=False)
    assert count_nodes(loaded.graph) == 3 and count_nodes(loaded.fresh().graph) == 3
    memory = Model.from_ir(loaded.graph)
    memory.graph.graph.remove(list(memory.graph.graph)[-1], safe=False)
    assert count_nodes(memory.fresh().graph) == 3
    with open(tmp_path / "w.bin", "ab") as file:
        file.write(b"more")
    with pytest.raises(Exception, match="changed or removed"):
        load_model(path) and loaded.fresh()


@pytest.mark.parametrize("seed", ["0", "1", "17"])
def test_same_bytes_whatever_the_hash_seed(tmp_path, seed):
    proto = build.if_model()
    for key in "zyxw":
        proto.metadata_props.add(key=key, value=key)
    onnx.save(proto, tmp_path / "in.onnx")
    build.external(tmp_path / "e")
    code = (
        "import sys; from graphopt.formats import load_model, save_model\n"
        f"save_model(load_model(r'{tmp_path}/in.onnx'), r'{tmp_path}/out.onnx')\n"
        f"save_model(load_model(r'{tmp_path}/e/m.onnx'), r'{tmp_path}/e/out.onnx')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": seed, "PATH": ""})
    save_model(load_model(tmp_path / "in.onnx"), tmp_path / "here.onnx")
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    first = (tmp_path / "e/out.onnx").read_bytes(), (tmp_path / "e/out.onnx.data").read_bytes()
    save_model(load_model(tmp_path / "e/m.onnx"), tmp_path / "e/out.onnx")  # over the earlier one
    assert first == ((tmp_path / "e/out.onnx").read_bytes(), (tmp_path / "e/out.onnx.data").read_bytes())
