"""`.pt2` files: what is none, what is damaged, and what would run code on being read."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from graphopt.errors import InputError  # noqa: E402
from graphopt.programs.archives import load_program  # noqa: E402
from graphopt.programs.capture import capture  # noqa: E402
from graphopt.programs.expressions import is_arithmetic  # noqa: E402


class Bomb:
    """Unpickling one writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    program = torch.export.export(nn.Linear(4, 2).eval(), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, path)
    return path.read_bytes()


def rewritten(archive: bytes, **changes: bytes | None) -> bytes:
    """The archive with files put in, changed or (None) left out; "__" stands for "/"."""
    wanted = {name.replace("__", "/"): data for name, data in changes.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            inside = name.removeprefix(f"{root}/")
            data = wanted.pop(inside, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for inside, data in wanted.items():
            if data is not None:
                new.writestr(f"{root}/{inside}", data)
    return out.getvalue()


def test_a_saved_program_is_read_and_the_file_left_alone(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(saved)
    captured = capture(path)
    assert captured.dims == {"input": {0: "batch"}} and captured.name == "net" and not captured.is_eager
    assert set(captured.program.state_dict) == {"weight", "bias"}
    assert path.read_bytes() == saved and list(tmp_path.iterdir()) == [path]


def refused(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        load_program(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    assert path.read_bytes() == data


def test_what_is_no_pt2(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with pytest.raises(InputError, match="no such file"):
        load_program(path)
    refused(path, b"", "is empty")
    refused(path, b"hello", "is no exported program but another kind of file")
    refused(path, pickle.dumps({"a": 1}), r"but a pickle \(torch.save of old\)")
    held = io.BytesIO()
    torch.save(nn.Linear(2, 2).state_dict(), held)
    refused(path, held.getvalue(), "but a torch.save of a state dict or of a pickled module")
    held = io.BytesIO()
    torch.save({"x": Bomb(tmp_path / "went_off")}, held)
    refused(path, held.getvalue(), "but a torch.save of a state dict or of a pickled module")
    held = io.BytesIO()
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), held)
    refused(path, held.getvalue(), "but a TorchScript module")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, held.getvalue(), "but another zip archive")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_program(tmp_path)
    assert not (tmp_path / "went_off").exists()


def test_what_is_damaged(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    refused(path, saved[: len(saved) // 2], "the archive is damaged or was cut short")
    flipped = bytearray(saved)
    weights = saved.index(b"data/weights/weight_0") + 400
    flipped[weights] ^= 0xFF
    refused(path, bytes(flipped), "the archive is damaged|the archive cannot be read|was cut short")
    refused(path, rewritten(saved, models__model_json=None, **{"models/model.json": b"{"}), "cannot be read as an exported program")
    refused(path, rewritten(saved, **{"models/model.json": None}), r"holds no program under the name 'model' \(there are: none\)")
    refused(path, rewritten(saved, archive_format=b"mobile"), "another archive of torch's")
    refused(path, rewritten(saved, archive_version=b"99"), "Saved archive version 99 does not match")


def test_another_schema_is_said_to_be_one(saved: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
        model = json.loads(archive.read(name))
    model["schema_version"] = {"major": 99, "minor": 0}
    model["torch_version"] = "9.0"
    data = rewritten(saved, **{"models/model.json": json.dumps(model).encode()})
    refused(tmp_path / "net.pt2", data, rf"it was written by torch 9\.0, and this is torch {re.escape(torch.__version__)}")


@pytest.mark.parametrize("where", ["weights", "constants", "sample_inputs", "object", "expression", "guard", "compiled"])
def test_nothing_is_unpickled_or_run(saved: bytes, tmp_path: Path, where: str) -> None:
    went_off = tmp_path / "went_off"
    bomb = io.BytesIO()
    torch.save(Bomb(went_off), bomb)
    if where in ("weights", "constants"):
        kind = "weight" if where == "weights" else "tensor"
        config = {"config": {"weight": {"path_name": f"{kind}_9", "is_param": True, "use_pickle": True, "tensor_meta": None}}}
        held = {f"data/{where}/model_{where}_config.json": json.dumps(config).encode(), f"data/{where}/{kind}_9": bomb.getvalue()}
        data = rewritten(saved, **held)
        message = "'weight' is stored pickled, which is not read"
    elif where == "sample_inputs":
        data, message = rewritten(saved, **{"data/sample_inputs/model.pt": bomb.getvalue()}), "the example inputs, holds more than tensors"
    elif where == "object":
        data, message = rewritten(saved, **{"data/constants/opaque_obj_0": pickle.dumps(Bomb(went_off))}), "is a pickled object"
    elif where == "compiled":
        data, message = rewritten(saved, **{"data/aotinductor/model/x.so": b"\x7fELF"}), "holds compiled code beside the program"
    else:
        with zipfile.ZipFile(io.BytesIO(saved)) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
            text = archive.read(name).decode()
        expression = f"__import__('pathlib').Path('{went_off}').touch()"
        old, new = ("Symbol('s31', positive=True, integer=True)", expression)
        if where == "guard":
            old, new = '"guards_code": []', f'"guards_code": ["{expression}"]'
        assert old in text
        data = rewritten(saved, **{"models/model.json": text.replace(old, new).encode()})
        message = "an expression that is none of sizes"
    refused(tmp_path / "net.pt2", data, message)
    assert not went_off.exists()


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("Mul(Float('0.5', precision=53), ToFloat(Symbol('s77', positive=True, integer=True)))", True),
        ("(L['x'].size()[0] // 2) != 1", True),
        ("math.floor(L['x'].size()[0] / 2) <= 50", True),
        ("Max(1, FloorDiv(s0, 2))", True),
        ("open('x', 'w')", False),
        ("().__class__", False),
        ("L['x'].data_ptr()", False),
        ("math.__loader__", False),
        ("sympify('1; 2')", False),
        ("[x for x in (1, 2)]", False),
        ("(lambda: 1)()", False),
        ("s0 +", False),
    ],
)
def test_only_arithmetic_is_an_expression_of_sizes(text: str, fine: bool) -> None:
    assert is_arithmetic(text) is fine
