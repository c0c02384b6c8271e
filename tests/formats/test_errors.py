"""Every way an input can be wrong ends in one line that names the file and the cause."""

import io
import os
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from graphopt.errors import InputError, OptionError
from graphopt.formats import load_model, save_model
from graphopt.formats.onnx import fix_initializers, fix_shapes

from . import build
from .build import info, model


def refused(path, *words, error=InputError):
    with pytest.raises(error) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 500, message
    for word in words:
        assert word in message, message
    return message


def refused_model(proto, tmp_path, *words):
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    return refused(path, *words)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", "x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"), (b"hello\n", "text"), (b"{}", "text"), (b"\x89PNG\r\n\x1a\n" + bytes(200), "PNG"), (zipped(), "zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "LFS"), (bytes(1000), "not an ONNX"),
        (np.random.default_rng(0).bytes(5000), "not an ONNX"), (b"\x08\x08", "not an ONNX"),
    ],
)  # fmt: skip
def test_not_a_model(tmp_path, content, words):
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", words)


def test_random_bytes_never_pass(tmp_path):
    path = tmp_path / "m.onnx"
    for seed in range(300):
        path.write_bytes(np.random.default_rng(seed).bytes(seed * 7 + 1))
        refused(path)


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".safetensors", ".tflite"])
def test_other_formats_are_named(tmp_path, suffix):
    (tmp_path / f"m{suffix}").write_bytes(zipped())
    refused(tmp_path / f"m{suffix}", "not supported")
    onnx.save(build.linear(), tmp_path / "n.onnx")
    os.rename(tmp_path / "n.onnx", tmp_path / f"n{suffix}")
    load_model(tmp_path / f"n{suffix}")  # ONNX inside, whatever the name


def test_no_file(tmp_path):
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "folder")


def test_no_permission(tmp_path, monkeypatch):
    onnx.save(build.linear(), tmp_path / "m.onnx")
    if os.geteuid() == 0:  # root may read everything

        def denied(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    else:
        (tmp_path / "m.onnx").chmod(0)
    refused(tmp_path / "m.onnx", "permission")


def test_other_messages_are_not_models(tmp_path):
    proto = build.linear()
    for message in (proto.graph, proto.graph.node[0], proto.graph.initializer[0], proto.graph.input[0].type):
        (tmp_path / "m.onnx").write_bytes(message.SerializeToString())
        refused(tmp_path / "m.onnx")


@pytest.mark.parametrize("make", [build.linear, build.if_model, lambda: build.linear(ir=3)])
def test_every_truncation_is_refused(tmp_path, make):
    proto = make()
    proto.producer_name, proto.doc_string = "someone", "something"
    content, path = proto.SerializeToString(deterministic=True), tmp_path / "m.onnx"
    path.write_bytes(content)
    load_model(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def test_truncation_between_the_fields_after_the_graph(tmp_path):
    """Cut after an opset import, a file is a whole message: what is missing is found by what needs it."""
    nodes = [h.make_node("F", ["x"], ["y"], domain="my"), h.make_node("Neg", ["y"], ["z"])]
    proto = model(nodes, [info("x", [2])], [info("z", [2])], opset=[("", 17), ("my", 1)])
    content, path = proto.SerializeToString(deterministic=True), tmp_path / "m.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def test_large_files_are_read_the_same(tmp_path, monkeypatch):
    """The path that leaves weights in the file, on a small one: same graph, same refusals."""
    from graphopt.formats import _reading
    from graphopt.formats._tensors import MappedTensor

    monkeypatch.setattr(_reading, "_LARGE_FILE", 1)
    monkeypatch.setattr(_reading, "_LEAVE", 16)
    proto = build.linear()
    proto.graph.initializer[0].doc_string = "weights"
    proto.graph.initializer[0].metadata_props.add(key="k", value="v")
    proto.graph.initializer.append(h.make_tensor("floats", T.FLOAT, [8], [1.0] * 8))
    content, path = proto.SerializeToString(), tmp_path / "m.onnx"
    path.write_bytes(content)
    loaded = load_model(path)
    weight = loaded.graph.graph.initializers["w"].const_value
    assert type(weight) is MappedTensor
    np.testing.assert_array_equal(weight.numpy(), nh.to_array(proto.graph.initializer[0]))
    save_model(loaded, tmp_path / "o.onnx")
    assert onnx.load(tmp_path / "o.onnx") == proto
    monkeypatch.setattr("graphopt.formats._writing._STREAM", 1)
    save_model(loaded, tmp_path / "o.onnx")
    assert onnx.load(tmp_path / "o.onnx") == proto
    save_model(loaded, path, in_place=True)  # the file that the weights are read from is replaced
    assert onnx.load(path) == proto and weight.numpy()[0, 1] == np.float32(1 / 7)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def test_required_parts_of_a_model(tmp_path):
    for part, words in (("ir_version", "IR version"), ("opset_import", "operator set"), ("graph", "not an ONNX")):
        proto = build.linear()
        proto.ClearField(part)
        refused_model(proto, tmp_path, words)
    proto = build.linear()
    del proto.graph.output[:]
    refused_model(proto, tmp_path, "no outputs")


def test_values_that_nothing_produces(tmp_path):
    proto = build.linear()
    proto.graph.node[1].input[0] = "ghost"
    refused_model(proto, tmp_path, "'add' (Add)", "'ghost'")
    proto = build.linear()
    proto.graph.output[0].name = "ghost"
    refused_model(proto, tmp_path, "output 0 'ghost'")
    proto = build.if_model()
    proto.graph.node[0].attribute[0].g.node[0].input[0] = "ghost"
    refused_model(proto, tmp_path, "'ghost'", "subgraph of node 'y' (If)")


def test_functions_see_nothing_from_outside(tmp_path):
    proto = model([h.make_node("F", ["x"], ["y"], domain="my")], [info("x", [2])], [info("y", [2])], opset=[("", 17), ("my", 1)])
    proto.functions.append(h.make_function("my", "F", ["a"], ["r"], [h.make_node("Add", ["a", "x"], ["r"])], [h.make_opsetid("", 17)]))
    refused_model(proto, tmp_path, "'x'", "my:F")
    proto.functions[0].node[0].input[1] = "a"
    proto.functions[0].output[0] = "ghost"
    refused_model(proto, tmp_path, "'ghost'")


def test_one_name_twice(tmp_path):
    proto = build.linear()
    proto.graph.node[1].output[0] = "m"
    refused_model(proto, tmp_path, "'m'", "redeclared")
    proto = build.linear()
    proto.graph.input.append(info("x", [2]))
    refused_model(proto, tmp_path, "two inputs")


def test_initializer_twice_counts_last_as_in_onnx_runtime(tmp_path):
    proto = build.linear()
    proto.graph.initializer.append(nh.from_array(np.full(4, 9, "f4"), "b"))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    assert loaded.graph.graph.initializers["b"].const_value.numpy()[0] == 9 and len(loaded.notes) == 1


def test_domain_without_opset(tmp_path):
    proto = build.linear()
    proto.graph.node[0].domain = "com.acme"
    refused_model(proto, tmp_path, "com.acme", "opset")


def test_unsorted_is_sorted(tmp_path):
    proto = build.linear()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    assert [n.op_type for n in loaded.graph.graph] == ["MatMul", "Add", "Relu"] and "order" in loaded.notes[0]


def test_unsorted_through_a_subgraph(tmp_path):
    proto = build.if_model()
    proto.graph.node[0].attribute[0].g.node[0].input[0] = "late"
    proto.graph.node.append(h.make_node("Abs", ["x"], ["late"]))
    onnx.save(proto, tmp_path / "m.onnx")
    assert [n.op_type for n in load_model(tmp_path / "m.onnx").graph.graph] == ["Abs", "If"]


def test_cycle(tmp_path):
    proto = build.linear()
    proto.graph.node[0].input[0] = "a"
    refused_model(proto, tmp_path, "cycle", "'mm' (MatMul)", "'add' (Add)")


def test_subgraph_that_returns_an_outer_value(tmp_path):
    proto = build.if_model()
    branch = proto.graph.node[0].attribute[0].g
    del branch.node[:]
    branch.output[0].name = "x"
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    assert "Identity" in loaded.notes[0]
    save_model(loaded, tmp_path / "o.onnx")
    feeds = {"c": np.array(False), "x": np.array([1.0, 2.0], "f4")}
    np.testing.assert_array_equal(build.run(tmp_path / "o.onnx", feeds)[0], feeds["x"])


@pytest.mark.parametrize("change", ["short", "long", "dims", "negative", "type", "floats", "strings", "nothing"])
def test_tensors_that_do_not_hold_what_they_say(tmp_path, change):
    proto = build.linear()
    tensor = proto.graph.initializer[0]
    if change == "short":
        tensor.raw_data = tensor.raw_data[:-4]
    elif change == "long":
        tensor.raw_data += b"1234"
    elif change == "dims":
        tensor.dims[0] = 4
    elif change == "negative":
        tensor.dims[0] = -3
    elif change == "type":
        tensor.data_type = 999
    elif change == "nothing":
        tensor.ClearField("raw_data")
    elif change == "floats":
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0] * 11)
    else:
        tensor.ClearField("raw_data")
        tensor.data_type = T.STRING
        tensor.string_data.extend([b"a"])
    refused_model(proto, tmp_path, "999" if change == "type" else "'w'")


@pytest.mark.parametrize(
    "change", ["missing", "short", "outside", "absolute", "folder", "hardlink", "nameless", "length", "symlink", "number"]
)
def test_external_data(tmp_path, change):
    folder = tmp_path / "f"
    path = build.external(folder)
    proto, data = onnx.load(path, load_external_data=False), folder / "w.bin"
    location = proto.graph.initializer[1].external_data[0]
    if change == "missing":
        data.unlink()
    elif change == "short":
        os.truncate(data, data.stat().st_size - 1)
    elif change == "outside":
        (tmp_path / "w.bin").write_bytes(data.read_bytes())
        location.value = "../w.bin"
    elif change == "absolute":
        location.value = str(data)
    elif change == "folder":
        (folder / "d").mkdir()
        location.value = "d"
    elif change == "hardlink":
        os.link(data, folder / "again.bin")
    elif change == "symlink":
        os.rename(data, tmp_path / "elsewhere.bin")
        os.symlink(tmp_path / "elsewhere.bin", data)
    elif change == "nameless":
        location.value = ""
    elif change == "number":
        proto.graph.initializer[1].external_data[1].value = "many"
    else:
        proto.graph.initializer[1].external_data[2].value = "17"
    path.write_bytes(proto.SerializeToString())
    words = {"hardlink": "hard links", "missing": "does not exist", "short": "has only", "number": "many"}
    refused(path, words.get(change, "tensor"))


def test_external_data_in_a_folder_below_is_fine(tmp_path):
    path = build.external(tmp_path)
    (tmp_path / "below").mkdir()
    os.rename(tmp_path / "w.bin", tmp_path / "below/w.bin")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = "below/w.bin"
    path.write_bytes(proto.SerializeToString())
    load_model(path)


def test_shapes(tmp_path):
    proto = build.linear()
    proto.graph.value_info.append(info("m", ["n", 4]))
    proto.graph.value_info.append(info("a", ["n + 1", "k"]))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx", shapes={"x": [5, 3]})
    for model_ in (loaded, loaded.fresh(), loaded.fresh().fresh()):
        save_model(model_, tmp_path / "o.onnx")
        out = onnx.load(tmp_path / "o.onnx").graph
        infos = (*out.input, *out.output, *out.value_info)
        dims = {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in infos}
        assert dims == {"w": [3, 4], "x": [5, 3], "y": [5, 4], "m": [5, 4], "a": [6, "k"]}


@pytest.mark.parametrize(
    ("shapes", "word"),
    [({"z": [1]}, "no such input"), ({"x": [1]}, "dimensions"), ({"x": [1, 4]}, "not 4"), ({"x": [0, 3]}, "0 is not"),
     ({"x": [-1, 3]}, "-1 is not")],
)  # fmt: skip
def test_bad_shapes(tmp_path, shapes, word):
    onnx.save(build.linear(), tmp_path / "m.onnx")
    with pytest.raises(OptionError, match=word):
        load_model(tmp_path / "m.onnx", shapes=shapes)


def test_a_size_that_is_declared_as_unknown_by_a_number(tmp_path):
    """Some exporters write -1 or 0 for it."""
    proto = build.linear()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx", shapes={"x": [5, 3]})
    save_model(loaded, tmp_path / "o.onnx")
    dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in onnx.load(tmp_path / "o.onnx").graph.input}
    assert dims["x"] == [5, 3]


def test_one_symbol_one_size(tmp_path):
    proto = model([h.make_node("Concat", ["p", "q"], ["y"], axis=1)], [info("p", ["n", 2]), info("q", ["n", 2])], [info("y", ["n", 4])])
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(OptionError, match="both"):
        load_model(tmp_path / "m.onnx", shapes={"p": [1, 2], "q": [2, 2]})
    loaded = load_model(tmp_path / "m.onnx")
    fix_shapes(loaded, {"p": [6, 2]})
    assert list(loaded.graph.graph.inputs[1].shape) == [6, 2]


def test_fix_initializers(tmp_path):
    onnx.save(build.linear(), tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    assert [v.name for v in loaded.graph.graph.inputs] == ["w", "x"]
    loaded.prepare(fix_initializers)
    assert [v.name for v in loaded.graph.graph.inputs] == ["x"] == [v.name for v in loaded.fresh().graph.graph.inputs]
    save_model(loaded, tmp_path / "o.onnx")
    assert [i.name for i in onnx.load(tmp_path / "o.onnx").graph.input] == ["x"]
