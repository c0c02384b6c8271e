"""What each command prints, writes and exits with when all is well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Cli, convolution
from tests.support import array, model, node, ops

FAST = ("--no-bench", "--passes", "eliminate-identity")
KEYS = {"version", "model", "output", "target", "before", "after", "passes", "verification", "speed", "quality", "seconds"}


def test_run_writes_beside_the_model(cli: Cli, ok: Path) -> None:
    raw = ok.read_bytes()
    done = cli("run", ok, *FAST)
    assert done.code == 0, done.err
    assert ops(onnx.load(ok.with_name("ok.opt.onnx"))) == {"Conv": 1, "Relu": 1}
    assert ok.read_bytes() == raw
    for word in ("eliminate-identity", "identical", "ok.opt.onnx"):
        assert word in done.out


def test_run_json_is_all_there_is(cli: Cli, ok: Path, samples: Path, tmp_path: Path) -> None:
    done = cli("run", ok, "-o", tmp_path / "o.onnx", *FAST, "--samples", samples, "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.json.keys() >= KEYS
    assert done.json["output"] == str(tmp_path / "o.onnx")
    assert done.json["passes"][0]["applied"] == 1
    assert done.json["verification"]["verdict"] == "identical"


def test_run_measures(cli: Cli, ok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.steering.neverslower._SECONDS", 0.5)
    done = cli("run", ok, "--passes", "eliminate-identity", "--json", "--threads", "1", "--no-tune")
    assert done.code == 0, done.err
    assert done.json["speed"]["pairs"] >= 1


def test_what_plugins_and_metrics_print_goes_to_standard_error(ok: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import os\nprint('hello from a metric')\nos.system('echo hello from a child')\ndef one(run):\n    print('again')\n    return 1.0\n"
    )
    command = [sys.executable, "-m", "graphopt", "run", str(ok), *FAST, "--metric", f"{tmp_path}/noisy.py:one", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quality"]["before"] == 1.0
    assert "hello from a metric" in done.stderr
    assert "hello from a child" in done.stderr


def test_quiet_says_nothing(cli: Cli, ok: Path) -> None:
    done = cli("run", ok, *FAST, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_reports_are_written(cli: Cli, ok: Path, tmp_path: Path) -> None:
    done = cli("run", ok, *FAST, "--report", tmp_path / "r.json", "--report", tmp_path / "r.html")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "r.json").read_text()).keys() >= KEYS
    assert "<html" in (tmp_path / "r.html").read_text()


def test_explain_names_each_application_and_refusal(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [node("Identity", ["x"], ["y"], name="outward"), node("Identity", ["x"], ["a"], name="inner"), node("Relu", ["a"], ["z"])]
    onnx.save(model(nodes, {"x": [2, 3]}, ["y", "z"]), path)
    done = cli("run", path, *FAST, "--explain", "eliminate-identity")
    assert "applied  inner" in done.out
    assert "refused  outward: " in done.out
    as_json = cli("run", path, *FAST, "--explain", "eliminate-identity", "--json").json
    assert {"pass": "eliminate-identity", "node": "inner"} in as_json["applications"]


def test_in_place(cli: Cli, ok: Path) -> None:
    assert cli("run", ok, *FAST, "--in-place", "-o", ok).code == 0
    assert ops(onnx.load(ok)) == {"Conv": 1, "Relu": 1}


def test_run_that_cannot_be_verified_exits_with_1(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = convolution()
    proto.graph.node[2].op_type, proto.graph.node[2].domain = "Zonk", "example.com"
    proto.opset_import.append(onnx.helper.make_opsetid("example.com", 1))
    onnx.save(proto, path)
    done = cli("run", path, *FAST, "--quiet")
    assert done.code == 1
    assert done.err.startswith("graphopt: warning: not verified")
    assert path.with_name("m.opt.onnx").exists()


def test_passes(cli: Cli) -> None:
    found = {p["name"]: p for p in cli("passes", "--json").json}
    assert found["eliminate-identity"]["effect"] == "exact"
    assert found["inline-functions"]["kinds"] == ["onnx"] and found["fuse-conv-bn"]["kinds"] == ["onnx", "torch"]
    assert found["eliminate-identity"]["origin"].startswith("graphopt ")
    text = cli("passes").out
    for name in found:
        assert name in text
    options = [f"--set {p['name']}.{o['name']}=" for p in found.values() for o in p["options"]]
    assert all(o in text for o in options)


def test_presets(cli: Cli) -> None:
    found = {p["name"]: p for p in cli("passes", "--presets", "--json").json}
    assert "eliminate-identity" in found["clean"]["passes"]
    assert found["clean"]["effect"] == "exact"
    assert "clean" in cli("passes", "--presets").out


def test_inspect(cli: Cli, ok: Path) -> None:
    found = cli("inspect", ok, "--json").json
    assert found["nodes"] == 3
    assert found["operators"] == {"Conv": 1, "Identity": 1, "Relu": 1}
    assert found["opsets"] == {"": 17}
    assert found["model"]["inputs"] == [{"name": "x", "type": "tensor(float)", "shape": [1, 3, 8, 8]}]
    assert found["largest"] == [{"name": "w", "type": "float", "shape": [4, 3, 3, 3], "bytes": 432}]
    text = cli("inspect", ok).out
    for word in ("Conv", "x  tensor(float) [1, 3, 8, 8]", "432 B", "ai.onnx 17"):
        assert word in text


def test_verify(cli: Cli, ok: Path, tmp_path: Path, samples: Path) -> None:
    same, other = tmp_path / "same.onnx", tmp_path / "other.onnx"
    cli("run", ok, "-o", same, *FAST)
    proto = convolution()
    proto.graph.node[2].op_type = "Abs"
    onnx.save(proto, other)
    done = cli("verify", ok, same)
    assert done.code == 0
    assert done.out.startswith("identical")
    for extra in ((), ("--samples", samples)):
        done = cli("verify", ok, other, *extra, "--json")
        assert done.code == 1
        assert done.json["verification"]["verdict"] == "different"
    assert "output 'y'" in cli("verify", ok, other).out
    assert cli("verify", ok, other, "--effect", "nonsense").code == 2


def test_bench(cli: Cli, ok: Path, samples: Path) -> None:
    done = cli("bench", ok, "--seconds", "0.5", "--samples", samples, "--profile", "--json", "--threads", "1")
    assert done.code == 0, done.err
    assert done.json["latency"]["ms"] > 0
    assert done.json["speed"] is None
    assert done.json["profile"][str(ok)]["operators"]
    done = cli("bench", ok, ok, "--seconds", "0.5", "--threads", "1")
    assert done.code == 0, done.err
    assert "1 thread" in done.out


def test_bisect(cli: Cli, ok: Path, tmp_path: Path) -> None:
    done = cli("bisect", ok, "--passes", "eliminate-identity")
    assert done.code == 0, done.err
    assert done.out.startswith("nothing to bisect: identical")
    (tmp_path / "wrong.py").write_text(
        "from dataclasses import dataclass\n"
        "from graphopt import Rewrite, op, var\n"
        "@dataclass(frozen=True)\n"
        "class Wrong(Rewrite):\n"
        "    'Takes a Relu for nothing.'\n"
        "    name = 'drop-relu'\n"
        "    def patterns(self):\n"
        "        return (op('Relu', var('x')),)\n"
        "    def rewrite(self, match, editor):\n"
        "        editor.replace(match.root.outputs[0], editor.node('Neg', [match['x']]))\n"
    )
    arguments = ("bisect", ok, "--plugin", tmp_path / "wrong.py", "--passes", "eliminate-identity,drop-relu")
    done = cli(*arguments, "--json")
    assert done.code == 1, done.err
    assert [(c["pass"], c["node"]) for c in done.json["culprits"]] == [("drop-relu", "relu")]
    assert done.json["verdict"] == "different"
    assert "culprit: drop-relu at node 'relu'" in cli(*arguments).out


def test_diff(cli: Cli, ok: Path, tmp_path: Path) -> None:
    assert "the same" in cli("diff", ok, ok).out
    other = tmp_path / "other.onnx"
    weights = array(4, 3, 3, 3)
    weights[0, 0, 0, 0] += 0.5
    proto = convolution(opset=18)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("strides", [2, 2]))
    proto.graph.node[2].op_type = "Neg"
    proto.graph.node.append(node("Abs", ["y"], ["z"], name="extra"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    onnx.save(proto, other)
    found = cli("diff", ok, other, "--json").json
    assert not found["same"]
    assert found["opsets"] == ["ai.onnx: 17 became 18"]
    assert found["nodes"]["added"] == ["extra"]
    assert {c["name"]: c["changes"] for c in found["nodes"]["changed"]} == {
        "conv": ["strides=(2, 2) added"], "relu": ["Relu became Neg"]
    }  # fmt: skip
    assert found["initializers"]["changed"] == [{"name": "w", "changes": ["1 of 108 values differ, by up to 0.5"]}]
    assert any(line.startswith("output z: ") for line in found["interface"])
    text = cli("diff", ok, other).out
    for line in ("+ extra", "~ conv: strides=(2, 2) added", "~ w: 1 of 108 values differ, by up to 0.5", "Relu: 1 to 0"):
        assert line in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (array(4, 3, 3, 3).astype(np.float16), "float became float16"),
        (array(8, 3, 3, 3), "shape [4, 3, 3, 3] became [8, 3, 3, 3]"),
    ],
)
def test_diff_of_weights_looks_at_type_then_shape(cli: Cli, ok: Path, tmp_path: Path, change: np.ndarray, told: str) -> None:
    proto = convolution()
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(change, "w"))
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "other.onnx")
    found = cli("diff", ok, tmp_path / "other.onnx", "--json").json
    assert found["initializers"]["changed"] == [{"name": "w", "changes": [told]}]


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out.startswith("graphopt ")
    for command in ((), ("run",), ("passes",), ("inspect",), ("verify",), ("bench",), ("bisect",), ("diff",), ("new-pass",)):
        done = cli(*command, "--help")
        assert done.code == 0
        assert "Usage" in done.out


def test_bake(cli: Cli, ok: Path) -> None:
    done = cli("run", ok, *FAST, "--bake", "--json", "--threads", "1")
    assert done.code == 0, done.err
    assert done.json["baked"]["provider"] == "cpu"
    assert "baked for runtime" in cli("run", ok, *FAST, "--bake").out


def test_fix_initializers(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = convolution()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3]))
    onnx.save(proto, path)
    for options, inputs in (((), ["x", "w"]), (("--fix-initializers",), ["x"])):
        written = cli("run", path, *FAST, *options, "--json").json["output"]
        assert [i.name for i in onnx.load(written).graph.input] == inputs
    assert cli("bisect", path, "--passes", "eliminate-identity", "--fix-initializers").code == 0
