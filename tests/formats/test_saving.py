"""Saving: nothing half-written, the input untouched, weights where they belong."""

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import InputError, OutputError
from graphopt.formats import load_model, save_model
from graphopt.model import Model

from . import build

X = {"x": np.ones((2, 64), "f4")}


def answers(path):
    return build.run(path, X)[0]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_external_stays_external_in_one_file(tmp_path):
    path = build.external(tmp_path / "in")
    (tmp_path / "out").mkdir()
    written = save_model(load_model(path), tmp_path / "out/r.onnx")
    assert [p.name for p in written] == ["r.onnx", "r.onnx.data"] and names(tmp_path / "out") == ["r.onnx", "r.onnx.data"]
    np.testing.assert_array_equal(answers(path), answers(tmp_path / "out/r.onnx"))


def test_weights_are_neither_read_nor_copied(tmp_path, monkeypatch):
    path = build.external(tmp_path)
    monkeypatch.setattr(ir.ExternalTensor, "_load", lambda self: pytest.fail("weights were read"))
    save_model(load_model(path), tmp_path / "r.onnx")


def test_shared_bytes_are_written_once(tmp_path):
    path = build.external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[1].value = "0"
    path.write_bytes(proto.SerializeToString())
    save_model(load_model(path), tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx.data").stat().st_size == 64 * 64 * 4
    np.testing.assert_array_equal(answers(path), answers(tmp_path / "r.onnx"))


def test_new_weights_join_the_data_and_small_ones_stay_inline(tmp_path):
    path = build.external(tmp_path)
    loaded = load_model(path)
    graph = loaded.graph.graph
    graph.initializers["w0"].const_value = ir.tensor(np.zeros((64, 64), "f4"), name="w0")
    graph.register_initializer(ir.Value(name="tiny", const_value=ir.tensor(np.zeros(2, "f4"), name="tiny")))
    save_model(loaded, tmp_path / "r.onnx")
    tensors = {t.name: t for t in onnx.load(tmp_path / "r.onnx", load_external_data=False).graph.initializer}
    assert tensors["w0"].data_location == 1 and tensors["tiny"].data_location == 0
    assert not answers(tmp_path / "r.onnx").any()


def test_inline_stays_inline(tmp_path):
    onnx.save(build.linear(), tmp_path / "m.onnx")
    assert save_model(load_model(tmp_path / "m.onnx"), tmp_path / "r.onnx") == [tmp_path / "r.onnx"]


def test_too_large_for_protobuf_goes_external(tmp_path, monkeypatch):
    monkeypatch.setattr("graphopt.formats.onnx._LIMIT", 20_000)
    proto = onnx.load(build.external(tmp_path))
    onnx.save(proto, tmp_path / "inline.onnx")
    assert len(save_model(load_model(tmp_path / "inline.onnx"), tmp_path / "r.onnx")) == 2
    np.testing.assert_array_equal(answers(tmp_path / "inline.onnx"), answers(tmp_path / "r.onnx"))


@pytest.mark.parametrize("how", ["same", "relative", "symlink", "hardlink"])
def test_the_input_is_not_overwritten(tmp_path, monkeypatch, how):
    path = tmp_path / "m.onnx"
    onnx.save(build.linear(), path)
    before, target = path.read_bytes(), path
    if how == "relative":
        monkeypatch.chdir(tmp_path)
        target = "m.onnx"
    elif how == "symlink":
        target = tmp_path / "link.onnx"
        target.symlink_to(path)
    elif how == "hardlink":
        target = tmp_path / "link.onnx"
        os.link(path, target)
    with pytest.raises(OutputError, match="is the input"):
        save_model(load_model(path), target)
    assert path.read_bytes() == before


def test_data_of_the_input_are_not_overwritten(tmp_path):
    path = build.external(tmp_path, data="r.onnx.data")
    before = (tmp_path / "r.onnx.data").read_bytes()
    with pytest.raises(OutputError, match="weights of the input"):
        save_model(load_model(path), tmp_path / "r.onnx.data", in_place=True)
    written = save_model(load_model(path), tmp_path / "r.onnx")
    assert written[1].name == "r.onnx.1.data" and (tmp_path / "r.onnx.data").read_bytes() == before
    np.testing.assert_array_equal(answers(path), answers(tmp_path / "r.onnx"))


def test_data_that_another_model_uses_are_not_overwritten(tmp_path):
    path = build.external(tmp_path)
    save_model(load_model(path), tmp_path / "r.onnx")
    os.rename(tmp_path / "r.onnx", tmp_path / "best.onnx")  # its data cannot be renamed: the name is in the model
    before = (tmp_path / "r.onnx.data").read_bytes()
    assert save_model(load_model(path), tmp_path / "r.onnx")[1].name == "r.onnx.1.data"
    assert (tmp_path / "r.onnx.data").read_bytes() == before


def test_saving_again_replaces_the_earlier_result(tmp_path):
    path = build.external(tmp_path)
    for _ in range(3):
        save_model(load_model(path), tmp_path / "r.onnx")
        assert names(tmp_path) == ["m.onnx", "r.onnx", "r.onnx.data", "w.bin"]


def test_in_place(tmp_path):
    onnx.save(build.linear(), tmp_path / "m.onnx")
    (tmp_path / "m.onnx").chmod(0o640)
    save_model(load_model(tmp_path / "m.onnx"), tmp_path / "m.onnx", in_place=True)
    assert onnx.load(tmp_path / "m.onnx") == build.linear() and (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o640


def test_in_place_with_external_data(tmp_path):
    path = build.external(tmp_path, data="m.onnx.data")
    expected = answers(path)
    for turn in range(3):
        loaded = load_model(path)
        mapped = loaded.graph.graph.initializers["w0"].const_value.numpy()
        copy = mapped.copy()
        save_model(loaded, path, in_place=True)
        np.testing.assert_array_equal(mapped, copy)  # what is mapped is not cut off
        np.testing.assert_array_equal(answers(path), expected)
        assert names(tmp_path) == ["m.onnx", "m.onnx.1.data" if turn % 2 == 0 else "m.onnx.data"]


def test_in_place_leaves_data_under_foreign_names(tmp_path):
    path = build.external(tmp_path)
    save_model(load_model(path), path, in_place=True)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data", "w.bin"]


def test_targets_that_cannot_be_written(tmp_path, monkeypatch):
    onnx.save(build.linear(), tmp_path / "m.onnx")
    loaded = load_model(tmp_path / "m.onnx")
    (tmp_path / "file").write_text("")
    cases = {"no/such/x.onnx": "does not exist", "file/x.onnx": "not a folder", ".": "folder", "": "folder"}
    for target, words in cases.items():
        with pytest.raises(OutputError, match=words):
            save_model(loaded, tmp_path / target)
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    with pytest.raises(OutputError, match="permission"):
        save_model(loaded, tmp_path / "o.onnx")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_no_trace(tmp_path, monkeypatch, code, call):
    path = build.external(tmp_path)
    loaded, before = load_model(path), names(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError) as caught:
        save_model(loaded, tmp_path / "r.onnx")
    assert "\n" not in str(caught.value) and "r.onnx" in str(caught.value) and names(tmp_path) == before


def test_a_full_disk_while_writing(tmp_path):
    """A real failing write: the file may not grow beyond a limit."""
    path = build.external(tmp_path, k=512)
    code = f"""
        import resource, signal
        from graphopt.formats import load_model, save_model
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model = load_model(r"{path}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            save_model(model, r"{tmp_path}/r.onnx")
        except Exception as error:
            print(type(error).__name__, error)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True).stdout
    assert out.startswith("OutputError") and names(tmp_path) == ["m.onnx", "w.bin"]


def test_weights_that_changed_meanwhile(tmp_path):
    path = build.external(tmp_path)
    loaded = load_model(path)
    (tmp_path / "w.bin").write_bytes(bytes(64 * 64 * 4 * 3))
    with pytest.raises(InputError, match="changed"):
        save_model(loaded, tmp_path / "r.onnx")
    assert names(tmp_path) == ["m.onnx", "w.bin"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path):
    onnx.save(build.linear(), tmp_path / "m.onnx")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".r.onnx.graphopt-{dead.pid}-00aa.tmp").write_text("")
    keep = [f".r.onnx.graphopt-{os.getppid()}-00aa.tmp", f".other.onnx.graphopt-{dead.pid}-00aa.tmp", ".r.onnx.tmp"]
    for name in keep:
        (tmp_path / name).write_text("")
    save_model(load_model(tmp_path / "m.onnx"), tmp_path / "r.onnx")
    assert names(tmp_path) == sorted([*keep, "m.onnx", "r.onnx"])


@pytest.mark.parametrize("in_place", [False, True])
def test_killed_while_saving(tmp_path, in_place):
    """kill -9 at random moments: the target is whole and right, or not there (never not there if it is the input)."""
    path = build.external(tmp_path, k=256, layers=8)
    other = build.external(tmp_path / "other", k=256, layers=8)
    feeds = {"x": np.random.default_rng(1).random((2, 256), "f4")}
    target = path if in_place else tmp_path / "r.onnx"
    code = f"""
        import itertools, sys
        from graphopt.formats import load_model, save_model
        models = itertools.cycle([r"{path}", r"{other if not in_place else path}"])
        print("ready", flush=True)
        while True:
            save_model(load_model(next(models)), r"{target}", in_place={in_place})
    """
    for tensor in range(8):  # the two models differ, so that a mixture of both would be noticed
        size = 256 * 256 * 4
        with open(tmp_path / "other/w.bin", "r+b") as file:
            file.seek(tensor * size)
            file.write(np.random.default_rng(100 + tensor).standard_normal((256, 256), dtype="f4").tobytes())
    right = [build.run(p, feeds)[0].tobytes() for p in (path, other)]
    moments, seen = random.Random(3), 0
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if target.exists():
            seen += 1
            assert build.run(target, feeds)[0].tobytes() in right
        assert target.exists() or not in_place
    assert seen
    save_model(load_model(path), target, in_place=in_place)
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


MEMORY = """
    import sys, time
    from graphopt.formats import load_model, save_model

    def high():  # not ru_maxrss: that starts with what the parent of the process had
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

    base = high()
    start = time.time(); model = load_model(sys.argv[1]); middle = time.time(); save_model(model, sys.argv[2]); end = time.time()
    print(base, high(), middle - start, end - middle)
"""


def measured(source, target):
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(source), str(target)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    base, peak, load, save = map(float, out.split())
    print(f"\nbase {base:.0f} MB, peak {peak:.0f} MB, load {load:.2f} s, save {save:.2f} s")
    return base, peak


def test_memory_of_inline_weights(tmp_path):
    """200 MB inline: neither a protobuf of them nor a copy."""
    proto = onnx.load(build.external(tmp_path, k=4096, layers=3))
    onnx.save(proto, tmp_path / "inline.onnx")
    del proto
    base, peak = measured(tmp_path / "inline.onnx", tmp_path / "r.onnx")
    assert peak - base < 60
    assert (tmp_path / "r.onnx").stat().st_size == pytest.approx((tmp_path / "inline.onnx").stat().st_size, abs=64)


@pytest.mark.slow
def test_memory_of_3_gb_external(tmp_path):
    path = build.external(tmp_path, k=4096, layers=48)
    _, peak = measured(path, tmp_path / "r.onnx")
    assert peak < 300
    assert (tmp_path / "r.onnx.data").stat().st_size == 48 * 4096 * 4096 * 4


@pytest.mark.slow
def test_2_gb_in_memory_becomes_external(tmp_path):
    dims, names_ = ir.Shape([4096, 4096]), [f"w{i}" for i in range(33)]
    made = {name: ir.LazyTensor(lambda: ir.tensor(np.zeros((4096, 4096), "f4")), ir.DataType.FLOAT, dims, name=name) for name in names_}
    values = [ir.Value(name=name, const_value=tensor) for name, tensor in made.items()]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 4096]))
    nodes, last = [], x
    for value in values:
        nodes.append(ir.Node("", "MatMul", [last, value]))
        last = nodes[-1].outputs[0]
    last.name, last.type, last.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 4096])
    graph = ir.Graph([x], [last], nodes=nodes, initializers=values, opset_imports={"": 17}, name="big")
    written = save_model(Model.from_ir(ir.Model(graph, ir_version=9)), tmp_path / "big.onnx")
    assert len(written) == 2 and written[0].stat().st_size < 10_000
    load_model(written[0])


def test_gc_is_as_it_was(tmp_path):
    import gc

    onnx.save(build.linear(), tmp_path / "m.onnx")
    for enabled in (False, True):
        (gc.enable if enabled else gc.disable)()
        try:
            save_model(load_model(tmp_path / "m.onnx"), tmp_path / "r.onnx")
            with pytest.raises(InputError):
                load_model(tmp_path / "none.onnx")
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
