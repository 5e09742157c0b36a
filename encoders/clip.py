"""CLIP and similar models of open_clip: embeddings of images in the space of their descriptions.

Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020;
open_clip, https://github.com/mlfoundations/open_clip. Only the visual tower is kept in memory.
"""

from __future__ import annotations

import difflib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.nn.functional import normalize as to_unit_length

from mmprefix.encoders.base import Encoder
from mmprefix.encoders.image_input import ReadPicture
from mmprefix.errors import InputError
from mmprefix.types import Features, Media
from mmprefix.weights import dry_run
from mmprefix.weights import source as sources
from mmprefix.weights.model_kinds import advice, described, of_another_library
from mmprefix.weights.transformers import precision

_CONFIG = "open_clip_config.json"
_HUB, _LOCAL = "hf-hub:", "local-dir:"


class Clip(Encoder):
    """Visual tower of an open_clip model.

    Frames are its patch tokens, without the class token, before the projection: for the towers that open_clip calls
    VisionTransformer, and for those of timm that work on a sequence (SigLIP; there as timm gives it, with the class
    token if there is one). Other towers (ResNet, ConvNeXt) give no frames: T = 0, ``dim`` 0. The summary is the
    projected embedding. Preprocessing is the model's own transform for inference.

    Args:
        model: a name that open_clip knows (``ViT-B-32``) with ``pretrained``; ``hf-hub:OWNER/NAME``;
            ``local-dir:FOLDER``, just the folder, or ``mmprefix:NAME``, with open_clip_config.json and weights in it;
            or a model configuration (JSON) with ``pretrained``.
        pretrained: a tag that open_clip knows for ``model`` (``openai``, ``laion2b_s34b_b79k``) or a file of weights.
        revision: the hub's branch, tag or commit, for ``hf-hub:``.
        normalize: scale the summary to length 1.
        quick_gelu: the network was trained with QuickGELU, as OpenAI's were. A tag implies it; for a file of weights
            under a plain name it must be given (here, or by the name, as in ``ViT-B-32-quickgelu``).
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
    """

    input_kind = "image"
    path_options = ("model", "pretrained")

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        revision: str | None = None,
        normalize: bool = False,
        dtype: str = "float32",
        quick_gelu: bool | None = None,
    ) -> None:
        super().__init__()
        wanted = precision(dtype)
        self.normalize = normalize
        network, weights = _load(model, pretrained, revision, quick_gelu)
        source = f"{model}/{pretrained}" if pretrained else model
        self.identity = (
            sources.Provenance(source, None, "")
            if weights is None
            else sources.Provenance(source, sources.revision_of(weights.parent), sources.fingerprint([weights]))
        )
        self.network = network.visual.to(wanted)
        if hasattr(self.network, "output_tokens"):
            self.network.output_tokens = True
        settings = PreprocessCfg(**self.network.preprocess_cfg)
        self.preprocess = ReadPicture(cast(Any, image_transform_v2(settings, is_train=False)))
        self.freeze()
        size = (settings.size, settings.size) if isinstance(settings.size, int) else tuple(settings.size)
        black = self.forward(Media(torch.zeros(1, 3, *size), torch.ones(1, dtype=torch.long)))
        self.dim, self.pooled_dim = black.frames.shape[2], black.pooled.shape[1]

    def encode(self, media: Media) -> Features:
        """Pixels (B 3 Y X) → patch tokens (B T D), all real, and the embedding (B G)."""
        pooled, frames = self._forward(media.values.to(next(self.network.parameters()).dtype))
        pooled = to_unit_length(pooled.float(), dim=1) if self.normalize else pooled.float()
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        return Features(frames.float(), mask, pooled)

    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B 3 Y X) → embedding (B G) and patch tokens (B T D)."""
        no_frames = pixels.new_zeros(len(pixels), 0, 0)
        tower: Any = self.network
        if isinstance(tower, TimmModel):
            trunk: Any = tower.trunk
            states = trunk.forward_features(pixels)
            return tower.head(trunk.forward_head(states)), states if states.ndim == 3 else no_frames
        output = tower(pixels)
        return output if isinstance(output, tuple) else (output, no_frames)


def _load(model: str, pretrained: str | None, revision: str | None, quick_gelu: bool | None) -> tuple[Any, Path | None]:
    """Load a whole open_clip model; returns it and its file of weights (None in a dry run, which needs no weights)."""
    if model.startswith(_HUB):
        return _from_folder(model, _from_hub(model.removeprefix(_HUB), revision))
    local = model.removeprefix(_LOCAL)
    if model.endswith(".json") and not Path(local).expanduser().is_dir():
        return _from_config(Path(model).expanduser(), pretrained)
    if model.startswith((_LOCAL, sources.EMBEDDED, sources.MODELS)) or Path(local).expanduser().exists():
        return _from_folder(model, sources.resolve_folder(local))
    return _known(model, pretrained, quick_gelu)


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        config = download_pretrained_from_hf(name, filename=_CONFIG, revision=revision)
        download_pretrained_from_hf(name, revision=revision)
    except Exception as error:  # the hub's client raises a dozen kinds; all mean that the model is not here
        raise InputError(
            f"'{_HUB}{name}': the model hub did not give {_CONFIG} and weights; "
            "give a folder on disk, or a hub name while the hub can be reached"
        ) from error
    return Path(config).parent


def _from_folder(name: str, folder: Path) -> tuple[Any, Path]:
    if not (folder / _CONFIG).is_file():
        raise InputError(f"{name!r}: the folder {folder} holds no {_CONFIG}{_other_kind(folder)}")
    if not {"vision_cfg", "embed_dim"} <= set(_settings(folder / _CONFIG)):
        raise InputError(f"{name!r}: {folder / _CONFIG} describes no open_clip model (vision_cfg, embed_dim)")
    weights = _find_checkpoint_in_dir(folder)
    if weights is None:
        raise InputError(f"{name!r}: the folder {folder} holds no weights (open_clip_model.safetensors)")
    return _create(name, f"{_LOCAL}{folder}", None), Path(weights)


def _other_kind(folder: Path) -> str:
    """End of a sentence about a ``folder`` that is none of open_clip: what it holds, and the class that reads it."""
    kind = sources.read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if isinstance(kind, str):
        return f", but {described(kind)}{advice(kind)}"
    other = of_another_library(folder)
    return f", but {other}" if other else ""


def _from_config(config: Path, pretrained: str | None) -> tuple[Any, Path]:
    """Load a model configuration and a file of weights, put into one folder for open_clip."""
    settings = _settings(config)
    if pretrained is None or not Path(pretrained).expanduser().is_file():
        raise InputError(f"pretrained: {pretrained!r} is no file; the configuration {config} needs a file of weights")
    weights = Path(pretrained).expanduser().resolve()
    whole = sources.read_json(config)
    described = whole if "model_cfg" in whole else {"model_cfg": settings}
    with tempfile.TemporaryDirectory() as folder:
        suffix = ".safetensors" if weights.suffix == ".safetensors" else ".bin"
        Path(folder, _CONFIG).write_text(json.dumps(described), encoding="utf-8")
        try:
            Path(folder, f"open_clip_model{suffix}").symlink_to(weights)
        except OSError:  # where links need a privilege
            shutil.copyfile(weights, Path(folder, f"open_clip_model{suffix}"))
        return _from_folder(str(config), Path(folder))[0], weights


def _known(model: str, pretrained: str | None, quick_gelu: bool | None) -> tuple[Any, Path | None]:
    if open_clip.get_model_config(model.replace("/", "-")) is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), 3, 0.3)
        raise InputError(f"model: open_clip knows no {model!r}, and it is no folder; near it: {', '.join(close)}")
    tag = open_clip.get_pretrained_cfg(model.replace("/", "-"), pretrained or "")
    if tag and dry_run.sizes_only():
        return _create(model, model, None), None
    if tag:
        try:
            weights = Path(open_clip.download_pretrained(tag))
        except Exception as error:  # several clients, a dozen kinds; all mean that the weights are not here
            advice = "without a network give the file of its weights as pretrained, or a folder of open_clip as model"
            known = f"pretrained: {pretrained!r} of {model} is not here and could not be fetched"
            raise InputError(f"{known}; {advice} (mmprefix recipes lists recipes that need no hub)") from error
    elif pretrained and Path(pretrained).expanduser().is_file():
        weights = Path(pretrained).expanduser()
        _require_activation(model, pretrained, quick_gelu)
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise InputError(f"pretrained: {pretrained!r} is no file, and no tag of {model}; its tags: {tags}")
    # OpenAI's weights want QuickGELU, also where the plain name is given
    quick = bool(tag.get("quick_gelu")) if quick_gelu is None else quick_gelu
    return _create(model, model, pretrained if tag else str(weights), quick), weights


def _require_activation(model: str, pretrained: str, quick_gelu: bool | None) -> None:
    """Refuse a file of weights whose activation is unknown: the wrong one would silently give other features."""
    name = model.replace("/", "-")
    transformer = isinstance(cast(dict[str, Any], open_clip.get_model_config(name))["vision_cfg"].get("layers"), int)
    if quick_gelu is None and transformer and f"{name}-quickgelu" in open_clip.list_models():
        raise InputError(
            f"pretrained: {pretrained} does not tell the activation that it was trained with. OpenAI's weights: give "
            f"the model {name}-quickgelu; others: give quick_gelu true or false"
        )


def _create(name: str, location: str, pretrained: str | None, quick: bool = False) -> Any:
    wanted = pretrained is not None or location.startswith(_LOCAL)
    level = logging.root.manager.disable
    if not wanted:  # open_clip would warn of random weights, which are intended
        logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(
            location, pretrained=pretrained, require_pretrained=wanted, force_quick_gelu=quick
        )
    except Exception as error:  # the readers of JSON, safetensors and pickle raise a dozen kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{name!r}: open_clip cannot load it: {reason}") from error
    finally:
        logging.disable(level)


def _settings(file: Path) -> dict[str, Any]:
    whole = sources.read_json(file)
    inner = whole.get("model_cfg", whole)
    return cast(dict[str, Any], inner) if isinstance(inner, dict) else {}
