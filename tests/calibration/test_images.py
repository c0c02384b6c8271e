"""Images as samples: each step of the preprocessing, and what is refused."""

import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.calibration import images, open_source
from graphopt.calibration.images import Preprocessing
from graphopt.errors import CalibrationError, OptionError
from tests.calibration.small import two_inputs
from tests.support import model, node

Image = pytest.importorskip("PIL.Image")


def taking(*shape, dtype: int = 1) -> ir.Model:
    return ir.from_proto(model([node("Identity", ["image"], ["y"])], {"image": shape}, {"y": shape}, types={"image": dtype, "y": dtype}))


def picture(height: int, width: int) -> np.ndarray:
    """Red tells the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 10, columns * 10, np.full_like(rows, 200)], axis=-1).astype(np.uint8)


def only(tmp_path, pixels: np.ndarray, options: str, target: ir.Model) -> np.ndarray:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (sample,) = open_source(tmp_path, target, options)
    assert sample.origin == "a.png"
    return sample.feeds["image"]


def test_as_it_is(tmp_path) -> None:
    pixels = picture(4, 6)
    found = only(tmp_path, pixels, "resize=none;scale=1/255;mean=0.5,0.4,0.3;std=0.1,0.2,0.3", taking("N", 3, 4, 6))
    wanted = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.transpose(2, 0, 1)[np.newaxis], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layout", "shape"), [("NHWC", ("N", 4, 6, 3)), ("HWC", (4, 6, 3)), ("CHW", (3, 4, 6)), ("NCHW", ("N", 3, 4, 6))])
def test_layouts(tmp_path, layout: str, shape) -> None:
    found = only(tmp_path, picture(4, 6), f"resize=none;scale=1;layout={layout}", taking(*shape))
    wanted = picture(4, 6).astype(np.float32)
    wanted = wanted.transpose(2, 0, 1) if "CHW" in layout else wanted
    np.testing.assert_array_equal(found, wanted[np.newaxis] if layout[0] == "N" else wanted)


def test_channels(tmp_path) -> None:
    found = only(tmp_path, picture(4, 6), "resize=none;scale=1;channels=BGR", taking("N", 3, 4, 6))
    np.testing.assert_array_equal(found[0], picture(4, 6).astype(np.float32)[..., ::-1].transpose(2, 0, 1))
    grey = only(tmp_path, picture(4, 6), "resize=none;scale=1;channels=GRAY", taking("N", 1, 4, 6))
    np.testing.assert_allclose(grey[0, 0], picture(4, 6) @ [0.299, 0.587, 0.114], atol=1)


def test_pixels_for_a_model_that_scales_them_itself(tmp_path) -> None:
    found = only(tmp_path, picture(4, 6), "resize=none;layout=NHWC", taking("N", 4, 6, 3, dtype=2))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], picture(4, 6))


def test_the_middle_is_cut_out_and_the_rest_filled(tmp_path) -> None:
    pixels = picture(8, 12)
    found = only(tmp_path, pixels, "size=4,6;resize=none;scale=1;layout=NHWC", taking("N", 4, 6, 3))
    np.testing.assert_array_equal(found[0], pixels[2:6, 3:9])
    found = only(tmp_path, pixels, "size=10;resize=none;scale=1;layout=NHWC;fill=7", taking("N", 10, 10, 3))
    assert (found[0, 0] == 7).all()
    assert (found[0, -1] == 7).all()
    np.testing.assert_array_equal(found[0, 1:9], pixels[:, 1:11])


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("resize=stretch;size=5,9", (5, 9)), ("resize=shortest;size=6,6", (6, 6)), ("resize=shortest;resize-to=7;size=6", (6, 6)),
        ("resize=longest;size=6,6", (6, 6)), ("size=3;interpolation=nearest", (3, 3)),
    ],
)  # fmt: skip
def test_sizes(tmp_path, options: str, size) -> None:
    found = only(tmp_path, np.full((8, 12, 3), 100, np.uint8), f"{options};scale=1", taking("N", 3, "H", "W"))
    assert found.shape == (1, 3, *size)
    inside = found[0, :, size[0] // 2, size[1] // 2]
    np.testing.assert_array_equal(inside, 100)
    bordered = "longest" in options
    assert (found[0, 0, 0, size[1] // 2] == 0) == bordered


def test_the_size_of_the_input_and_a_file_in_the_folder(tmp_path) -> None:
    (tmp_path / "preprocessing.toml").write_text('scale = 1\nmean = [1, 2, 3]\nchannels = "RGB"\nresize = "stretch"\n')
    for i in range(3):
        Image.fromarray(np.full((8, 12, 3), i, np.uint8)).save(tmp_path / f"{i}.jpg", quality=100)
    source = open_source(tmp_path, taking(1, 3, 4, 4))
    assert len(source) == 3
    for i, sample in enumerate(source):
        np.testing.assert_allclose(sample.feeds["image"][0, :, 0, 0], [i - 1, i - 2, i - 3], atol=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "images need a declared preprocessing"),
        ("size", "expected KEY=VALUE"),
        ("sise=3", "unknown key 'sise'"),
        ("size=big", "'big' makes no sense for size"),
        ("size=0", "above 0"),
        ("resize=crop", "resize must be one of stretch"),
        ("mean=1,2", "mean needs 1 or 3 numbers, not 2"),
        ("std=0", "std must not be 0"),
        ("scale=1/0", "makes no sense for scale"),
        ("input=picture", "no input 'picture'"),
        ("none.toml", "cannot be read"),
        ("scale=1", "size must be given"),
    ],
)
def test_preprocessings_that_make_no_sense(tmp_path, text, message: str) -> None:
    Image.fromarray(picture(4, 6)).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match=message):
        open_source(tmp_path, taking("N", 3, "H", "W"), text)


def test_bad_images(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match=r"a\.png: not a readable image"):
        list(open_source(tmp_path, taking("N", 3, 4, 6), "scale=1"))
    with pytest.raises(CalibrationError, match="expected 4 in dimension 1"):
        only(tmp_path, picture(4, 6), "scale=1;size=4,6", taking("N", 4, 4, 6))
    with pytest.raises(OptionError, match="images are one input, but the model has 2"):
        open_source(tmp_path, two_inputs(), "scale=1")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match="holds both arrays"):
        open_source(tmp_path, taking("N", 3, 4, 6), "scale=1")


def test_without_pillow(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    how = Preprocessing.parse("scale=1", tmp_path)
    with pytest.raises(CalibrationError, match=r"needs Pillow: pip install 'graphopt\[images\]'"):
        images.read_image(tmp_path / "a.png", how, taking(1, 3, 4, 4).graph.inputs[0])
