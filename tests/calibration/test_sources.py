"""Sources: one sample at a time, again and again, checked; split without an overlap."""

import numpy as np
import pytest

from graphopt.calibration import open_source, split
from graphopt.calibration.sources import Called
from graphopt.errors import CalibrationError, OptionError
from tests.calibration.small import dense, two_inputs


def arrays(count: int = 6, rows: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((rows, 4)).astype(np.float32) for _ in range(count)]


def read(source) -> list[np.ndarray]:
    return [s.feeds["x"] for s in source]


def same(source, wanted) -> None:
    """Twice: a source can be gone through again."""
    for _ in range(2):
        found = read(source)
        assert len(found) == len(source) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_folders_of_arrays(tmp_path) -> None:
    wanted = arrays()
    for i, array in enumerate(wanted):
        if i % 2:
            np.save(tmp_path / f"{i}.npy", array)
        else:
            np.savez(tmp_path / f"{i}.npz", x=array, label=i)
    source = open_source(tmp_path, dense())
    same(source, wanted)
    assert [s.origin for s in source][:2] == ["0.npz", "1.npy"]


@pytest.mark.parametrize("kind", ["npy", "npz", "npz, compressed", "column-major"])
def test_many_samples_in_one_file(tmp_path, kind: str) -> None:
    wanted = arrays(7, rows=3)
    stack = np.stack(wanted)
    path = tmp_path / f"all.{kind[:3] if kind != 'column-major' else 'npy'}"
    if kind == "column-major":
        np.save(path, np.asfortranarray(stack))
    elif path.suffix == ".npy":
        np.save(path, stack)
    else:
        (np.savez_compressed if "compressed" in kind else np.savez)(path, x=stack, labels=np.arange(7))
    source = open_source(str(path), dense())
    same(source, wanted)
    same(split(source, 0)[0], [wanted[i] for i in split(source, 0)[0].numbers])
    assert [s.origin for s in source][1] == f"{path.name}[1]"


def test_one_sample_in_one_file(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=arrays(1, rows=5)[0])
    same(open_source(tmp_path / "a.npz", dense()), arrays(1, rows=5))


@pytest.mark.parametrize("given", ["list", "function", "generator function", "dicts", "object"])
def test_what_python_gives(given: str) -> None:
    wanted = arrays(4)

    class Loader:
        def __iter__(self):
            return iter(wanted)

    def generate():
        yield from wanted

    dicts = [{"x": a} for a in wanted]
    what = {"list": wanted, "function": lambda: wanted, "generator function": generate, "dicts": dicts, "object": Loader()}
    same(open_source(what[given], dense()), wanted)


def test_a_function_by_name(tmp_path) -> None:
    code = "import numpy as np\ndef load():\n    for i in range(3):\n        yield np.full((1, 4), i, np.float32)\n"
    (tmp_path / "data.py").write_text(code)
    same(open_source(f"{tmp_path}/data.py:load", dense()), [np.full((1, 4), i, np.float32) for i in range(3)])
    with pytest.raises(OptionError, match=r"calibration .*data.py:nothing: .* has no function nothing"):
        open_source(f"{tmp_path}/data.py:nothing", dense())


def test_samples_of_several_shapes(tmp_path) -> None:
    wanted = [arrays(1, rows=n)[0] for n in (1, 9, 4)]
    for i, array in enumerate(wanted):
        np.savez(tmp_path / f"{i}.npz", x=array)
    same(open_source(tmp_path, dense()), wanted)


def test_an_iterator_serves_once_only() -> None:
    with pytest.raises(CalibrationError, match="only once; give a function"):
        open_source(iter(arrays()), dense())


@pytest.mark.parametrize("seed", [0, 7])
def test_the_split_has_no_overlap(seed: int) -> None:
    source = open_source(arrays(23), dense())
    a, b = split(source, seed)
    assert sorted(a.numbers + b.numbers) == list(range(23))
    assert len(b) == 5
    assert split(source, seed) == (a, b)
    assert split(source, seed + 1) != (a, b)
    same(b, [arrays(23)[i] for i in b.numbers])


def test_the_split_of_few() -> None:
    assert [len(p) for p in split(open_source(arrays(1), dense()), 0)] == [1, 0]
    assert [len(p) for p in split(open_source(arrays(2), dense()), 0)] == [1, 1]
    assert [len(p) for p in split(open_source([], dense()), 0)] == [0, 0]


def bad(tmp_path, what: str):
    """A path with something wrong, and what is said of it."""
    folder = tmp_path / "d"
    folder.mkdir()
    if what == "nothing there":
        return tmp_path / "none", "none: no such calibration file or folder"
    if what == "empty folder":
        return folder, "no .npz, .npy or image file"
    if what == "other input":
        np.savez(folder / "a.npz", y=arrays(1)[0])
        return folder, r"a.npz: the model has no input 'y' \(its inputs: x\)"
    if what == "dtype":
        np.save(folder / "a.npy", arrays(1)[0].astype(np.float64))
        return folder, "a.npy: input 'x': expected float32, found float64"
    if what == "shape":
        np.save(folder / "a.npy", np.ones((2, 5), np.float32))
        return folder, r"a.npy: input 'x': expected 4 in dimension 1"
    if what == "rank":
        np.save(folder / "a.npy", np.ones(5, np.float32))
        return folder, "a.npy: input 'x': expected 2 dimensions"
    if what == "stacked shape":
        np.savez(folder / "a.npz", x=np.ones((3, 2, 5), np.float32))
        return folder, "a.npz, row 0: input 'x': expected 4 in dimension 1"
    if what == "pickle":
        np.save(folder / "a.npy", np.asarray([{}], object), allow_pickle=True)
        return folder, "a.npy: not a readable array .*objects"
    if what == "cut off":
        np.save(folder / "a.npy", np.ones((9, 2, 4), np.float32))
        (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-8])
        return folder, "a.npy: cut off"
    (folder / "a.npz").write_bytes(b"no archive")
    return folder, "a.npz: not a readable .npz file"


KINDS = ["nothing there", "empty folder", "other input", "dtype", "shape", "rank", "stacked shape", "pickle", "cut off", "garbage"]


@pytest.mark.parametrize("what", KINDS)
def test_bad_files_are_told_in_one_line(tmp_path, what: str) -> None:
    path, message = bad(tmp_path, what)
    with pytest.raises(CalibrationError, match=message) as caught:
        list(open_source(path, dense()))
    assert "\n" not in str(caught.value)


def test_one_array_is_not_enough_for_two_inputs(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4), np.float32))
    with pytest.raises(CalibrationError, match="one array, but the model has 2 inputs"):
        list(open_source(tmp_path, two_inputs()))


def test_what_python_gives_is_checked() -> None:
    def fails():
        yield arrays(1)[0]
        raise KeyError("lost")

    with pytest.raises(CalibrationError, match="calibration samples of fails: KeyError: 'lost'"):
        list(open_source(fails, dense()))
    with pytest.raises(CalibrationError, match=r"sample 1: expected a mapping .* found str"):
        list(open_source(["word"], dense()))
    with pytest.raises(CalibrationError, match=r"sample 2: input 'x': expected 2 dimensions"):
        list(open_source([arrays(1)[0], np.ones(4, np.float32)], dense()))
    with pytest.raises(CalibrationError, match="sample 1: no array for input 'z'"):
        list(Called(lambda: [{"x": arrays(1)[0]}], "given", two_inputs()))
