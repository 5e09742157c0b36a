"""Small model that has a prefix for each of some users, and a picture for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.encoders.vit import ViT
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.ulpt import UserULPT
from mmprefix.mappers.user_prefix import DeepUserPrefix, UserPrefix
from mmprefix.mappers.user_rows import UserRows
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from tiny.models import OPTIONS

KINDS = {
    "soft": partial(UserPrefix, length=2, std=0.8, capacity=8),
    "deep": partial(DeepUserPrefix, length=2, std=0.8, capacity=8),
    "ulpt": partial(UserULPT, length=2, rank=3, std=0.5, capacity=8),
}


def save_personal(directory: Path, parts: dict[str, Path], kind: str, *users: str) -> Path:
    """Saved model of pictures and of ``users``, whose numbers are random."""
    torch.manual_seed(1)
    branches = {
        "image": Branch(ViT(str(parts["image"])), partial(Resampler, length=3, heads=2)),
        "user": Branch(UserId(), KINDS[kind]),
    }
    model = PrefixLM(branches, CausalDecoder(str(parts["decoder"])))
    table = model.mapper("user")
    assert isinstance(table, UserRows)
    for user in users:
        table.add(id_bytes(user), torch.randn(table.rows.shape[1]) * 0.8)
    Predictor(model, ModelSettings(OPTIONS)).save(directory)
    return directory


def picture(seed: int = 0) -> Image.Image:
    """Picture of random colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8))
