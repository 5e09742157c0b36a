"""Any vision model of Hugging Face Transformers: DINOv2, SigLIP, ViT, CLIP, Swin, ConvNeXt, ResNet ...

An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929; DINOv2, https://arxiv.org/abs/2304.07193;
SigLIP, https://arxiv.org/abs/2303.15343. AutoModel and AutoImageProcessor handle their differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from mmprefix.encoders.base import Encoder
from mmprefix.encoders.image_input import ReadPicture
from mmprefix.errors import InputError
from mmprefix.types import Features, Media
from mmprefix.weights import source as sources
from mmprefix.weights import transformers
from mmprefix.weights.model_kinds import advice

_RANDOM = {"vit_mae": "it hides three patches of four at random, in another order each time"}


@dataclass(frozen=True)
class ProcessImage:
    """Image processor of a model: one picture → pixels (3 Y X)."""

    processor: Any

    def __call__(self, image: Image) -> Tensor:
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


class ViT(Encoder):
    """Vision model by hub name or folder; of a CLIP or SigLIP with two towers, the visual one.

    Frames are the model's last hidden state: class token and register tokens come first if the model has them (ViT,
    DINOv2, CLIP; not SigLIP, Swin). A feature map (B D Y X), as of ConvNeXt or ResNet, becomes Y·X frames, row by row.
    The summary is the model's ``pooler_output``; without one (a classifier's checkpoint has no weights for it) it is
    the class token, and without a class token the mean of all frames. The processor decides the size; one that keeps
    each picture's own size makes pictures that cannot be stacked.

    Args:
        model: a folder, ``mmprefix:NAME``, or a hub name.
        revision: the hub's branch, tag or commit.
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
    """

    input_kind = "image"

    def __init__(self, model: str, revision: str | None = None, dtype: str = "float32") -> None:
        super().__init__()
        path = sources.resolve_folder(model, revision)
        towers = _towers(model, path)
        self.identity = sources.provenance_of(model, path)
        network, missing = transformers.load_model(AutoModel, model, path, dtype, optional=("pooler.",))
        if missing:
            network.pooler = None
        self.network = network.vision_model if towers else network
        processor = _processor(model, path)
        self.preprocess = ReadPicture(ProcessImage(processor))
        names = [name for name, _ in self.network.named_parameters()]
        self.has_class = any(name.endswith(("cls_token", "class_embedding")) for name in names)
        self.freeze()
        self.dim, self.pooled_dim = self._widths(model, processor)

    def encode(self, media: Media) -> Features:
        """Pixels (B 3 Y X) → frames (B T D), all real, and the summary (B G)."""
        output = self.network(pixel_values=media.values.to(self.network.dtype), return_dict=True)
        frames = output.last_hidden_state
        if frames.ndim == 4:
            frames = frames.flatten(2).transpose(1, 2)  # (B D Y X) → (B T D)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = frames[:, 0] if self.has_class else frames.mean(1)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        return Features(frames.float(), mask, pooled.flatten(1).float())

    def _widths(self, name: str, processor: Any) -> tuple[int, int]:
        # Taken from the features of a black picture: configurations name these widths in a dozen ways.
        blank = processor(torch.zeros(3, 64, 64, dtype=torch.uint8), return_tensors="pt")
        try:
            features = self.forward(Media(blank["pixel_values"], torch.ones(1, dtype=torch.long)))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{name!r}: {type(self.network).__name__} did not encode a blank picture: {error}"
            ) from error
        return features.frames.shape[2], features.pooled.shape[1]


def _towers(name: str, path: Path) -> bool:
    """True if the model in ``path`` has two towers; InputError if it reads no images."""
    file = path / "config.json"
    if file.is_file() and "architecture" in sources.read_json(file):
        raise InputError(f"{name!r}: the folder {path} holds a model of timm; mmprefix.encoders.timm.Timm reads it")
    config = transformers.config(name, path)
    kind = config.model_type
    cls = MODEL_MAPPING.get(type(config), None)
    reads_images = getattr(cls, "main_input_name", None) == "pixel_values"
    towers = getattr(config, "vision_config", None) is not None and getattr(config, "text_config", None) is not None
    if kind in _RANDOM:
        raise InputError(f"{name!r}: a {kind!r} model cannot be a frozen encoder: {_RANDOM[kind]}")
    if not reads_images and not (towers and "lip" in kind):  # clip, siglip, blip and variants
        raise InputError(
            f"{name!r}: the folder {path} holds a {kind!r} model, which ViT cannot read; "
            f"it reads vision models: dinov2, siglip, vit, clip, swin, convnext, resnet ...{advice(kind)}"
        )
    return not reads_images


def _processor(name: str, path: Path) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{name!r}: the folder {path} holds no readable preprocessor_config.json of pictures"
        ) from error
