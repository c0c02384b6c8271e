"""Recipes: well-known architectures in plain torch, with seeded weights, exported to ONNX.

    module = RECIPES["resnet18"].build()                    # torch.nn.Module in eval mode
    feeds = RECIPES["resnet18"].example_inputs(seed=0, size="small")
    export(RECIPES["resnet18"], "resnet18.onnx", "legacy")

`python -m models.recipes NAME HOW OUT.onnx` and `python -m models.recipes --all DIR` do it from the command
line. Importing this package does not import torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from models.recipes.recipe import SIZES, Input, Recipe

__all__ = ["HOWS", "RECIPES", "SIZES", "Input", "Recipe", "export"]

HOWS = ("dynamo-raw", "dynamo", "legacy")

_IMAGE = {"image": Input(("batch", 3, "height", "width"))}
_IMAGE_224 = {"image": Input(("batch", 3, 224, 224))}


def _tokens(vocabulary: int) -> dict[str, Input]:
    return {"input_ids": Input(("batch", "seq"), bound=vocabulary)}


_ALL = (
    Recipe("resnet18", "resnet:resnet18", _IMAGE, ("logits",), options={"width": 64}, small_options={"width": 16}),
    Recipe("resnet50", "resnet:resnet50", _IMAGE, ("logits",), options={"width": 64}, small_options={"width": 8}),
    Recipe("mobilenet_v2", "mobilenet:mobilenet_v2", _IMAGE, ("logits",)),
    Recipe("efficientnet_b0", "efficientnet:efficientnet_b0", _IMAGE, ("logits",)),
    Recipe("repvgg_a0", "repvgg:repvgg_a0", _IMAGE, ("logits",), small_options={"divisor": 8}),
    Recipe("unet", "unet:unet", _IMAGE, ("mask",), options={"width": 32}, small_options={"width": 8}),
    Recipe("vit_tiny", "vit:vit_tiny", _IMAGE_224, ("logits",), small_options={"depth": 2}),
    Recipe(
        "bert_base",
        "bert:bert_base",
        {
            "input_ids": Input(("batch", "seq"), bound=30522),
            "attention_mask": Input(("batch", "seq"), kind="mask"),
            "token_type_ids": Input(("batch", "seq"), bound=2),
        },
        ("last_hidden_state", "pooler_output"),
        small_options={"depth": 2, "width": 96, "heads": 4, "hidden": 192},
    ),
    Recipe(
        "gpt2_small",
        "gpt2:gpt2_small",
        _tokens(50257),
        ("logits",),
        small_options={"depth": 2, "width": 64, "heads": 4},
    ),
    Recipe(
        "lstm",
        "lstm:lstm",
        _tokens(2000),
        ("logits",),
        small_options={"width": 32},
        # torch.export specialises the length of an LSTM's input to the example's.
        fixed={"dynamo": ("seq",), "dynamo-raw": ("seq",)},
    ),
    Recipe("llama_like", "llama:llama_like", _tokens(4096), ("logits",), small_options={"depth": 2}),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def export(recipe: Recipe, path: str | os.PathLike[str], how: str, small: bool = False) -> Path:
    """Export `recipe` to `path` and return the path.

    `how` is "dynamo-raw" (`torch.export`, no optimizer: BatchNormalization kept), "dynamo" (torch's own
    optimizer on, which folds BatchNormalization into Conv) or "legacy" (TorchScript, BatchNormalization kept).
    """
    from models.exporting import export_module

    if how not in HOWS:
        raise ValueError(f"unknown exporter {how!r}: expected one of {', '.join(HOWS)}")
    return export_module(
        recipe.build(small),
        recipe.example_inputs(),
        path,
        how,
        outputs=recipe.outputs,
        dynamic=recipe.dynamic(how),
    )
