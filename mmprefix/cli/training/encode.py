"""The verb `encode`: fills the feature store of a recipe, and writes WebDataset shards from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from lightning.pytorch.cli import LightningArgumentParser

from mmprefix.cli.training.lightning_cli import PrefixCLI, log
from mmprefix.data.pairs import PairData
from mmprefix.errors import InputError
from mmprefix.features.store import FeatureStore
from mmprefix.features.webdataset import write_webdataset


class EncodeCLI(PrefixCLI):
    """``mmprefix encode``: what a training would do first where its recipe has a ``cache``, and no more.

    With ``--to webdataset --out FOLDER`` what is in the store is also written as shards that stream.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where to, beside the store."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--to", type=Literal["store", "webdataset"], default="store", help="what is written")
        parser.add_argument("--out", type=str | None, default=None, help="the folder for webdataset's shards")
        parser.add_argument("--shard_rows", type=int, default=1000, help="most rows of a shard")

    def before_fit(self) -> None:
        """Fills the store with all that the data module names."""
        if not self._config().cache:
            raise InputError("cache: names no folder to put features into; give --cache DIR")
        config = self._config()
        if (config.to == "webdataset") != bool(config.out):
            raise InputError(f"--to {config.to} --out {config.out}: give --to webdataset --out FOLDER, or neither")
        stores = self.use_cache(["fit", "test"])
        if config.out and self.trainer.is_global_zero:
            self._write_shards(stores)
        raise SystemExit(0)

    def _write_shards(self, stores: dict[str, FeatureStore]) -> None:
        config, data = self._config(), cast(PairData, self.datamodule)
        splits = {split: found.examples for split, found in data.rows.items()}
        readers = self.model.inputs.load if data.inputs is None else data.inputs.load
        encoders = {name: store.description for name, store in stores.items()}
        counts = write_webdataset(
            Path(config.out), splits, readers, encoders=encoders, rows=config.shard_rows, seed=data.seed
        )
        for split, count in counts.items():
            log.info("%s: %d rows in %d shards: %s", split, len(splits[split]), count, config.out)
