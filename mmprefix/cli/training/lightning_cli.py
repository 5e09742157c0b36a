"""``mmprefix fit | validate | test | predict``: the Lightning CLI over ``PrefixTask`` and a data module."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

from mmprefix.cli.inference.predictions import WritePredictions, row_options
from mmprefix.cli.reports.after_run import draw_report
from mmprefix.cli.training.console import parameter_table
from mmprefix.cli.training.finish import command_to_resume, require_free, save_trained, take_best, test_figures

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loaders fork

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mmprefix.cli.training.console import RunConsole, open_run_log, quiet_trainer
from mmprefix.cli.training.progress import progress_bars
from mmprefix.cli.training.recipe_errors import check_recipe, explain, options, recipes_of
from mmprefix.cli.training.run_folder import (
    MODEL,
    RunFolder,
    file_to_write,
    folder_to_fit,
    folder_to_use,
    require_checkpoint,
    require_writable_place,
    resolve_checkpoint,
    share_with_processes,
)
from mmprefix.cli.training.run_logs import SaveRecipe, loggers_of
from mmprefix.cli.training.run_options import RUN_OPTIONS, add_run_options, checkpoint_callbacks, usable_precision
from mmprefix.cli.training.saved_recipe import load_saved
from mmprefix.data.pairs import PairData
from mmprefix.errors import InputError
from mmprefix.features.store import FeatureStore
from mmprefix.interrupt import Stopped
from mmprefix.training.best_checkpoint import BestCheckpoint
from mmprefix.training.checkpoints import restoring_errors_as_input_errors
from mmprefix.training.climbing_loss import warning_callbacks
from mmprefix.training.feature_cache import use_cache
from mmprefix.training.task import PrefixTask
from mmprefix.training.unfreeze import UnfreezeUntil
from mmprefix.weights.dry_run import without_weights

log = logging.getLogger(__name__)
PASSED: set[str | int] = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}


class PrefixCLI(LightningCLI):
    """LightningCLI of ``PrefixTask``; a run writes below ``runs/RECIPE``, or below ``trainer.default_root_dir``.

    It has the parser of its verb alone: below a parser of verbs every option would be read twice.
    """

    _parsers: ClassVar[dict[str, LightningArgumentParser]] = {}
    config: Any
    model: PrefixTask
    saved_model: Path | None = None  # given by --model DIR instead of a checkpoint
    trainer: Trainer
    datamodule: LightningDataModule

    def __init__(self, verb: str, **options: Any) -> None:
        """Parse, build and run ``verb``: fit, validate, test or predict. ``options`` are those of LightningCLI."""
        self.verb = verb
        options |= {"subclass_mode_data": True, "run": False, "load_from_checkpoint_support": False}
        super().__init__(PrefixTask, PairData, **options)
        self.run()

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:
        """Build the parser, or take the one that an earlier run of this process built."""
        program = main_kwargs["prog"]
        if program not in self._parsers:
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            self._parsers[program] = self.parser
        self.parser = self._parsers[program]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run that belong to no class, and those of the Trainer's method."""
        add_run_options(parser, RUN_OPTIONS)
        parser.add_method_arguments(Trainer, self.verb, skip=PASSED)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the recipes' option names, so that an error names the nearest one; then parse as LightningCLI does."""
        for file in recipes_of(args):
            check_recipe(file, options(parser))
        super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        """Build model and data; an InputError of a part is raised as it is, without the parser's wrapping."""
        try:
            with self.folder.released_on_error(), without_weights() if self.config.dry_run else nullcontext():
                super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            raise cause or InputError(explain(str(error), self.parser)) from None

    def run(self) -> None:
        """Run the verb; a run that ends before its first step leaves no folder."""
        method = getattr(self.trainer, self.verb)
        own = {name: self.config_init[name] for name in inspect.signature(method).parameters if name not in PASSED}
        with self.folder.released_on_error(lambda: self.trainer.global_step == 0 and self.trainer.is_global_zero):
            getattr(self, f"before_{self.verb}")()
            getattr(self, self.verb, method)(model=self.model, datamodule=self.datamodule, **own)
            if after := getattr(self, f"after_{self.verb}", None):
                after()

    def before_instantiate_classes(self) -> None:
        """Choose the folder that the run writes below, and the checkpoint that it goes on from."""
        config, trainer = self.config, self.config.trainer
        if config.get("ckpt_path"):
            require_checkpoint(config.ckpt_path)
        self.folder = self.choose_folder()
        trainer.default_root_dir = str(self.folder.path)
        share_with_processes(self.folder)
        quiet_trainer(trainer)
        trainer.precision = usable_precision(trainer.precision, trainer.accelerator)
        places = [self.folder.last.parent, self.folder.path]
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        for callback in filter(None, callbacks):
            if callback.class_path.endswith("ModelCheckpoint"):
                if not callback.init_args.get("dirpath"):
                    callback.init_args.dirpath = str(self.folder.last.parent)
                places.append(Path(callback.init_args.dirpath))
        if config.get("ckpt_path"):
            config.ckpt_path = str(resolve_checkpoint(config.ckpt_path, places))
        elif self.folder.resumed_job and any(self.folder.path.rglob("*.ckpt")):
            config.ckpt_path = str(resolve_checkpoint("last", places))

    def _set_seed(self) -> None:
        """Seed all generators; InputError for a seed that they cannot take, which Lightning would replace by chance."""
        seed = self.config.seed_everything
        if type(seed) is int and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything {seed}: give a number from 0 to 4294967295")
        super()._set_seed()

    def choose_folder(self) -> RunFolder:
        """Folder of the run; see ``mmprefix.cli.training.run_folder``."""
        config = self.config
        name = config.name or next((Path(str(file)).stem for file in config.get("config") or []), "run")
        if not re.fullmatch(r"[^/\\\s.][^/\\]*", name):
            raise InputError(f"--name {name!r}: give the name of a folder below runs")
        root, ckpt_path = config.trainer.default_root_dir, config.ckpt_path
        if self.saved_model is not None and root is None:
            root = str(self.saved_model.parent)
        if self.verb != "fit" or config.dry_run:
            return folder_to_use(name, root, ckpt_path)
        return folder_to_fit(name, root, ckpt_path, overwrite=config.overwrite)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with its logs, and what keeps checkpoints and predictions."""
        config = self.config
        trainer = config.trainer
        if trainer.logger in (None, True):
            kwargs["logger"] = loggers_of(self.folder.path)
        configured = self._get(self.config_init, "trainer").callbacks or []
        callbacks = list(configured) if isinstance(configured, list) else [configured]
        if self.verb == "fit" and trainer.enable_checkpointing is not False and not trainer.fast_dev_run:
            callbacks += checkpoint_callbacks(config, self.folder, callbacks)
        if self.verb == "fit":
            callbacks += [RunConsole(self.folder), *warning_callbacks()]
        callbacks += progress_bars(trainer, callbacks)
        recipe = SaveRecipe(self.parser, config)
        if self.verb == "predict":
            callbacks.append(self._predictions(recipe.options))
        if not trainer.fast_dev_run:
            callbacks.append(recipe)
        try:
            return super().instantiate_trainer(**{**kwargs, "callbacks": callbacks})
        except InputError:
            raise
        except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:  # a value of the recipe
            raise InputError(f"trainer: {' '.join(str(error).split())[:300]}") from error

    def _predictions(self, recipe: dict[str, Any]) -> WritePredictions:
        out, ckpt_path, overwrite = self.config.out, self.config.ckpt_path, self.config.overwrite
        model = self.saved_model or (Path(ckpt_path) if ckpt_path else None)
        file = file_to_write(out, self.folder, overwrite=overwrite)
        return WritePredictions(file, row_options(recipe, model), overwrite=overwrite)

    def before_fit(self) -> None:
        """Refuse a folder that the model cannot be saved to; with ``--dry_run`` log the parameter table and stop."""
        config = self.config
        if self.model_folder is not None:
            require_free(self.model_folder, overwrite=config.overwrite or config.ckpt_path is not None)
            require_writable_place("save_to", self.model_folder)
        if config.dry_run:
            for callback in self._callbacks():
                if isinstance(callback, UnfreezeUntil):
                    callback.setup(self.trainer, self.model, "fit")
            log.info("\n".join(parameter_table(self.model)), extra={"result": True})
            raise SystemExit(0)
        open_run_log(self.folder.path)
        if config.overwrite and config.ckpt_path is None:
            self.folder.clear()
        self.use_cache(["fit", "test"] if config.test_after_fit else ["fit"])

    @property
    def model_folder(self) -> Path | None:
        """Folder that the trained model is saved to; None: it is not."""
        config = self.config
        return None if config.save == "none" else Path(config.save_to or self.folder.path / MODEL)

    def before_validate(self) -> None:
        """Take the saved model's tensors; warn where neither it nor a checkpoint is named."""
        if self.saved_model is not None:
            load_saved(self.model.model, self.saved_model)
        elif self.config.ckpt_path is None:
            log.warning("No --ckpt_path was given, so the mappers are untrained; give a file, or last.")
        self.use_cache([self.verb])

    before_test = before_validate

    def before_predict(self) -> None:
        """Refuse to write texts of untrained mappers, or to write over a file."""
        if self.saved_model is None and self.config.ckpt_path is None:
            raise InputError("predict: give --ckpt_path last (or a file), or --model DIR; the mappers are untrained")
        self.before_validate()

    def use_cache(self, stages: list[str]) -> dict[str, FeatureStore]:
        """Encode the inputs of ``stages`` into the recipe's feature store, on the run's devices. Stores by branch."""
        config = self.config
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
            default_root_dir=self.folder.path,
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
            with restoring_errors_as_input_errors(options.get("ckpt_path")):
                self.trainer.fit(**options)
        except Stopped as stop:
            self._say_how_to_go_on(stop)
            raise

    def _say_how_to_go_on(self, stop: Stopped) -> None:
        if not self.trainer.is_global_zero:
            raise SystemExit(stop.exit_code) from stop  # one process says it
        if self.folder.last.exists():
            command = command_to_resume(sys.argv[1:], self.folder.last)
            stop.advice = "; ".join(filter(None, [stop.advice, f"go on with: {command}"]))

    def after_fit(self) -> None:
        """Take the best state, test it where the recipe asks for that, and save the model."""
        if self.trainer.interrupted:
            return
        config = self.config
        best = next((callback for callback in self._callbacks() if isinstance(callback, BestCheckpoint)), None)
        try:
            if config.save == "best":
                take_best(self.model, self.trainer, best)
            stage, figures = "val", {} if best is None else best.figures if config.save == "best" else best.latest
            if config.test_after_fit:
                tested = test_figures(self.model, self.trainer, self.datamodule)
                stage, figures = (stage, figures) if tested is None else ("test", tested)
            if self.model_folder is not None and self.trainer.is_global_zero:
                save_trained(self.model_folder, self.model, self.datamodule, record=(stage, figures), options=config)
            draw_report(self.folder.path, self.trainer, config)
        except Stopped as stop:
            self._say_how_to_go_on(stop)
            raise

    def after_test(self) -> None:
        """Draw the run's report with this test in it."""
        draw_report(self.folder.path, self.trainer, self.config)

    def _callbacks(self) -> list[Callback]:
        return cast(Any, self.trainer).callbacks  # set by a connector, not declared by Trainer
