"""Tiny models of Hugging Face `transformers` with seeded random weights: their graphs are those of the large ones.

    module = MODELS["bert"].build()                          # torch.nn.Module in eval mode, one or two outputs
    path = export(MODELS["bert"], "bert.onnx", "dynamo")

Nothing is downloaded: configurations are written here. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.recipes.recipe import SIZES, Input

if TYPE_CHECKING:
    import torch
    from torch import nn

HOWS = ("dynamo-raw", "dynamo", "legacy")
_NEW = ("dynamo-raw", "dynamo")  # without a mask, positions go through an operator that the older exporter lacks
_TOKENS = {"input_ids": Input(("batch", "seq"), bound=99), "attention_mask": Input(("batch", "seq"), kind="mask")}
_IMAGE = {"pixel_values": Input(("batch", 3, 32, 32))}


@dataclass(frozen=True)
class Model:
    """One architecture, made small.

    Attributes:
        config, model: names of classes of transformers.
        options: the configuration.
        inputs: as in recipes; a mask has ones, with zeros at the ends of rows but the first.
        outputs: attributes of what the model returns, in order.
        attentions: how many attentions it holds.
        hows: the exporters that can export it.
    """

    name: str
    config: str
    model: str
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    attentions: int
    options: Mapping[str, Any] = field(default_factory=dict)
    hows: tuple[str, ...] = HOWS

    def build(self) -> nn.Module:
        """The module, whose forward takes the inputs by position and gives the outputs as a tuple."""
        import torch
        import transformers

        config = getattr(transformers, self.config)(**self.options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            module = getattr(transformers, self.model)(config)
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if weight.ndim == 2 and "embed" not in name:
                    weight.mul_(4.0)  # as they come, scores are near 0 and every attention is the same mean
        return _plain(module.eval(), tuple(self.inputs), self.outputs)

    def example_inputs(self, seed: int = 0, size: str = "small") -> dict[str, torch.Tensor]:
        """Seeded inputs by name; `size`, a key of the recipes' `SIZES`, gives the symbolic axes' sizes."""
        import torch

        random = torch.Generator().manual_seed(seed)
        made = {}
        for name, spec in self.inputs.items():
            shape = [SIZES[size][axis] if isinstance(axis, str) else axis for axis in spec.shape]
            if spec.kind == "mask":
                made[name] = torch.ones(shape, dtype=torch.int64)
                made[name][1:, shape[1] * 2 // 3:] = 0
            elif spec.bound:
                made[name] = torch.randint(min(2, spec.bound - 2), spec.bound, shape, generator=random)
            else:
                made[name] = torch.randn(shape, generator=random)
        return made


def _plain(module: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...]) -> nn.Module:
    """`module` with tensors for arguments and a tuple of tensors for its result; no cache of keys and values."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def call(self, given: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
            cache = {} if not hasattr(module.config, "use_cache") else {"use_cache": False}
            result = self.inner(**given, **cache)
            return tuple(getattr(result, name) for name in outputs)

    # torch.export and torch.jit.trace want the arguments' names.
    source = f"def forward(self, {', '.join(names)}):\n    return self.call({{{', '.join(f'{n!r}: {n}' for n in names)}}})\n"
    scope: dict[str, Callable[..., Any]] = {}
    exec(source, scope)
    Plain.forward = scope["forward"]  # type: ignore[method-assign]
    return Plain().eval()


_WIDTH = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_TEXT = {**_WIDTH, "vocab_size": 99, "max_position_embeddings": 512}
_DECODER = {**_TEXT, "num_key_value_heads": 2}

_ALL = (
    Model("bert", "BertConfig", "BertModel", {**_TOKENS, "token_type_ids": Input(("batch", "seq"), bound=2)},
          ("last_hidden_state", "pooler_output"), 2, _TEXT),
    Model("roberta", "RobertaConfig", "RobertaModel", _TOKENS, ("last_hidden_state",), 2, {**_TEXT, "max_position_embeddings": 514}),
    Model("distilbert", "DistilBertConfig", "DistilBertModel", _TOKENS, ("last_hidden_state",), 2,
          {"vocab_size": 99, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}),
    Model("gpt2", "GPT2Config", "GPT2LMHeadModel", {"input_ids": _TOKENS["input_ids"]}, ("logits",), 2,
          {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}, hows=_NEW),
    Model("gpt2-mask", "GPT2Config", "GPT2LMHeadModel", _TOKENS, ("logits",), 2,
          {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}),
    Model("t5", "T5Config", "T5Model",
          {**_TOKENS, "decoder_input_ids": Input(("batch", "seq_out"), bound=99)}, ("last_hidden_state",), 6,
          {"vocab_size": 99, "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2}),
    Model("vit", "ViTConfig", "ViTModel", _IMAGE, ("last_hidden_state",), 2, {**_WIDTH, "image_size": 32, "patch_size": 8}),
    Model("clip-text", "CLIPTextConfig", "CLIPTextModel", _TOKENS, ("last_hidden_state",), 2,
          {**_TEXT, "max_position_embeddings": 77, "bos_token_id": 97, "eos_token_id": 98}),
    Model("clip-vision", "CLIPVisionConfig", "CLIPVisionModel", _IMAGE, ("last_hidden_state",), 2,
          {**_WIDTH, "image_size": 32, "patch_size": 8}),
    Model("whisper", "WhisperConfig", "WhisperModel",
          {"input_features": Input(("batch", 16, 60)), "decoder_input_ids": Input(("batch", "seq_out"), bound=99)},
          ("last_hidden_state",), 6,
          {"vocab_size": 99, "num_mel_bins": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "d_model": 64, "max_source_positions": 30,
           "max_target_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}, hows=_NEW),
    Model("llama", "LlamaConfig", "LlamaForCausalLM", {"input_ids": _TOKENS["input_ids"]}, ("logits",), 2, _DECODER, hows=_NEW),
    Model("llama-mask", "LlamaConfig", "LlamaForCausalLM", _TOKENS, ("logits",), 2, _DECODER),
    Model("qwen2", "Qwen2Config", "Qwen2ForCausalLM", {"input_ids": _TOKENS["input_ids"]}, ("logits",), 2, _DECODER, hows=_NEW),
    Model("phi", "PhiConfig", "PhiForCausalLM", {"input_ids": _TOKENS["input_ids"]}, ("logits",), 2,
          {**_TEXT, "partial_rotary_factor": 0.5}, hows=_NEW),
)

MODELS: dict[str, Model] = {model.name: model for model in _ALL}


def export(model: Model, path: str | os.PathLike[str], how: str) -> Path:
    """Export `model` to `path` and return the path; `how` as in the recipes."""
    from models.exporting import export_module

    inputs = model.example_inputs()
    dynamic = {name: spec.axes for name, spec in model.inputs.items() if spec.axes}
    return export_module(model.build(), inputs, path, how, outputs=model.outputs, dynamic=dynamic)
