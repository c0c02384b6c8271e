"""Reading `.pt2` files: only what is one, and nothing that runs code on being read."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import InputError
from graphopt.programs.expressions import is_arithmetic
from graphopt.programs.naming import NAMES
from graphopt.programs.torch_side import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_EXPORT = "save the program with torch.export.save(program, 'model.pt2')"


def load_program(path: Path) -> tuple[ExportedProgram, str]:
    """The exported program of a `.pt2` archive, and the names kept with it ("" where there are none). The file is not modified.

    Parts of an archive that torch would unpickle freely, or run as compiled code, are refused: an archive of plain
    tensors and a graph has none.

    Raises:
        InputError: there is no such file, it is something else (and what), or it is damaged or of another version.
    """
    import torch

    written_by = _check(path)
    try:
        with quiet():
            extra = {NAMES: ""}
            program = torch.export.load(path, extra_files=extra)
    except KeyError:
        raise InputError(f"{path}: holds no program under the name 'model': {_EXPORT}") from None
    except Exception as error:  # torch's reader raises whatever it meets: assertions, attribute and key errors
        raise InputError(f"{path}: cannot be read as an exported program: {_why(error, written_by)}") from error
    return program, extra[NAMES] if isinstance(extra[NAMES], str) else extra[NAMES].decode("utf-8", "replace")


def _why(error: BaseException, written_by: str) -> str:
    import torch

    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if first.startswith("We ran into an error"):  # what it was went to torch's log
        first = "torch cannot rebuild its graph"
    return f"{first[:200]} (it was written by torch {written_by}, and this is torch {torch.__version__}; or it is damaged)"


def _check(path: Path) -> str:
    """The version of torch that wrote the archive. Raises InputError where it is none, or is not to be read."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise InputError(f"{path}: is empty")
    if not head.startswith(b"PK"):
        raise InputError(f"{path}: is no exported program but {_kind(head)}: {_EXPORT}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _check_archive(path, archive)
    except zipfile.BadZipFile:
        raise InputError(f"{path}: the archive is damaged or was cut short") from None
    except (OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"{path}: the archive cannot be read: {error}") from None


def _kind(head: bytes) -> str:
    if head.startswith((b"\x80", b"}q", b"c")):
        return "a pickle (torch.save of old)"
    if head[:1] == b"\x08" and b"\x12" in head[:16]:
        return "perhaps an ONNX model, whose name should end in .onnx"
    return "another kind of file"


def _check_archive(path: Path, archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    root = names[0].split("/")[0] if names else ""
    inside = {name.removeprefix(f"{root}/"): name for name in names}
    if "archive_format" not in inside:
        raise InputError(f"{path}: is no exported program but {_other_archive(names, inside)}: {_EXPORT}")
    if archive.read(inside["archive_format"]).strip() != b"pt2":
        raise InputError(f"{path}: is no exported program but another archive of torch's: {_EXPORT}")
    programs = [name for name in inside if name.startswith("models/") and name.endswith(".json")]
    compiled = [name for name in inside if name.startswith("data/aotinductor/")]
    if compiled and not programs:
        raise InputError(f"{path}: holds compiled code of AOTInductor, not a program that can be optimized: {_EXPORT}")
    if compiled:
        raise InputError(f"{path}: holds compiled code beside the program, which is not run: save the program alone")
    if "models/model.json" not in inside:
        held = ", ".join(sorted(Path(name).stem for name in programs)) or "none"
        raise InputError(f"{path}: holds no program under the name 'model' (there are: {held}): {_EXPORT}")
    damaged = archive.testzip()
    if damaged is not None:
        raise InputError(f"{path}: the archive is damaged: '{damaged}' is not what was written")
    _check_payloads(path, archive, inside)
    return _check_sizes(path, archive.read(inside["models/model.json"]))


def _other_archive(names: list[str], inside: dict[str, str]) -> str:
    if any(name == "constants.pkl" or name.startswith("code/") for name in inside):
        return "a TorchScript module"
    if "data.pkl" in inside:
        return "a torch.save of a state dict or of a pickled module"
    if "serialized_exported_program.json" in names:
        return "one in the format of torch before 2.8"
    return "another zip archive"


def _check_payloads(path: Path, archive: zipfile.ZipFile, inside: dict[str, str]) -> None:
    """Refuses what torch would unpickle without restriction."""
    import torch

    for folder in ("data/weights/", "data/constants/"):
        for name in (name for name in inside if name.startswith(folder)):
            file = name.removeprefix(folder)
            if file.startswith(("custom_obj", "opaque_obj")) or file == "model.pt":
                raise InputError(f"{path}: '{name}' is a pickled object, which is not read, for it could run any code")
            if not file.endswith("config.json"):
                continue
            try:
                config = json.loads(archive.read(inside[name]))["config"]
                pickled = [key for key, about in config.items() if about.get("use_pickle")]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{path}: '{name}' is damaged") from None
            if pickled:
                raise InputError(f"{path}: '{pickled[0]}' is stored pickled, which is not read, for it could run any code")
    for name in (name for name in inside if name.startswith("data/sample_inputs/")):
        data = archive.read(inside[name])
        try:
            if data:
                torch.load(io.BytesIO(data), weights_only=True)
        except Exception:
            raise InputError(f"{path}: '{name}', the example inputs, holds more than tensors and numbers, and is not read") from None


def _check_sizes(path: Path, text: bytes) -> str:
    """The version of torch that wrote the program. Refuses what stands for a size but is none: torch evaluates it as Python."""
    try:
        about = json.loads(text)
    except ValueError:
        raise InputError(f"{path}: cannot be read as an exported program: 'models/model.json' is damaged") from None
    todo: list[Any] = [about]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            guards = part.get("guards_code")
            for size in (part.get("expr_str"), *(guards if isinstance(guards, list) else ())):
                if isinstance(size, str) and not is_arithmetic(size):
                    raise InputError(f"{path}: holds an expression that is none of sizes, {size[:60]!r}, and is not read")
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    return str(about.get("torch_version", "of an unknown version")) if isinstance(about, dict) else "of an unknown version"
