"""Tiny configurations of networks of the library transformers, and copies of repositories that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TOKENS = {
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
MAPS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64}
WINDOWS = {
    "embed_dim": 8,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 2],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 2,
}
DINO = TOKENS | {"mlp_ratio": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "beit": TOKENS,
    "clip_vision_model": TOKENS,
    "convnext": MAPS,
    "convnextv2": MAPS,
    "data2vec-vision": TOKENS,
    "deit": TOKENS,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "dinov3_convnext": MAPS,
    "dinov3_vit": TOKENS,
    "focalnet": MAPS | {"embed_dim": 8},
    "ijepa": TOKENS,
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "key_dim": [4, 4, 4],
        "depths": [1, 1, 1],
        "num_attention_heads": [1, 2, 2],
    },
    "mobilenet_v2": {"image_size": 32, "depth_multiplier": 0.35},
    "pvt_v2": MAPS | {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
    "regnet": MAPS | {"embedding_size": 8, "groups_width": 4},
    "resnet": MAPS | {"embedding_size": 8},
    "siglip2_vision_model": TOKENS | {"num_patches": 16},
    "siglip_vision_model": TOKENS,
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "vit": TOKENS,
    "vit_msn": TOKENS,
}


def config(kind: str) -> dict[str, Any]:
    """The content of a config.json."""
    return CONFIGS[kind] | {"model_type": kind}


def write_repository(folder: Path, kind: str, license: str = "apache-2.0", seed: int = 0) -> Path:
    """A copy of a repository with random weights, as the library saves them."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.for_model(kind, **CONFIGS[kind])).save_pretrained(folder)
    size = int(CONFIGS[kind]["image_size"])
    preprocessor = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
        "size": {"shortest_edge": size + 8},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "README.md").write_text(f"---\nlicense: {license}\ntags:\n- vision\n---\n# A network\n")
    return folder
