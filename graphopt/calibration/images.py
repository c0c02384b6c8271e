"""Images as samples, with a declared preprocessing: what a model expects of an image, its file does not tell."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import CalibrationError, OptionError
from graphopt.verification.samples import fed_inputs

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})

_RESIZE = ("stretch", "shortest", "longest", "none")
_INTERPOLATION = ("nearest", "bilinear", "bicubic", "lanczos", "box")
_CHANNELS = ("RGB", "BGR", "GRAY")
_LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC")


@dataclass(frozen=True)
class Preprocessing:
    """From a file to an input, in this order: resize, crop or pad to `size`, channels, (pixel * scale - mean) / std, layout.

    Attributes:
        size: height and width of the result; one number for both.
        resize: "stretch": to `size`, whatever the proportions; "shortest": the shorter side to `resize-to`, the middle
            is cut out; "longest": the longer side to `resize-to`, the rest is filled with `fill`; "none": cut and filled.
        resize_to: what the side is brought to; `size` where it is left out.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos" or "box".
        fill: pixel value around an image that is too small, 0 to 255.
        scale, mean, std: of the pixels, which are 0 to 255; mean and std one number, or one a channel.
        channels: "RGB", "BGR" or "GRAY".
        layout: "NCHW", "NHWC", "CHW" or "HWC".
        input: the model's input that the image is; needed where there are several.
    """

    size: tuple[int, ...] = ()
    resize: str = "shortest"
    resize_to: int = 0
    interpolation: str = "bilinear"
    fill: int = 0
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: str = "RGB"
    layout: str = "NCHW"
    input: str = ""

    @classmethod
    def parse(cls, text: str | None, folder: Path) -> Preprocessing:
        """Out of a TOML file, or of options as in "size=224,224;mean=0.485,0.456,0.406;scale=1/255".

        Raises OptionError: none is given, the file cannot be read, an unknown option, a value that makes no sense.
        """
        if text is None:
            raise OptionError(
                f"{folder}: images need a declared preprocessing: --preprocess 'size=224,224;mean=...;std=...', "
                "or a preprocessing.toml in the folder"
            )
        if text.endswith(".toml"):
            try:
                data = tomllib.loads(Path(text).read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise OptionError(f"preprocessing {text}: not valid TOML: {error}") from None
            except OSError as error:
                raise OptionError(f"preprocessing {text}: cannot be read: {error.strerror}") from None
            return cls._checked(data, f"preprocessing {text}")
        data = {}
        for part in filter(None, (p.strip() for p in text.split(";"))):
            key, equals, value = part.partition("=")
            if not equals:
                raise OptionError(f"preprocessing {text!r}: expected KEY=VALUE;KEY=VALUE, or the name of a .toml file")
            data[key.strip()] = value.strip()
        return cls._checked(data, "preprocessing")

    @classmethod
    def _checked(cls, data: dict[str, Any], where: str) -> Preprocessing:
        known = {f.name.replace("_", "-"): f.name for f in fields(cls)}
        given: dict[str, Any] = {}
        for key, value in data.items():
            name = known.get(key.replace("_", "-"))
            if name is None:
                raise OptionError(f"{where}: unknown key {key!r} (known: {', '.join(known)})")
            try:
                given[name] = _convert(value, getattr(cls, name))
            except (ValueError, TypeError, ZeroDivisionError):
                raise OptionError(f"{where}: {value!r} makes no sense for {key}") from None
        if len(given.get("size", ())) == 1:
            given["size"] *= 2
        made = cls(**given)
        for key, choices in (("resize", _RESIZE), ("interpolation", _INTERPOLATION), ("channels", _CHANNELS), ("layout", _LAYOUTS)):
            if getattr(made, key) not in choices:
                raise OptionError(f"{where}: {key} must be one of {', '.join(choices)}, not {getattr(made, key)!r}")
        planes = 1 if made.channels == "GRAY" else 3
        for key in ("mean", "std"):
            if len(getattr(made, key)) not in (1, planes):
                raise OptionError(f"{where}: {key} needs 1 or {planes} numbers, not {len(getattr(made, key))}")
        if 0 in made.std:
            raise OptionError(f"{where}: std must not be 0")
        if len(made.size) not in (0, 2) or any(s < 1 for s in made.size):
            raise OptionError(f"{where}: size is a height and a width above 0")
        return made

    def input_of(self, model: ir.Model) -> ir.Value:
        """The input that the images are for. Raises OptionError where it is not clear which."""
        needed = {v.name: v for v in fed_inputs(model)}
        if self.input and self.input not in needed:
            raise OptionError(f"preprocessing: the model has no input {self.input!r} (its inputs: {', '.join(needed)})")
        if len(needed) != 1:
            raise OptionError(f"images are one input, but the model has {len(needed)}: {', '.join(needed)}; give .npz files instead")
        return next(iter(needed.values()))

    def target_size(self, value: ir.Value) -> tuple[int, int]:
        """Height and width; the input's own where they are not given. Raises OptionError where neither tells."""
        if self.size:
            return self.size[0], self.size[1]
        places = (self.layout.index("H"), self.layout.index("W"))
        if value.shape is not None and len(value.shape) == len(self.layout):
            height, width = (value.shape[p] for p in places)
            if isinstance(height, int) and isinstance(width, int):
                return height, width
        raise OptionError(f"preprocessing: size must be given, as input {value.name!r} does not tell height and width in {self.layout}")


def read_image(file: Path, how: Preprocessing, value: ir.Value) -> np.ndarray:
    """One image as the array of an input, in its dtype.

    Raises CalibrationError where the file is no readable image, or where Pillow is missing.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise CalibrationError(f"{file}: reading images needs Pillow: pip install 'graphopt[images]'") from None
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if how.channels == "GRAY" else "RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"{file}: not a readable image ({' '.join(str(error).split())})") from error
    pixels = np.asarray(_fitted(image, how, how.target_size(value)))
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if how.channels == "BGR":
        pixels = pixels[..., ::-1]
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    if dtype == np.uint8:
        made = pixels  # a model that takes pixels scales them itself
    else:
        made = (pixels.astype(np.float32) * np.float32(how.scale) - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    if how.layout.endswith("CHW"):
        made = made.transpose(2, 0, 1)
    if how.layout.startswith("N"):
        made = made[np.newaxis]
    return np.ascontiguousarray(made.astype(dtype, copy=False))


def _fitted(image: Image, how: Preprocessing, size: tuple[int, int]) -> Image:
    """The image in that height and width."""
    from PIL import Image as images

    method = getattr(images.Resampling, how.interpolation.upper())
    height, width = size
    if how.resize == "stretch":
        return image.resize((width, height), method)
    if how.resize != "none":
        pick = min if how.resize == "shortest" else max
        if how.resize_to:
            factor = how.resize_to / pick(image.size)
        else:  # so that the target is just covered, or just not left
            factor = (max if how.resize == "shortest" else min)(width / image.width, height / image.height)
        image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), method)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + width, top + height))
    canvas = images.new(image.mode, (width, height), (how.fill,) * 3 if image.mode == "RGB" else how.fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _convert(value: Any, like: Any) -> Any:
    """A value of TOML or of the command line in the type of an option."""
    if isinstance(like, str):
        if not isinstance(value, str):
            raise TypeError(value)
        return value
    if isinstance(like, tuple):
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        whole = like == ()  # of the options that are lists, only the size is in whole numbers
        return tuple(int(p) if whole else _number(p) for p in parts)
    return int(value) if isinstance(like, int) else _number(value)


def _number(value: Any) -> float:
    """A number, or a quotient as in "1/255"."""
    if isinstance(value, str) and "/" in value:
        above, _, below = value.partition("/")
        return float(above) / float(below)
    return float(value)
