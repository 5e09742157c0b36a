"""PrefixTask: the LightningModule that trains a PrefixLM, of any parts, on any data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mmprefix import saved_model as checkpoints
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import attached_data
from mmprefix.decoders.base import Decoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.metrics.sentence_encoder import SentenceEncoder
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.training.checkpoints import require_resumable
from mmprefix.training.evaluation import Evaluation
from mmprefix.training.inputs.observation import show_training_data
from mmprefix.training.inputs.text_room import text_room
from mmprefix.training.modality_dropout import drop_modalities
from mmprefix.training.objective import Objective
from mmprefix.training.optimization.gradient_free import GradientFreeSteps
from mmprefix.training.optimization.optimizer import OptimizerFactory, configure, restore_rates, with_rates
from mmprefix.training.optimization.train_only import default_optimizer, require_rows_alone, trained_alone
from mmprefix.training.report import Report, ValidationRow
from mmprefix.training.rng_state import check_rng_state, gather_rng_states, restore_rng_state, rng_state
from mmprefix.training.self_critical import SelfCritical, caption_reward
from mmprefix.training.warm_start import warm_start
from mmprefix.transcriber import Transcriber
from mmprefix.types import Batch
from mmprefix.weights.dry_run import sizes_only
from mmprefix.weights.source import resolve_sentence_encoder
from mmprefix.weights.trained_file import digest, require_digest

log = logging.getLogger(__name__)


class PrefixTask(GradientFreeSteps):
    """Training of the mappers of a ``PrefixLM``: its decoder learns to write the targets.

    Args:
        branches: encoder and mapper by the manifest column they read.
        decoder: the frozen language model.
        optimizer: any, by class_path; AdamW at 1e-3 otherwise, ``RowAdam`` for a model with rows of users.
        schedule: learning rate after the warm-up: constant, or to zero by a line or half a cosine.
        warmup: a number of steps, or a fraction of all steps below 1.
        rates: factors on the rate of a branch, by its name, of ``prefix``, ``decoder``, or parts of them: ``prefix.z``.
        generate: search options at validation, test, predict, and of the model that is saved.
        start_from: a saved model (directory or hub repository) whose trained tensors are the first ones of this
            training, where both have them.
        train_only: parts that are trained alone, by their names in ``rates`` or by what is inside them; ``user.rows``:
            the users of the training data, with ``RowAdam``. All else keeps its bits.
        prefix: mapper that reads no input (``Learned``, ``DeepTable`` ...): the task's prefix, before all others.
        wording: templates of context, prompt and question.
        transcriber: writes the context of an input that has none, from its sound (see ``mmprefix.transcriber``).
        modality_dropout: probability of hiding each input of an example, and its context where that is read, in
            training (never all of them), so that one model serves every subset.
        objective: another loss than the likelihood of the captions, see ``mmprefix.training.methods``.
        answers: two words, the first for what is to be detected; their log odds are then scored at validation and test
            (see ``mmprefix.metrics.detection``).
        sentence_encoder: sentence encoder (a folder, ``models:NAME`` or a hub name) for ``sbert_sim`` in the figures
            of validation and test: the cosine between caption and references, beside that of shuffled captions.
        self_critical: train on the CIDEr-D of what the model writes instead of on the captions (see
            ``mmprefix.training.self_critical``); begin with ``start_from``, at a tenth of the rate.
        label_smoothing: share of each target that is spread over the vocabulary (https://arxiv.org/abs/1512.00567).
        compile: pass the decoder's layers through ``torch.compile`` first. On a CPU that takes a minute and gains
            nothing (docs/performance.md); on an H100 it gained nothing either.
        recompute: run the decoder's layers again on the way back (activation checkpointing): less memory, more time.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        branches: dict[str, Branch],
        decoder: Decoder,
        *,
        optimizer: OptimizerFactory | None = None,  # a default would lend its options to whatever a recipe names
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup: float = 0.05,
        rates: dict[str, float] = {},  # noqa: B006 (read only)
        generate: GenerateOptions = GenerateOptions(),  # noqa: B008 (frozen)
        start_from: str | None = None,
        train_only: list[str] | None = None,
        prefix: Callable[[Sizes], Mapper] | None = None,
        wording: PromptTemplate = PromptTemplate(),  # noqa: B008 (frozen)
        transcriber: Transcriber | None = None,
        modality_dropout: float = 0.0,
        objective: Objective | None = None,
        answers: list[str] | None = None,
        sentence_encoder: str | None = None,
        self_critical: SelfCritical | None = None,
        label_smoothing: float = 0.0,
        compile: bool = False,  # noqa: A002 (a recipe's option)
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if warmup < 0:
            raise InputError(f"model.warmup {warmup}: give a number of steps, or a fraction of all steps below 1")
        if not 0 <= modality_dropout < 1:
            raise InputError(f"model.modality_dropout {modality_dropout}: give a probability from 0 on, below 1")
        if modality_dropout and decoder.memory_dim is not None:
            raise InputError("model.modality_dropout: this decoder needs the frames that it looks at; give 0")
        if not 0 <= label_smoothing < 1:
            raise InputError(f"model.label_smoothing {label_smoothing}: give a share from 0 on, below 1")
        if answers is not None and (len(answers) != 2 or answers[0] == answers[1]):
            raise InputError(f"model.answers {answers}: give two words, the first for what is to be detected")
        if objective is not None and self_critical is not None:
            raise InputError("model.objective: takes the place of model.self_critical; leave one of them out")
        self.model = PrefixLM(branches, decoder, prefix, wording=wording, transcriber=transcriber)
        self.modality_dropout, self.answers = modality_dropout, answers
        self.compiles, self.recomputes, self.objective = compile, recompute, objective
        self.self_critical, self._reward, self.label_smoothing = self_critical, None, label_smoothing
        self.sentence_encoder, self.train_only = None, train_only
        if sentence_encoder is not None and not sizes_only():
            self.sentence_encoder = SentenceEncoder(resolve_sentence_encoder(sentence_encoder))
        self.optimizer, self.options = optimizer or default_optimizer(self.model), generate
        self.schedule, self.warmup, self.rates, self.start_from = schedule, warmup, rates, start_from
        self.strict_loading = False  # frozen tensors are not in a checkpoint; on_load_checkpoint is strict on the rest
        self.rows: list[ValidationRow] = []
        self.samples: list[dict[str, str]] = []  # of the last validation or test, for the card of the model
        self._resumed: dict[str, Any] | None = None  # random state of the checkpoint, until the first batch
        self._training_state: dict[str, Any] | None = None  # random state before the validation that runs

    @property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self.model, self.options, self.answers)

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that a data module has to read for this model."""
        encoders = {name: self.model.encoder(name) for name in self.model.encoders}
        return ModelInputs(
            load={name: encoder.preprocess for name, encoder in encoders.items()},
            kinds={name: encoder.input_kind for name, encoder in encoders.items()},
            reads_text=self._reads_text_alone,
            captions_alone=not encoders and not self.model.reads_text and self.model.decoder.memory_dim is None,
            reads_context=self.model.reads_text,
            count_tokens=self.model.decoder.count_tokens,
            text_room=partial(text_room, self.model),
            wording=self.model.wording if self.model.wording.history else None,
        )

    @property
    def _reads_text_alone(self) -> bool:
        return self.model.reads_text and self.model.decoder.memory_dim is None  # cross-attention needs frames

    def task_settings(self) -> dict[str, Any]:
        """Settings of a saved model that follow from this training, in the form of its YAML file."""
        return {} if self.answers is None else {"answers": list(self.answers)}

    def setup(self, stage: str) -> None:
        """Tell DDP that parameters may have no gradient, where that can be.

        A step on images leaves out the mapper of sounds, one on texts alone all mappers; a tuned encoder may be frozen
        on the way.
        """
        strategy = self.trainer.strategy
        always = 0 if self._reads_text_alone else 1  # mappers that no step can leave out
        partly = len(self.model.mappers) > always or any(self.model.encoder(name).saved for name in self.model.encoders)
        if isinstance(strategy, DDPStrategy) and partly:
            strategy._ddp_kwargs.setdefault("find_unused_parameters", True)  # pyright: ignore[reportPrivateUsage]

    def on_fit_start(self) -> None:
        """Refuse a model that cannot be saved; start from the saved model ``start_from``, unless a run is resumed."""
        checkpoints.describe(self.model)
        if self.start_from is not None and self.trainer.ckpt_path is None:
            warm_start(self.model, self.start_from)
        data = attached_data(self.trainer)
        examples = [] if data is None else data.rows["train"].examples
        inputs = (data and data.inputs) or self.inputs
        if self.self_critical is not None:
            self._reward = caption_reward([example.captions for example in examples])
        show_training_data(self.model, examples, inputs, skip_bad=data is not None and data.on_bad == "skip")
        if self.objective is not None:
            self.objective.begin(self.model)
        if self.compiles:
            self.model.decoder.compile_layers()
        if self.recomputes:
            self.model.decoder.recompute_layers()

    def on_train_start(self) -> None:
        """Give the first step of a run that is resumed with another number of steps the rate of its new schedule."""
        self.require_own_batches()
        restore_rates(config.scheduler for config in self.trainer.lr_scheduler_configs)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.modality_dropout:
            batch = drop_modalities(batch, self.modality_dropout, self.model.reads_text)
        with torch.set_grad_enabled(not self.gradient_free):
            loss = self.training_loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(batch))
        return loss

    def training_loss(self, batch: Batch) -> Tensor:
        """Loss of a step: that of the captions, of the objective, or the one whose gradient raises their reward."""
        if self.objective is not None:
            loss, figures = self.objective.loss(self.model, batch, self.label_smoothing)
            self.log_dict({f"train/{name}": value for name, value in figures.items()}, batch_size=len(batch))
            return loss
        if self.self_critical is None or self._reward is None:
            return self.model.text_loss(batch, self.label_smoothing).mean()
        loss, reward = self.self_critical.loss(self.model, batch, self._reward)
        self.log("train/reward", reward, prog_bar=True, batch_size=len(batch))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of all gradients, before they are clipped."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))

    def validation_step(self, batch: Batch, index: int) -> None:
        self.rows += self._evaluation.rows(batch)

    test_step = validation_step

    def predict_step(self, batch: Batch, index: int) -> list[dict[str, Any]]:
        """Line of ``predictions.jsonl`` for each input: id, text, references (if any), candidates with their scores."""
        return self._evaluation.predictions(batch)

    def on_validation_epoch_start(self) -> None:
        self.rows = []  # an interrupted evaluation leaves some
        if not self.trainer.sanity_checking:
            self._restore_random_state()  # a run that was stopped in a validation begins with it
        self._training_state = rng_state()

    def on_test_epoch_start(self) -> None:
        self.rows = []

    def on_validation_epoch_end(self) -> None:
        self._report("val")
        state, self._training_state = self._training_state, None
        if state is not None:
            restore_rng_state(state)  # training does not depend on how often it is validated

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        report = Report.gather(self.rows, self.answers[0] if self.answers else None, self.sentence_encoder)
        self.rows = []
        for name, value in report.figures().items():  # the same in every process
            self.log(f"{stage}/{name}", value, prog_bar=name in ("loss", "cider_d", "exact_match", "eer"))
        if self.trainer.sanity_checking:
            return
        self.samples = report.samples()
        report.write(self.trainer, stage)
        if self.trainer.is_global_zero:
            result = self.trainer.state.fn != TrainerFn.FITTING  # of validate and test; of a fit it is progress
            table = report.table(3 if stage == "val" else 8)
            log.info("\n%s: step %d\n%s\n", stage, self.trainer.global_step, table, extra={"result": result})
            for warning in report.warnings():
                log.warning(warning)

    def configure_optimizers(self) -> Any:
        parameters = trained_alone(self.model, self.train_only)
        optimizer = (
            with_rates(self.optimizer, parameters, self.rates) if self.rates else self.optimizer(parameters.values())
        )
        if self.train_only is not None:
            require_rows_alone(self.model, optimizer)
        total = lambda: self.trainer.estimated_stepping_batches  # noqa: E731 (it loads the data: only where needed)
        return configure(optimizer, schedule=self.schedule, warmup=self.warmup, total=total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained tensors only, with the identity of the frozen parts and the state of all random generators."""
        checkpoint["state_dict"] = {f"model.{name}": tensor for name, tensor in self.model.trained.items()}
        checkpoint["mmprefix"] = checkpoints.describe(self.model) | {"sha256": digest(self.model.trained)}
        checkpoint["random_states"] = gather_rng_states(self._training_state or rng_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the trained tensors; InputError for tensors or frozen parts that are not this model's."""
        file = str(self.trainer.ckpt_path)
        checkpoints.require_ours(checkpoint, file)
        checkpoints.require_same_parts(self.model, checkpoint["mmprefix"], file)
        tensors = {name.removeprefix("model."): t for name, t in checkpoint["state_dict"].items()}
        require_digest(tensors, checkpoint["mmprefix"].get("sha256"), file)
        checkpoints.load_trained(self.model, tensors, file)
        if self.trainer.state.fn == TrainerFn.FITTING:
            require_resumable(checkpoint, self.trainer, file)
            states = checkpoint["random_states"]
            self._resumed = states[min(self.trainer.global_rank, len(states) - 1)]
            check_rng_state(self._resumed, file)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._restore_random_state()  # not before: set-up and sanity checks have drawn from the generators meanwhile

    def _restore_random_state(self) -> None:
        if self._resumed is not None:
            restore_rng_state(self._resumed)
            self._resumed = None
