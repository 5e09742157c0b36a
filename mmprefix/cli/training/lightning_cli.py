"""``mmprefix fit | validate | test | predict``: the Lightning CLI over ``PrefixTask`` and a data module."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from argparse import HelpFormatter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from mmprefix.cli.training.parameter_table import parameter_table

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loaders fork

import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mmprefix.cli.training.class_names import with_class_paths
from mmprefix.cli.training.part_help import with_parts
from mmprefix.cli.training.recipe_errors import check_recipe, explain, options, recipes_of
from mmprefix.data.pairs import PairData
from mmprefix.errors import InputError
from mmprefix.features.store import FeatureStore
from mmprefix.inference.predictor import Predictor
from mmprefix.interrupt import Stopped
from mmprefix.parts import with_current_names
from mmprefix.saved_model import ModelSettings, TrainingRecord, require_writable, task_from_dict
from mmprefix.training.checkpoints import LastCheckpoint
from mmprefix.training.feature_cache import use_cache
from mmprefix.training.predictions import WritePredictions
from mmprefix.training.task import PrefixTask
from mmprefix.training.unfreeze import UnfreezeUntil
from mmprefix.weights.devices import best_device
from mmprefix.weights.dry_run import without_weights
from mmprefix.weights.part_places import PACK_LIMIT

log = logging.getLogger(__name__)
_load_yaml = get_loader("yaml")
set_loader("yaml", lambda text: with_class_paths(with_current_names(_load_yaml(text))), exceptions=(yaml.YAMLError,))


class RecipeParser(LightningArgumentParser):
    """Parser of recipes; its errors are one plain line that names the option and the nearest valid one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise InputError(explain(message, self)) from ex

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Help with the list of all parts."""
        return with_parts(super().format_help(formatter))


class PrefixCLI(LightningCLI):
    """LightningCLI of ``PrefixTask``; a run writes below ``runs/RECIPE``, or below ``trainer.default_root_dir``."""

    model: PrefixTask
    trainer: Trainer
    datamodule: LightningDataModule

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Verbs, each with the arguments that LightningCLI passes itself."""
        common = {"model", "dataloaders", "datamodule"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": common,
            "test": common,
            "predict": common,
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run that belong to no class."""
        parser.add_argument(
            "--save_to", type=str | None, default=None, help="folder for the trained model, saved by fit"
        )
        parser.add_argument("--pack", type=bool, default=False, help="copy small frozen parts into the saved model")
        parser.add_argument("--pack_limit", type=float, default=PACK_LIMIT, help="megabytes of a part that is packed")
        parser.add_argument("--license", type=str | None, default=None, help="licence of the saved model, for its card")
        parser.add_argument("--language", type=list[str], default=[], help="languages that it writes, for its card")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="whether fit ends with a test")
        parser.add_argument("--dry_run", type=bool, default=False, help="build, print sizes, and stop")
        parser.add_argument("--cache", type=str | None, default=None, help="folder of a feature store to use")
        parser.add_argument(
            "--cache_dtype", type=str, default="float16", help="precision of stored features: float16 or float32"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the recipes' option names, so that an error names the nearest one; then parse as LightningCLI does."""
        for file in recipes_of(args):
            check_recipe(file, options(self._subcommand_parsers[args[0]]))
        super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        """Build model and data; an InputError of a part is raised as it is, without the parser's wrapping."""
        try:
            with without_weights() if self._config().get("dry_run") else nullcontext():
                super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            raise cause or InputError(explain(str(error), self.parser)) from None

    def before_instantiate_classes(self) -> None:
        """Set the directory that the run writes below: ``trainer.default_root_dir``, or runs/RECIPE."""
        config = self._config()
        trainer = config.trainer
        self.root = Path(trainer.default_root_dir or Path("runs") / self._recipe_name())
        self.last = self.root / "checkpoints" / "last.ckpt"
        trainer.default_root_dir = str(self.root)
        trainer.precision = usable_precision(trainer.precision, trainer.accelerator)
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        for callback in filter(None, callbacks):
            if callback.class_path.endswith("ModelCheckpoint") and not callback.init_args.get("dirpath"):
                callback.init_args.dirpath = str(self.root / "checkpoints")  # one for all runs, so that "last" is found

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with CSV and TensorBoard logs, and a last checkpoint to resume from."""
        trainer = self._config().trainer
        if trainer.logger in (None, True):
            csv = CSVLogger(self.root, name="logs")
            kwargs["logger"] = [csv, TensorBoardLogger(self.root, name="logs", version=csv.version)]
        configured = self._get(self.config_init, "trainer").callbacks or []
        callbacks = list(configured) if isinstance(configured, list) else [configured]
        if self.subcommand == "fit" and trainer.enable_checkpointing is not False and not trainer.fast_dev_run:
            own = any(isinstance(c, ModelCheckpoint) and c.save_last for c in callbacks)
            callbacks.append(LastCheckpoint(self.last, signals_only=own))
        if self.subcommand == "predict":
            callbacks.append(WritePredictions(self.root / "predictions.jsonl"))
        return super().instantiate_trainer(**{**kwargs, "callbacks": callbacks})

    def _parse_ckpt_path(self) -> None:
        """Do nothing: LightningCLI would read model options from the file, before it is known to be one of ours."""

    def before_fit(self) -> None:
        """Refuse a folder that the model cannot be saved to; with ``--dry_run`` log the parameter table and stop."""
        config = self._config()
        if config.save_to:
            require_writable(config.save_to)
        if config.dry_run:
            for callback in self._callbacks():
                if isinstance(callback, UnfreezeUntil):
                    callback.setup(self.trainer, self.model, "fit")
            for line in parameter_table(self.model):
                log.info(line)
            raise SystemExit(0)
        self.use_cache(["fit", "test"] if config.test_after_fit else ["fit"])

    def before_validate(self) -> None:
        """Warn where no checkpoint is named: the mappers are untrained then."""
        if self._config().ckpt_path is None:
            log.warning("No --ckpt_path was given, so the mappers are untrained; give a file, or last.")
        self.use_cache([str(self.subcommand)])

    before_test = before_predict = before_validate

    def use_cache(self, stages: list[str]) -> dict[str, FeatureStore]:
        """Encode the inputs of ``stages`` into the recipe's feature store, on the run's devices. Stores by branch."""
        config = self._config()
        if not config.cache:
            return {}
        trainer, strategy = config.trainer, config.trainer.strategy
        filling = Trainer(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            strategy=strategy if isinstance(strategy, str) else "ddp",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.root,
        )
        return use_cache(
            self.model,
            self.datamodule,
            stages,
            root=config.cache,
            dtype=config.cache_dtype,
            trainer=filling,
            callbacks=self._callbacks(),
        )

    def fit(self, **options: Any) -> None:
        """Train; where a signal stops the training, say how to go on."""
        try:
            self.trainer.fit(**options)
        except Stopped as stop:
            if not self.trainer.is_global_zero:
                raise SystemExit(stop.exit_code) from stop  # one process says it
            stop.advice += f"; go on with: {command_to_resume(sys.argv[1:], self.last)}" if self.last.exists() else ""
            raise

    def after_fit(self) -> None:
        """Test and save the model where the recipe asks for it."""
        config = self._config()
        if self.trainer.interrupted:
            return
        stage = "val"
        if config.test_after_fit:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            stage = "test"
        if config.save_to and self.trainer.is_global_zero:
            Predictor(self.model.model, self._settings(stage)).save(
                config.save_to, pack=config.pack, pack_limit=config.pack_limit
            )
            log.info("saved the model: %s", config.save_to)

    def _settings(self, stage: str) -> ModelSettings:
        """Settings saved beside the tensors: decoding options, data and metrics of this run, and its task."""
        figures = {
            name.removeprefix(f"{stage}/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith(f"{stage}/")
        }
        data = self.datamodule if isinstance(self.datamodule, PairData) else None
        names = [type(self.datamodule).__name__] if data is None else data.source_names()
        task = self.model.task_settings() | ({} if data is None else data.task_settings())
        return ModelSettings(
            self.model.options,
            "" if data is None else data.prompt,
            TrainingRecord(names, stage, figures, self.model.samples),
            task=task_from_dict(task),
            license=self._config().license,
            language=self._config().language,
        )

    def _callbacks(self) -> list[Callback]:
        return cast(Any, self.trainer).callbacks  # set by a connector, not declared by Trainer

    def _config(self) -> Any:
        return self.config[self.subcommand] if self.subcommand else self.config

    def _recipe_name(self) -> str:
        configs = self._config().get("config") or []
        return Path(str(configs[0])).stem if configs else "run"


def usable_precision(precision: Any, accelerator: Any) -> Any:
    """``precision``, or "32-true" where half precision would run on a CPU, on which autocast takes 30 times as long."""
    slow = accelerator == "cpu" or (accelerator == "auto" and best_device() == "cpu")
    if not slow or precision is None or not str(precision).startswith(("16", "bf16")):
        return precision
    log.warning(
        "trainer.precision %s: many times slower on a CPU, which this run uses; float32 is used instead", precision
    )
    return "32-true"


def command_to_resume(words: Sequence[str], checkpoint: Path) -> str:
    """Shell command of a run with ``words`` that goes on from ``checkpoint``."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag == "--ckpt_path":
            next(rest, None) if not equals else None
        else:
            kept.append(word)
    return shlex.join(["mmprefix", *kept, "--ckpt_path", str(checkpoint)])


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
