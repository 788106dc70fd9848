"""Small open_clip models with random weights, one for each kind of verifier, laid out as published ones.

Each starts from a config that open_clip publishes; the towers are made smaller, and the rest stays.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from tiny_pipelines import TOKENS, tokenizer

WIDTH = 64
SIDE = 64
_HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
_SQUASHED = {"interpolation": "bicubic", "resize_mode": "squash"}
_TOWER = {"layers": 2, "width": WIDTH, "head_width": 32, "image_size": SIDE, "patch_size": 16}
_RESNET = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "image_size": SIDE}


@dataclass(frozen=True, slots=True)
class Kind:
    """`published` is the config of open_clip to start from, `vision` what is smaller in its image tower."""

    published: str
    vision: Mapping[str, Any] = field(default_factory=lambda: _TOWER)
    preprocess: Mapping[str, Any] = field(default_factory=dict)


KINDS: Mapping[str, Kind] = {
    "CLIP ViT": Kind("ViT-B-32"),
    "CLIP ViT, QuickGELU (OpenAI, DFN, MetaCLIP)": Kind("ViT-B-16-quickgelu"),
    "CLIP ResNet": Kind("RN50", _RESNET),
    "CLIP ConvNeXt": Kind("convnext_base", {"timm_model_name": "test_convnext", "image_size": 160}),
    "CLIP Swin": Kind("swin_base_patch4_window7_224", {"timm_model_name": "swin_tiny_patch4_window7_224"}),
    "CLIPA": Kind("ViT-L-14-CLIPA", _TOWER, _SQUASHED),
    "EVA-02": Kind("EVA02-B-16", {"timm_model_name": "eva02_tiny_patch14_224"}),
    "CoCa": Kind("coca_ViT-B-32"),
    "SigLIP": Kind("ViT-B-16-SigLIP", {"timm_model_name": "test_vit", "image_size": 160}, _HALF | _SQUASHED),
    "SigLIP 2": Kind(
        "ViT-B-16-SigLIP2", {"timm_model_name": "test_vit", "image_size": 160}, _HALF | _SQUASHED
    ),
    "PE-Core": Kind(
        "PE-Core-T-16-384",
        {},
        _HALF | {"interpolation": "bilinear", "resize_mode": "squash"},
    ),
    "MobileCLIP2": Kind(
        "MobileCLIP2-S0", {}, {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}
    ),
    "ViTamin": Kind("ViTamin-S"),
    "MetaCLIP 2 (worldwide)": Kind("ViT-H-14-worldwide-quickgelu"),
    "RoBERTa text tower": Kind("roberta-ViT-B-32"),
    "NLLB-CLIP": Kind("nllb-clip-base-siglip"),
    "CLIP ViT, longest side to size": Kind("ViT-B-32", _TOWER, {"resize_mode": "longest"}),
}


def config_of(kind: Kind) -> dict[str, Any]:
    """As published, with small towers."""
    config: dict[str, Any] = open_clip.get_model_config(kind.published)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if kind.vision is not _TOWER or "timm_model_name" not in vision:
        vision |= kind.vision
    text |= {"width": WIDTH, "heads": 2, "layers": 2}
    if text.get("hf_tokenizer_name"):
        text["vocab_size"] = TOKENS
        if "eos_id" in text:
            text["eos_id"] = 2
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": WIDTH, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
        vision["attn_pooler_heads"] = 2
    config["embed_dim"] = 64 if vision.get("timm_proj") == "none" else 32
    return config


def save_verifier(name: str, folder: Path, seed: int = 0) -> Path:
    """A verifier of this kind, with a tokenizer of its own if the published one has."""
    logging.disable(logging.INFO)
    kind = KINDS[name]
    config = config_of(kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": dict(kind.preprocess)})
    )
    if config["text_cfg"].get("hf_tokenizer_name"):
        tokenizer(cls_token="<bos>", sep_token="<eos>").save_pretrained(folder)
    if config["text_cfg"].get("hf_model_name"):
        return folder  # its text tower is in another repository
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder
