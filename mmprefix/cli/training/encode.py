"""``mmprefix encode``: fill the feature store of a recipe, and write WebDataset shards from it."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from mmprefix.atomic import require_writable_folder
from mmprefix.cli.training.lightning_cli import PrefixCLI, log
from mmprefix.cli.training.run_folder import RunFolder
from mmprefix.cli.training.run_options import ENCODE_OPTIONS, add_run_options
from mmprefix.data.pairs import PairData
from mmprefix.errors import InputError
from mmprefix.features.store import FeatureStore
from mmprefix.features.webdataset import require_no_index, write_webdataset


class EncodeCLI(PrefixCLI):
    """CLI that fills the feature store as a training with ``cache`` does at its start, and then stops.

    With ``--to webdataset --out FOLDER`` the stored features are also written as shards for streaming.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options for WebDataset shards to those of ``PrefixCLI``."""
        super().add_arguments_to_parser(parser)
        add_run_options(parser, ENCODE_OPTIONS)

    def choose_folder(self) -> RunFolder:
        """Folder of logs, of which there are none: no run begins."""
        return RunFolder(Path(self.config.trainer.default_root_dir or "."))

    def before_instantiate_classes(self) -> None:
        """Refuse folders that cannot be written before an encoder is loaded."""
        config = self.config
        if not config.cache:
            raise InputError("cache: no folder for the feature store; give --cache DIR")
        if (config.to == "webdataset") != bool(config.out):
            raise InputError(f"--to {config.to} --out {config.out}: give --to webdataset --out FOLDER, or neither")
        if config.shard_rows < 1:
            raise InputError(f"--shard_rows {config.shard_rows}: give a number from 1 on")
        require_writable_folder(Path(config.cache).expanduser(), "--cache")
        if config.out:
            require_no_index(Path(config.out))
            require_writable_folder(Path(config.out), "--out")
        super().before_instantiate_classes()

    def before_fit(self) -> None:
        """Encode all rows of the data module into the store, write shards if asked, stop the run (exit code 0)."""
        if self.config.dry_run:
            super().before_fit()
        stores = self.use_cache(["fit", "test"])
        if self.config.out and self.trainer.is_global_zero and isinstance(self.datamodule, PairData):
            self._write_shards(self.datamodule, stores)  # use_cache takes no other data
        raise SystemExit(0)

    def _write_shards(self, data: PairData, stores: dict[str, FeatureStore]) -> None:
        config = self.config
        splits = {split: index.examples for split, index in data.rows.items()}
        readers = self.model.inputs.load if data.inputs is None else data.inputs.load
        encoders = {name: store.description for name, store in stores.items()}
        counts = write_webdataset(
            Path(config.out), splits, readers, encoders=encoders, rows=config.shard_rows, seed=data.seed
        )
        for split, count in counts.items():
            line = f"{split}: {len(splits[split])} rows in {count} shards: {config.out}"
            log.info(line, extra={"result": True})
