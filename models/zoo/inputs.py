"""Plausible seeded inputs for the models of the zoo: images with writing and texture, tones, tokens, bytes.

They are made, not photographed, but shaped and scaled as each family's own preprocessing does it, so that the
models answer with something else than silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Feeds = dict[str, np.ndarray]

RATE = 16000

# Rows of ten 5 x 7 digits, the five low bits of each number being the pixels of a row.
_GLYPHS = np.array(
    [
        [14, 17, 19, 21, 25, 17, 14],
        [4, 12, 4, 4, 4, 4, 14],
        [14, 17, 1, 2, 4, 8, 31],
        [31, 2, 4, 2, 1, 17, 14],
        [2, 6, 10, 18, 31, 2, 2],
        [31, 16, 30, 1, 1, 17, 14],
        [6, 8, 16, 30, 17, 17, 14],
        [31, 1, 2, 4, 8, 8, 8],
        [14, 17, 17, 14, 17, 17, 14],
        [14, 17, 17, 15, 1, 2, 12],
    ]
)


def _scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth colour image, float64 [3, height, width] in [0, 1]: gradients, blobs and a disc."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    image = np.empty((3, height, width))
    slopes = rng.uniform(-0.3, 0.3, (3, 2))
    for channel, (down, right) in enumerate(slopes):
        image[channel] = 0.5 + down * (y - 0.5) + right * (x - 0.5)
    for _ in range(6):
        centre, spread = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3)
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * spread**2))
        image += rng.uniform(-0.5, 0.5, 3)[:, None, None] * blob
    inside = (y - rng.uniform(0.3, 0.7)) ** 2 + (x - rng.uniform(0.3, 0.7)) ** 2 < rng.uniform(0.1, 0.3) ** 2
    image[:, inside] = 0.3 * image[:, inside] + 0.7 * rng.uniform(0, 1, 3)[:, None]
    return np.clip(image + rng.normal(0, 0.01, image.shape), 0, 1)


def _write(rng: np.random.Generator, image: np.ndarray, top: int, left: int, scale: int, length: int) -> None:
    """Write `length` random digits into `image`, dark on what is there, each 5 x 7 pixels times `scale`."""
    height, width = image.shape[1:]
    for position in range(length):
        bits = _GLYPHS[rng.integers(10)][:, None] >> np.arange(4, -1, -1) & 1
        stamp = np.kron(bits, np.ones((scale, scale))).astype(bool)
        y, x = top, left + position * 6 * scale
        if y + stamp.shape[0] > height or x + stamp.shape[1] > width:
            break
        patch = image[:, y : y + stamp.shape[0], x : x + stamp.shape[1]]
        patch[:, stamp] = 0.05


def _page(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A light page with lines of writing, float64 [3, height, width] in [0, 1]."""
    image = 0.75 + 0.25 * _scene(rng, height, width)
    top = 24
    while top + 28 < height:
        scale = int(rng.integers(2, 4))
        _write(rng, image, top, int(rng.integers(10, 60)), scale, int(rng.integers(5, 16)))
        top += 7 * scale + int(rng.integers(20, 50))
    return np.clip(image, 0, 1)


def _line(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One line of writing that fills an image of `height`, as a text recognizer is given it."""
    image = np.full((3, height, width), rng.uniform(0.8, 1.0)) + rng.normal(0, 0.01, (3, height, width))
    scale = max(1, (height - 8) // 8)
    _write(rng, image, (height - 7 * scale) // 2, 6, scale, int(rng.integers(3, 12)))
    return np.clip(image, 0, 1)


def _tone(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Voiced sound, float64 [samples] in [-1, 1]: a gliding pitch with harmonics, swelling, a little noise."""
    time = np.arange(samples) / RATE
    pitch = rng.uniform(90, 400) * (1 + 0.05 * np.sin(2 * np.pi * rng.uniform(0.5, 4) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE + rng.uniform(0, 2 * np.pi)
    wave = sum(np.sin(k * phase) / k for k in range(1, 9))
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * time + rng.uniform(0, 6))
    wave = wave * swell / np.abs(wave).max()
    return np.clip(0.7 * wave + rng.normal(0, 0.01, samples), -1, 1)


def _f32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)


@dataclass(frozen=True)
class _Kind:
    """How a model is fed: `make(rng, size)`, with the size to use and another one, if its sizes can change."""

    make: Callable[[np.random.Generator, tuple[int, ...]], Feeds]
    size: tuple[int, ...]
    alt: tuple[int, ...] | None


def _images(
    name: str,
    draw: Callable[[np.random.Generator, int, int], np.ndarray],
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
) -> Callable[[np.random.Generator, tuple[int, ...]], Feeds]:
    """Feeds `{name: float32 [batch, 3, height, width]}`, normalised; size is (batch, height, width)."""
    shift, scale = (np.array(values)[:, None, None] for values in (mean, deviation))

    def make(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
        batch, height, width = size
        return {name: _f32(np.stack([(draw(rng, height, width) - shift) / scale for _ in range(batch)]))}

    return make


def _sentences(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
    """Token ids [batch, seq] between [CLS] and [SEP], rows but the first padded at the end."""
    batch, length = size
    ids = rng.integers(1000, 30522, (batch, length), dtype=np.int64)
    mask = np.ones((batch, length), dtype=np.int64)
    ids[:, 0] = 101
    for row in range(batch):
        used = length if row == 0 else int(rng.integers(max(2, length // 3), length))
        ids[row, used - 1] = 102
        ids[row, used:] = 0
        mask[row, used:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _letters(name: str, low: int, high: int, space: int) -> Callable[[np.random.Generator, tuple[int, ...]], Feeds]:
    """Feeds of character ids [batch, seq]: letters from `low` up to `high`, in words."""

    def make(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
        ids = rng.integers(low, high, size, dtype=np.int64)
        ids[rng.random(size) < 0.17] = space
        return {name: ids}

    return make


def _speech(rate: bool = True) -> Callable[[np.random.Generator, tuple[int, ...]], Feeds]:
    """Frames of sound [batch, samples], a silent state, and the rate in Hz; size is (batch, samples, rate)."""

    def make(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
        batch, samples, hertz = size
        fed: Feeds = {"input": _f32(np.stack([_tone(rng, samples) for _ in range(batch)]))}
        fed["state"] = np.zeros((2, batch, 128), np.float32)
        if rate:
            fed["sr"] = np.array(hertz, np.int64)
        return fed

    return make


def _sequence(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
    sound = _tone(rng, size[0] * 512 + 64)
    # Each frame begins with the last 64 samples of the one before.
    frames = np.lib.stride_tricks.sliding_window_view(sound, 576)[::512]
    zeros = np.zeros((1, 1, 128), np.float32)
    return {"input": _f32(frames), "h": zeros, "c": zeros.copy()}


def _pitch(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
    return {
        "audio": _f32(_tone(rng, size[0])[None]),
        "fmin": np.array(46.875, np.float32),
        "fmax": np.array(2093.75, np.float32),
    }


def _notes(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
    windows = [_tone(rng, 43844)[:, None] for _ in range(size[0])]
    return {"serving_default_input_2:0": _f32(np.stack(windows))}


def _frames(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
    frames = np.stack([_tone(rng, 1024) for _ in range(size[0])])
    frames -= frames.mean(axis=1, keepdims=True)
    return {"frames": _f32(frames / frames.std(axis=1, keepdims=True))}


def _text(rng: np.random.Generator) -> bytes:
    words = ["def", "return", "import", "self", "value", "for", "in", "if", "else", "None", "print", "(x)", "=", "1"]
    lines = []
    for _ in range(int(rng.integers(20, 120))):
        chosen = rng.choice(words, int(rng.integers(2, 9)))
        lines.append("    " * int(rng.integers(0, 3)) + " ".join(chosen))
    return "\n".join(lines).strip().encode()


def _bytes(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
    """The first and the last 1024 bytes of files, int32, 256 where a file is shorter."""
    rows = np.full((size[0], 2048), 256, np.int32)
    for row in rows:
        content = np.frombuffer(_text(rng), np.uint8)
        head, tail = content[:1024], content[-1024:]
        row[: len(head)] = head
        row[2048 - len(tail) :] = tail
    return {"bytes": rows}


def _measures(rng: np.random.Generator, size: tuple[int, ...]) -> Feeds:
    return {"input": _f32(rng.uniform(0, 5, (size[0], 4)))}


_HALF = ((0.5,) * 3, (0.5,) * 3)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_EFFNET = _Kind(_images("image", _scene, (0.498,) * 3, (0.502,) * 3), (1, 224, 224), (3, 224, 224))
_CREPE = _Kind(_frames, (16,), (5,))
_MINILM = _Kind(_sentences, (1, 64), (3, 24))
_MEASURES = _Kind(_measures, (1,), (7,))

_KINDS: dict[str, _Kind] = {
    "basic_pitch": _Kind(_notes, (1,), (2,)),
    "crepe_full_dynamo": _CREPE,
    "crepe_tiny_legacy": _CREPE,
    "effnet_lite0_dynamo": _EFFNET,
    "effnet_lite0_dynamo_raw": _EFFNET,
    "effnet_lite0_legacy_bn": _EFFNET,
    "magika_v3_3": _Kind(_bytes, (1,), (4,)),
    "minilm_l6_fp32_dynamo": _MINILM,
    "minilm_l6_fp32_legacy": _MINILM,
    "minilm_l6_int8": _MINILM,
    "mtcnn_onet": _Kind(_images("image", _scene, *_HALF), (16, 48, 48), (5, 48, 48)),
    "mtcnn_pnet": _Kind(_images("image", _scene, *_HALF), (1, 240, 320), (2, 120, 161)),
    "ppocrv2_cls": _Kind(_images("x", _line, *_HALF), (1, 48, 192), (3, 48, 128)),
    "ppocrv4_det": _Kind(_images("x", _page, *_IMAGENET), (1, 480, 640), (2, 320, 448)),
    "ppocrv4_rec": _Kind(_images("x", _line, *_HALF), (1, 48, 320), (3, 48, 216)),
    "silero_vad": _Kind(_speech(), (1, 576, 16000), (3, 288, 8000)),
    "silero_vad_16k_op15": _Kind(_speech(), (1, 576, 16000), (3, 576, 16000)),
    "silero_vad_16k_seq": _Kind(_sequence, (31,), (7,)),
    "silero_vad_half": _Kind(_speech(rate=False), (1, 576, 16000), (3, 576, 16000)),
    "silero_vad_ifless_op18": _Kind(_speech(), (1, 576, 16000), (3, 288, 8000)),
    "surf_gradient_boosting_regressor": _MEASURES,
    "surf_k_neighbors_classifier": _MEASURES,
    "surf_k_neighbors_classifier_validity": _MEASURES,
    "surf_k_neighbors_regressor": _MEASURES,
    "swift_f0": _Kind(_pitch, (32000,), (12345,)),
    "tashkeel_bilstm_int8": _Kind(_letters("input_ids", 4, 41, 41), (1, 60), (3, 25)),
    "tashkeel_rawi_ensemble_int8": _Kind(_letters("input", 149, 180, 3), (1, 60), (3, 25)),
    "tashkeel_rawi_int8": _Kind(_letters("input", 149, 180, 3), (1, 60), (3, 25)),
    "vit_s_focus": _Kind(_images("input_image", _scene, *_IMAGENET), (1, 224, 224), (2, 224, 224)),
}


def has_alt(name: str) -> bool:
    """Whether the model `name` runs at more than one size."""
    return _KINDS[name].alt is not None


def feeds(name: str, seed: int = 0, alt: bool = False) -> Feeds:
    """Inputs by name for the public model `name`, the same for the same `seed`.

    `alt` gives another size of the dynamic dimensions: batch, and length or height and width where the model
    lets them vary (and the other sampling rate where it knows two).
    """
    kind = _KINDS[name]
    # The name is no part of it: variants of one net get the same inputs and can be compared.
    rng = np.random.default_rng([seed, int(alt)])
    return kind.make(rng, kind.alt if alt and kind.alt else kind.size)
