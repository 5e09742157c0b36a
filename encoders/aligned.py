"""One space for pictures, texts or sounds: frozen encoders of each sense, and a learned projection behind each.

Learning Transferable Visual Models From Natural Language Supervision (CLIP), https://arxiv.org/abs/2103.00020: linear
projections of two summaries, scaled to length 1. Here the encoders stay frozen, and the projections alone are learned:
``python -m mmprefix.recipes.align.train``. A folder holds ``aligned.yaml`` (encoders, sizes, figures) and
``model.safetensors``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.functional import normalize as to_unit_length

from mmprefix.encoders.base import Encoder, Preprocess, part_read
from mmprefix.errors import InputError
from mmprefix.media.source import Source, Texts
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.types import Features, Media
from mmprefix.weights import source as sources
from mmprefix.weights.trained_file import TrainedFile, copy_into

CONFIG, WEIGHTS, FORMAT = "aligned.yaml", "model.safetensors", 1
_LEAST = 0.01  # least standard deviation of a number, as a share of their mean one
_COLDEST = math.log(100)  # CLIP's limit of the learned scale: logits of at most 100


class Projection(nn.Module):
    """Summaries (B G) of one sense → vectors of length 1 (B W): standardised, dropped out in training, a linear layer.

    Moments of the training data, and the ``centre`` (W) of its vectors, are kept beside the weights.
    """

    mean: Tensor
    deviation: Tensor
    centre: Tensor

    def __init__(self, summary: int, width: int, drop: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(summary))
        self.register_buffer("deviation", torch.ones(summary))
        self.register_buffer("centre", torch.zeros(width))
        self.linear, self.drop = nn.Linear(summary, width, bias=False), drop

    def observe(self, rows: Tensor) -> None:
        """Take the moments of all training ``rows`` (N G); a number that hardly changes is not blown up."""
        deviation = rows.std(0, correction=0)
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(deviation.clamp(min=_LEAST * float(deviation.mean()) or 1.0))

    @torch.no_grad()
    def take_centre(self, rows: Tensor) -> None:
        """Keep the mean vector of all training ``rows`` (N G)."""
        self.centre.copy_(self(rows).mean(0))

    def standardised(self, rows: Tensor) -> Tensor:
        """Summaries (B G) as the linear layer reads them (B G)."""
        return dropout((rows - self.mean) / self.deviation, self.drop, self.training)

    def projected(self, rows: Tensor) -> Tensor:
        """Summaries (B G) → (B W), before they are scaled."""
        return self.linear(self.standardised(rows))

    def forward(self, rows: Tensor) -> Tensor:
        """Summaries (B G) → (B W), each of length 1."""
        return to_unit_length(self.projected(rows), dim=1)

    def centred(self, rows: Tensor) -> Tensor:
        """Summaries (B G) → (B W) of length 1, without what all vectors of this sense share."""
        return to_unit_length(self(rows) - self.centre, dim=1)


class Projections(nn.Module):
    """A ``Projection`` for each sense by name, and the learned logarithm of the scale of their cosines.

    ``widths`` are the widths G of the summaries by sense; the space has ``width`` W numbers.
    """

    def __init__(self, widths: Mapping[str, int], width: int, drop: float = 0.0) -> None:
        super().__init__()
        self.senses = nn.ModuleDict({name: Projection(summary, width, drop) for name, summary in widths.items()})
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start

    def of(self, sense: str) -> Projection:
        """Projection of ``sense``."""
        return cast(Projection, self.senses[sense])

    @property
    def scale(self) -> Tensor:
        """Scale of the cosines, the inverse of CLIP's temperature; at most 100."""
        return self.log_scale.clamp(max=_COLDEST).exp()


@dataclass(frozen=True)
class AlignedSpace:
    """Frozen encoders by sense, the projections behind them, and the figures that were measured."""

    encoders: Mapping[str, Encoder]
    projections: Projections
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def save(self, folder: Path) -> None:
        """Write the folder that ``load`` reads; the encoders are named in it, with the hashes of their weights."""
        folder.mkdir(parents=True, exist_ok=True)
        senses = {
            name: {"encoder": to_recipe(encoder), "sha256": encoder.identity.sha256}
            for name, encoder in self.encoders.items()
        }
        width = len(self.projections.of(next(iter(senses))).centre)
        config = {"format": FORMAT, "width": width, "senses": senses, "figures": dict(self.figures)}
        save_file({name: value.contiguous() for name, value in self.projections.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> AlignedSpace:
        """Read ``folder``. InputError where it is no such folder, or an encoder has other weights than in training."""
        config = read_config(folder)
        encoders = {name: from_recipe(sense["encoder"], Encoder) for name, sense in config["senses"].items()}
        for name, encoder in encoders.items():
            was = config["senses"][name]["sha256"]
            if encoder.identity.sha256 and encoder.identity.sha256 != was:
                raise InputError(
                    f"{folder / CONFIG}: the encoder of {name} was {was[:12]} (sha256), and "
                    f"{encoder.identity.source!r} is {encoder.identity.sha256[:12]}; use the same weights"
                )
        projections = Projections({name: part.pooled_dim for name, part in encoders.items()}, config["width"])
        file = TrainedFile.open(folder / WEIGHTS)
        copy_into(projections.state_dict(), file.tensors(None), file.path)
        return cls(encoders, projections.eval().requires_grad_(False), config["figures"])


def read_config(folder: Path) -> dict[str, Any]:
    """Settings of the space in ``folder``; InputError for a folder without them."""
    file = folder / CONFIG
    try:
        config: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        if config["format"] != FORMAT or not config["senses"] or int(config["width"]) < 1:
            raise ValueError(f"format {config['format']}")
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: is not what mmprefix.recipes.align.train writes ({reason})") from error
    return dict(config)


@dataclass(frozen=True)
class ReadSense:
    """Preprocessing of ``Aligned``: a text by the reader of texts, anything else by that of the sense."""

    sense: Preprocess
    text: Preprocess | None

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """``source`` → what the encoder of its sense reads; InputError for a text where the space has none."""
        if not isinstance(source, Texts):
            return self.sense(source, start, end)
        if self.text is None:
            raise InputError("a text was given, and the aligned space has no encoder of texts")
        return self.text(source, start, end)

    def part_read(self, source: Source) -> Source:
        """Part of ``source`` that is read; see ``mmprefix.encoders.base.part_read``."""
        preprocess = self.text if isinstance(source, Texts) else self.sense
        return source if preprocess is None else part_read(preprocess, source)


class Aligned(Encoder):
    """Summary (B W) of a picture, a sound or a text in one aligned space, of length 1; there are no frames.

    It reads its ``sense``, and a text in its place: a mapper that was trained on texts is then given pictures.

    Args:
        model: a folder that ``mmprefix.recipes.align.train`` wrote.
        sense: which of the space's senses its branch reads.
        centred: leave out what all vectors of a sense share, so that those of two senses lie around one point.
    """

    input_kind = "image"

    def __init__(self, model: str, sense: str = "image", *, centred: bool = False) -> None:
        super().__init__()
        path = sources.resolve_folder(model)
        space = AlignedSpace.load(path)
        if sense not in space.encoders:
            raise InputError(f"Aligned.sense {sense!r}: the space {model!r} has {', '.join(space.encoders)}")
        self.sense, self.centred = sense, centred
        self.encoders, self.projections = nn.ModuleDict(dict(space.encoders)), space.projections
        self.input_kind = space.encoders[sense].input_kind
        text = space.encoders.get("text")
        self.preprocess = ReadSense(space.encoders[sense].preprocess, text.preprocess if text else None)
        self.identity = sources.provenance_of(model, path)
        if self.identity.sha256:  # the projections mean nothing behind other encoders
            parts = [self.identity.sha256, *(part.identity.sha256 for part in space.encoders.values())]
            digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            self.identity = sources.Provenance(self.identity.source, self.identity.revision, digest)
        self.freeze()
        self.dim, self.pooled_dim = 0, len(space.projections.of(sense).centre)

    def encode(self, media: Media) -> Features:
        """Pixels or samples of B inputs, or token ids (B N, whole numbers) → the summary (B W)."""
        sense = self.sense if media.values.is_floating_point() else "text"
        features = cast(Encoder, self.encoders[sense]).encode(media)
        projection = self.projections.of(sense)
        pooled = projection.centred(features.pooled) if self.centred else projection(features.pooled)
        return Features(features.frames[:, :0, :0], features.mask[:, :0], pooled)
