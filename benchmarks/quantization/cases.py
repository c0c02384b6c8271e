"""The models that tools are compared on: the public zoo, the digits net, and recipes exported to a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.quantization import data, tasks
from benchmarks.quantization.tasks import Feeds, Task

ROOT = Path(__file__).parents[2]

#: Recipes that the geometric mean of the CNNs and encoders counts, as their exports are called.
RECIPES = {"resnet50": "cnn", "mobilenet_v2": "cnn", "repvgg_a0": "cnn", "bert_base": "encoder"}
HOW = "dynamo"


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name, path: what it is called, and how its file is found (fetched or exported on first use).
        kind: "cnn", "ocr", "encoder", "audio", "text", "quantized" (it is on integers already).
        task: its inputs and how well it does.
        timed: the inputs of the size that it is timed on.
        transformer: what a tool that asks is told of its architecture, "" for none.
        headline: whether the geometric mean of CNNs and encoders counts it.
    """

    name: str
    path: Callable[[], Path]
    kind: str
    task: Task
    timed: Callable[[], Feeds]
    transformer: str = ""
    headline: bool = False


_HALF = (0.5,) * 3
_ZOO: dict[str, tuple[str, Task]] = {
    "effnet_lite0_dynamo": ("cnn", tasks.photographs("image", 0.498, 0.502, answers="logits")),
    "effnet_lite0_dynamo_raw": ("cnn", tasks.photographs("image", 0.498, 0.502, answers="logits")),
    "effnet_lite0_legacy_bn": ("cnn", tasks.photographs("image", 0.498, 0.502, answers="logits")),
    "mtcnn_onet": ("cnn", tasks.FACES),
    "mtcnn_pnet": ("cnn", tasks.photographs("image", 0.498, 0.502, size=(240, 256))),
    "ppocrv2_cls": ("ocr", tasks.TURNED),
    "ppocrv4_det": ("ocr", tasks.PAGES),
    "ppocrv4_rec": ("ocr", tasks.reading(lambda: _letters())),
    "minilm_l6_fp32_dynamo": ("encoder", tasks.sentences()),
    "minilm_l6_fp32_legacy": ("encoder", tasks.sentences()),
    "vit_s_focus": ("encoder", tasks.photographs("input_image", *tasks._IMAGENET)),
    "crepe_tiny_legacy": ("audio", tasks.PITCH),
    "crepe_full_dynamo": ("audio", tasks.PITCH),
    "swift_f0": ("audio", tasks.SWIFT),
    "basic_pitch": ("audio", tasks.NOTES),
    "silero_vad": ("audio", tasks.speech("sr")),
    "silero_vad_16k_op15": ("audio", tasks.speech("sr")),
    "silero_vad_16k_seq": ("audio", tasks.speech("whole")),
    "silero_vad_half": ("audio", tasks.speech("plain")),
    "silero_vad_ifless_op18": ("audio", tasks.speech("sr")),
    "magika_v3_3": ("text", tasks.FILES),
    "minilm_l6_int8": ("quantized", tasks.sentences()),
    "tashkeel_bilstm_int8": ("quantized", tasks.seeded(lambda seed: _zoo_feeds("tashkeel_bilstm_int8", seed))),
    "tashkeel_rawi_int8": ("quantized", tasks.seeded(lambda seed: _zoo_feeds("tashkeel_rawi_int8", seed))),
    "tashkeel_rawi_ensemble_int8": ("quantized", tasks.seeded(lambda seed: _zoo_feeds("tashkeel_rawi_ensemble_int8", seed))),
}
_TRANSFORMERS = {"minilm_l6_fp32_dynamo": "bert", "minilm_l6_fp32_legacy": "bert", "vit_s_focus": "vit", "bert_base": "bert"}
# EfficientNet in three exports and MiniLM in two are one model each in the geometric mean.
_HEADLINE = ("effnet_lite0_dynamo", "minilm_l6_fp32_dynamo", "vit_s_focus", "mtcnn_onet", *RECIPES)


def cases(recipes: Path | None) -> list[Case]:
    """All models; those of the recipes only where `recipes`, a folder that `python -m models.recipes --all` wrote, is given."""
    found = [_of_recipe(name, recipes) for name in RECIPES] if recipes is not None else []
    found += [_of_zoo(name) for name in _ZOO]
    return [*found, _digits()]


def _of_zoo(name: str) -> Case:
    from models.zoo import fetch

    kind, task = _ZOO[name]
    return Case(name, lambda: fetch(name), kind, task, lambda: _zoo_feeds(name, 7), _TRANSFORMERS.get(name, ""), name in _HEADLINE)


def _zoo_feeds(name: str, seed: int) -> Feeds:
    from models.zoo import feeds

    return feeds(name, seed=seed)


def _of_recipe(name: str, folder: Path) -> Case:
    if RECIPES[name] == "cnn":
        task = tasks.photographs("image", *tasks._IMAGENET)
    else:
        task = tasks.seeded(lambda seed: _recipe_feeds(name, seed))
    path = folder / f"{name}.{HOW}.onnx"
    return Case(name, lambda: path, RECIPES[name], task, lambda: _recipe_feeds(name, 7), _TRANSFORMERS.get(name, ""), True)


def _recipe_feeds(name: str, seed: int) -> Feeds:
    from models.recipes import RECIPES as KNOWN

    return {key: value.numpy() for key, value in KNOWN[name].example_inputs(seed=seed, size="single", how=HOW).items()}


def _digits() -> Case:
    with np.load(ROOT / "models/digits/heldout.npz") as held:
        arrays = dict(held)
    return Case("digits", lambda: ROOT / "models/digits/digits.onnx", "cnn", tasks.digits(arrays, _unlabelled),
                lambda: {"image": arrays["image"][:1]})  # fmt: skip


def _unlabelled() -> list[Feeds]:
    from models.digits.samples import unlabelled

    return list(unlabelled())


@cache
def _letters() -> list[str]:
    """What PP-OCR's recognizer can read: its file says so."""
    import onnx

    from models.zoo import fetch

    model = onnx.load(fetch("ppocrv4_rec"), load_external_data=False)
    return next(entry.value for entry in model.metadata_props if entry.key == "character").splitlines()


def missing(case: Case) -> str:
    """What of the data of a case was not collected; "" where all is there."""
    return case.task.data if case.task.data and not data.there(case.task.data) else ""
