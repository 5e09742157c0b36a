"""Data of a recipe and its decoder's room for captions, without weights, for ``mmprefix check-data --config``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mmprefix.cli.training.lightning_cli import PrefixCLI
from mmprefix.cli.training.train import train
from mmprefix.data.columns import ColumnMapping
from mmprefix.data.long_captions import TextRoom
from mmprefix.data.pairs import PairData
from mmprefix.data.sources import Split, manifests_of
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.weights.dry_run import is_placeholder


@dataclass(frozen=True)
class RecipeData:
    """Manifests of a recipe (each with the split of its rows, None: any), and its decoder's room for captions.

    ``columns`` name context and target, ``prompt`` is that of rows that have none; ``room`` is None where there is no
    limit, or the targets are no captions. With ``captions_alone`` a row needs no input.
    """

    manifests: list[tuple[str, str | None]]
    columns: ColumnMapping
    prompt: str
    media_root: str | None
    room: TextRoom | None
    captions_alone: bool


def recipe_data(config: str, manifests: Sequence[str] = (), allow: Sequence[str] = ()) -> RecipeData:
    """Data of the recipe ``config``; ``manifests`` stand in the place of its own.

    ``allow`` names modules whose classes it may use.
    Raises InputError for a recipe of other data than manifests, and where the decoder's tokenizer is not at hand.
    """
    options = [f"--data.train={json.dumps(list(manifests))}"] if manifests else []
    options += [f"--allow={module}" for module in allow]
    built: list[PrefixCLI] = []

    class BuildOnly(PrefixCLI):
        def before_fit(self) -> None:
            built.append(self)
            raise SystemExit(0)

    train(["fit", "--config", config, "--dry_run=true", *options], BuildOnly)
    (run,) = built
    data = run.datamodule
    if not isinstance(data, PairData):
        raise InputError(f"--config {config}: its data are {type(data).__name__}, not manifests")
    decoder, make = run.model.model.decoder, run.model.inputs.text_room
    if isinstance(decoder, ComposedDecoder) and is_placeholder(decoder.tokenizer):
        raise InputError(
            f"--config {config}: the tokenizer of the decoder {decoder.identity.source!r} is not on this machine, so "
            "that no token can be counted; fetch the model, or leave --config out"
        )
    room = make() if make is not None and data.sample_questions is None else None
    splits: tuple[Split, ...] = ("train", "val", "test")
    files = [pair for split in splits for pair in manifests_of(split, data.manifests, data.root)]
    return RecipeData(files, data.columns, data.prompt, data.media_root, room, run.model.inputs.captions_alone)
