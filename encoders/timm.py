"""Any backbone of timm: EfficientNet, ConvNeXt, Swin, ViT, DINOv2, DINOv3, EVA-02, ResNet ...

PyTorch Image Models, https://github.com/huggingface/pytorch-image-models (R. Wightman). timm's names, its folders
(config.json with ``architecture``, and weights), its hub repositories, and what Transformers' timm wrapper writes.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import is_model
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mmprefix.encoders.base import Encoder
from mmprefix.encoders.image_input import ReadPicture
from mmprefix.errors import InputError, require_one_of
from mmprefix.types import Features, Media, all_real
from mmprefix.weights import dry_run
from mmprefix.weights import source as sources
from mmprefix.weights.model_kinds import advice, described
from mmprefix.weights.transformers import precision
from mmprefix.weights.untrusted import compare, fetch_file, read_tensors

_LOCAL = "local-dir:"
_WRAPPED = "timm_model."  # begins the names of weights that Transformers' wrapper saves
_SAFE = "model.safetensors"
_MISSING = "Missing keys ("  # begins timm's only report of weights that a checkpoint lacks where it is not strict


class Timm(Encoder):
    """Backbone of timm, without its classifier.

    Frames are what timm's ``forward_features`` gives: a feature map, row by row from the top left (T = Y·X), or tokens,
    with class token and register tokens first if the model has them. The summary is what the classifier reads: timm's
    ``forward_head(..., pre_logits=True)``.

    Args:
        model: a name of timm (``efficientnet_b0.ra_in1k``), ``hf-hub:OWNER/NAME``, a folder with timm's config.json and
            weights, ``mmprefix:NAME`` or ``models:NAME``.
        revision: the hub's branch, tag or commit.
        crop: cut the middle out of the picture, as timm's own evaluation does. By default the whole picture is resized
            to the model's size, so that a caption misses nothing at its borders.
        layers: layers to read as frames instead of the last: indices of timm's ``forward_intermediates``, negative ones
            from the end, as they come (without the model's last normalisation). Several are joined along the width;
            larger maps are first averaged to the size of the smallest.
        summary: "classifier", what the classifier reads; "frames", the mean of the frames, for layers before its last.
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
    """

    input_kind = "image"

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        crop: bool = False,
        layers: list[int] | None = None,
        summary: Literal["classifier", "frames"] = "classifier",
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        require_one_of("summary", summary, ("classifier", "frames"))
        wanted = precision(dtype)
        network, self.identity = _load(model, revision)
        self.layers, self.summary = _checked_layers(model, network, layers), summary
        data = resolve_model_data_config(network)
        if data["input_size"][0] != 3:
            raise InputError(f"{model!r}: reads {data['input_size'][0]} channels; Timm reads pictures in colour")
        whole = {} if crop else {"crop_pct": 1.0, "crop_mode": "squash"}  # squash: each side by itself, nothing cut
        self.preprocess = ReadPicture(cast(Any, create_transform(**{**data, **whole}, is_training=False)))
        self.network = network.to(wanted)
        self.freeze()
        self.dim, self.pooled_dim = self._widths(model, data["input_size"])

    def encode(self, media: Media) -> Features:
        """Pixels (B 3 Y X) → frames (B T D), all real, and the summary (B G)."""
        pixels = media.values.to(next(self.network.parameters()).dtype)
        if self.layers and self.summary == "frames":
            frames = self._layers(pixels).float()
            return Features(frames, all_real(frames), frames.mean(1))
        last = self.network.forward_features(pixels)
        frames = (self._layers(pixels) if self.layers else _as_frames(last, self.network)).float()
        classified = self.network.forward_head(last, pre_logits=True).flatten(1).float()
        return Features(frames, all_real(frames), frames.mean(1) if self.summary == "frames" else classified)

    def _layers(self, pixels: Tensor) -> Tensor:
        """Pixels (B 3 Y X) → the outputs of ``layers`` side by side (B T D1+D2+...)."""
        read = self.network.forward_intermediates
        options: dict[str, Any] = {"indices": self.layers, "intermediates_only": True, "stop_early": True}
        if "return_prefix_tokens" in inspect.signature(read).parameters:
            options["return_prefix_tokens"] = True
        outputs = [_split(output) for output in read(pixels, **options)]
        maps = [grid for grid, _ in outputs]  # (B D Y X) each
        size = min(((grid.shape[2], grid.shape[3]) for grid in maps), key=lambda sides: sides[0] * sides[1])
        frames = torch.cat([adaptive_avg_pool2d(grid, size).flatten(2).transpose(1, 2) for grid in maps], dim=2)
        prefixes = [prefix for _, prefix in outputs if prefix is not None]
        return torch.cat([torch.cat(prefixes, dim=2), frames], dim=1) if prefixes else frames

    def _widths(self, name: str, size: Sequence[int]) -> tuple[int, int]:
        """Widths D and G of the features of a black picture: timm's models name them in several ways."""
        device = next(self.network.parameters()).device  # "meta" in a dry run: shapes without numbers
        blank = Media(torch.zeros(1, *size, device=device), torch.ones(1, dtype=torch.long, device=device))
        try:
            features = self.forward(blank)
        except (AttributeError, AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(
                f"{name!r}: {type(self.network).__name__} did not encode a blank picture: {reason}"
            ) from error
        return features.frames.shape[2], features.pooled.shape[1]


def _as_frames(output: Any, network: Any) -> Tensor:
    """Feature map (B D Y X) or (B Y X D), or tokens (B T D) → (B T D); InputError for anything else."""
    if isinstance(output, Tensor) and output.ndim == 3:
        return output
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise TypeError("its forward_features gives neither a feature map nor tokens; give layers, such as [-1]")
    last = str(getattr(network, "output_fmt", "NCHW")) == "NHWC"
    return output.flatten(1, 2) if last else output.flatten(2).transpose(1, 2)


def _split(output: Any) -> tuple[Tensor, Tensor | None]:
    """Output of a layer as its map (B D Y X), and the tokens before it (B N D) if the model has some."""
    grid, prefix = output if isinstance(output, tuple | list) else (output, None)
    return grid, prefix if prefix is not None and prefix.shape[1] else None


def _checked_layers(name: str, network: Any, layers: list[int] | None) -> list[int] | None:
    """``layers``, or None for the last; InputError for layers that the model does not have."""
    if layers is None:
        return None
    if not hasattr(network, "forward_intermediates"):
        raise InputError(f"layers {layers}: {name!r} is a {type(network).__name__}, of which timm reads only the last")
    count = len(network.feature_info)
    if not layers or not all(-count <= layer < count for layer in layers):
        raise InputError(f"layers {layers}: {name!r} has {count}; give some of 0 to {count - 1}, or -1 for the last")
    return layers


def _load(name: str, revision: str | None) -> tuple[Any, sources.Provenance]:
    """The network ``name`` with its weights (without, on no device, in a dry run), and its provenance."""
    plain = name.removeprefix(_LOCAL)
    known = name.removeprefix(sources.HUB).removeprefix("timm/")
    folder = name.startswith((_LOCAL, sources.EMBEDDED, sources.MODELS)) or Path(plain).expanduser().is_dir()
    if not folder and is_model(known.partition(".")[0]) and (known == name or dry_run.sizes_only()):
        return _registered(known, revision)
    if not folder and "/" not in plain and not name.startswith(sources.HUB):
        close = difflib.get_close_matches(plain, timm.list_models(), 3, 0.3)
        raise InputError(f"model: timm knows no {name!r}, and it is no folder; near it: {', '.join(close) or 'none'}")
    path = sources.resolve_folder(plain, revision, weights=not dry_run.sizes_only())
    settings = _settings(name, path)
    identity = sources.provenance_of(name, path)
    if settings.get("transformers_version"):
        return _wrapped(name, path, settings), identity
    return _create(name, f"{_LOCAL}{path}"), identity


def _settings(name: str, path: Path) -> dict[str, Any]:
    """The config.json in ``path``; InputError, with the encoder that fits, unless it is that of a model of timm."""
    if not (path / "config.json").is_file():
        other = "; mmprefix.encoders.clip.Clip reads it" if (path / "open_clip_config.json").is_file() else ""
        raise InputError(f"{name!r}: the folder {path} holds no config.json of a timm model{other}")
    settings = sources.read_json(path / "config.json")
    architecture, kind = settings.get("architecture"), settings.get("model_type")
    if not isinstance(architecture, str):
        what = described(kind) if isinstance(kind, str) else "an unknown model"
        raise InputError(
            f"{name!r}: the folder {path} holds {what}, which Timm cannot read: its config.json names no architecture "
            f"of timm{advice(str(kind))}"
        )
    if not is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 3, 0.3)
        raise InputError(f"{name!r}: timm {timm.__version__} knows no architecture {architecture!r}; near it: {close}")
    return settings


def _wrapped(name: str, path: Path, settings: dict[str, Any]) -> Any:
    """A model that Transformers' timm wrapper saved: with other names of weights, and at times without classifier."""
    # Transformers builds the network of timm's own configuration, whatever its file says of the preprocessing.
    options = {**(settings.get("model_args") or {}), "num_classes": 0}
    network = _create(name, settings["architecture"], pretrained=False, **options)
    network.pretrained_cfg = {**network.pretrained_cfg, **(settings.get("pretrained_cfg") or {})}
    if dry_run.sizes_only():
        return network
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    state = {key.removeprefix(_WRAPPED): value for file in files for key, value in read_tensors(file).items()}
    heads = _classifiers(network)
    kept = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
    compare({key: tuple(value.shape) for key, value in network.state_dict().items()}, kept, str(path), name)
    network.load_state_dict(kept)
    return network


def _classifiers(network: Any) -> tuple[str, ...]:
    """Names of the layers that are dropped: their weights need not be there."""
    names = network.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _registered(name: str, revision: str | None) -> tuple[Any, sources.Provenance]:
    """A model by timm's own name; its configuration comes with timm, its weights from the hub or their address."""
    try:
        described = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the architecture does not have
        described = None
    if described is None or not (described.hf_hub_id or described.url or dry_run.sizes_only()):
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise InputError(f"model: timm has no weights {name!r}; of this architecture it has: {tags}")
    if dry_run.sizes_only():
        return _create(name, name), sources.Provenance(name, None, "")
    weights = _fetch(name, described, revision)
    source = f"{sources.HUB}{described.hf_hub_id}" if described.hf_hub_id else name
    identity = sources.Provenance(source, sources.revision_of(weights.parent), sources.fingerprint([weights]))
    return _create(name, name, {"file": str(weights), "custom_load": bool(described.custom_load)}), identity


def _fetch(name: str, described: Any, revision: str | None) -> Path:
    """File of weights of one of timm's own models; safetensors where the hub has them."""
    if not described.hf_hub_id:
        try:
            return Path(timm.models._hub.download_cached_file(described.url))
        except Exception as error:  # urllib's and torch.hub's many kinds; all mean that the weights are not here
            raise InputError(f"{name!r}: its weights could not be fetched from {described.url}") from error
    file = described.hf_hub_filename or "pytorch_model.bin"
    safe = _SAFE if file == "pytorch_model.bin" else str(Path(file).with_suffix(".safetensors"))
    place = f"hf://{described.hf_hub_id}@{revision}" if revision else f"hf://{described.hf_hub_id}"
    try:
        return fetch_file(f"{place}/{safe}")
    except InputError:
        pass
    try:
        return fetch_file(f"{place}/{file}")
    except InputError as error:
        raise InputError(
            f"{name!r} is no folder here, and the model hub did not give {described.hf_hub_id}; "
            "give a folder on disk, or timm's name while the hub can be reached"
        ) from error


def _create(name: str, location: str, overlay: Any = None, *, pretrained: bool = True, **options: Any) -> Any:
    """Build a network without classifier; InputError in one line where its weights are damaged or do not fit."""
    empty = dry_run.sizes_only()
    try:
        with torch.device("meta" if empty else "cpu"), _missing_weights() as missing:
            network: Any = timm.create_model(
                location, pretrained=pretrained and not empty, pretrained_cfg_overlay=overlay, **options
            )
            network.reset_classifier(0)
    except Exception as error:  # the readers of JSON, safetensors and pickle, and timm's models, raise a dozen kinds
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        raise InputError(f"{name!r}: timm cannot load it: {' '.join(lines)[:300]}") from error
    lacking = [key for key in missing if key.rpartition(".")[0] not in _classifiers(network)]
    if lacking:
        raise InputError(
            f"{name!r}: the weights lack {len(lacking)} tensors of {type(network).__name__}: {lacking[0]} ..."
        )
    return network


@contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """Collect the names of weights that timm fills with random numbers; where it is not strict it only logs them."""
    logger, names = logging.getLogger("timm.models._builder"), list[str]()

    def note(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(_MISSING):
            names.extend(text.removeprefix(_MISSING).partition(")")[0].split(", "))
        return record.levelno >= max(level, logging.WARNING)

    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(note)
    try:
        yield names
    finally:
        logger.setLevel(level)
        logger.removeFilter(note)
