"""Training: the loss, the texts written at each validation, the optimiser. No knowledge of any model or data set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mmprefix import saved_model as checkpoints
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import attached_data
from mmprefix.decoders.base import Decoder, TextLoss
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.training.input_ranges import fit_input_ranges
from mmprefix.training.modality_dropout import drop_modalities
from mmprefix.training.optimizer import lr_factor, use_fused_optimizer
from mmprefix.training.report import Report, ValidationRow
from mmprefix.training.rng_state import gather_rng_states, restore_rng_state, rng_state
from mmprefix.training.warm_start import warm_start
from mmprefix.transcriber import Transcriber
from mmprefix.types import Batch

log = logging.getLogger(__name__)


class PrefixTask(LightningModule):
    """Trains the mappers of a ``PrefixLM`` to make its decoder say the targets.

    ``branches``: encoder and mapper by the manifest column they read. ``optimizer``: any, by class_path; AdamW at
    1e-3 otherwise. ``schedule`` after ``warmup`` steps (a number, or a fraction of all steps below 1): constant, or to
    zero by a line or half a cosine. ``generate``: how texts are written at validation, test, predict, and by the model
    that is saved. ``start_from``: a saved model (directory or hub repository) whose trained tensors are the first ones
    of this training, where both have them. ``prefix``, ``wording`` and ``transcriber`` are those of ``PrefixLM``.

    ``modality_dropout`` hides each input of an example, and its context where that is read, with this probability in
    training (never all of them), so that one model serves every subset. ``answers``: two words, the first for what is
    to be detected; their log odds are then scored at validation and test (see ``mmprefix.metrics.detection``).
    ``compile``: the decoder's layers go through ``torch.compile`` first. On a CPU that takes a minute and gains nothing
    (docs/performance.md); on an H100 it gained nothing either.
    ``recompute``: what the decoder's layers would keep for the way back is computed again there (activation
    checkpointing): less memory, more time.
    """

    def __init__(
        self,
        branches: dict[str, Branch],
        decoder: Decoder,
        optimizer: OptimizerCallable | None = None,  # a default would lend its options to whatever a recipe names
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup: float = 0.05,
        generate: GenerateOptions = GenerateOptions(),  # noqa: B008 (frozen)
        start_from: str | None = None,
        prefix: Callable[[int, int, int], Mapper] | None = None,
        wording: PromptTemplate = PromptTemplate(),  # noqa: B008 (frozen)
        transcriber: Transcriber | None = None,
        modality_dropout: float = 0.0,
        answers: list[str] | None = None,
        compile: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if warmup < 0:
            raise InputError(f"model.warmup {warmup}: give a number of steps, or a fraction of all steps below 1")
        if not 0 <= modality_dropout < 1:
            raise InputError(f"model.modality_dropout {modality_dropout}: give a probability from 0 on, below 1")
        if modality_dropout and decoder.memory_dim is not None:
            raise InputError(
                "model.modality_dropout: this decoder cannot do without the frames that it looks at; give 0"
            )
        if answers is not None and (len(answers) != 2 or answers[0] == answers[1]):
            raise InputError(f"model.answers {answers}: give two words, the first for what is to be detected")
        self.model = PrefixLM(branches, decoder, prefix, wording, transcriber)
        self.modality_dropout, self.answers = modality_dropout, answers
        self.compiles, self.recomputes = compile, recompute
        self.optimizer, self.options = optimizer or torch.optim.AdamW, generate
        self.schedule, self.warmup, self.start_from = schedule, warmup, start_from
        self.strict_loading = False  # frozen tensors are not in a checkpoint; on_load_checkpoint is strict on the rest
        self.rows: list[ValidationRow] = []
        self._resumed: dict[str, Any] | None = None

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that a data module has to read for this model."""
        encoders = {name: self.model.encoder(name) for name in self.model.encoders}
        return ModelInputs(
            load={name: encoder.preprocess for name, encoder in encoders.items()},
            kinds={name: encoder.input_kind for name, encoder in encoders.items()},
            reads_text=self._reads_text_alone,
            reads_context=self.model.reads_text,
            count_tokens=self.model.decoder.count_tokens,
        )

    @property
    def _reads_text_alone(self) -> bool:
        return self.model.reads_text and self.model.decoder.memory_dim is None  # cross-attention needs frames

    def setup(self, stage: str) -> None:
        """Several processes are told that some parameters may have no gradient.

        That is so where a step on pictures leaves out the mapper of sounds, one on texts all mappers, and where an
        encoder is frozen on the way.
        """
        strategy = self.trainer.strategy
        always = 0 if self._reads_text_alone else 1  # mappers that no step can leave out
        partly = len(self.model.mappers) > always or any(self.model.encoder(name).tuned for name in self.model.encoders)
        if isinstance(strategy, DDPStrategy) and partly:
            strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def on_fit_start(self) -> None:
        """Refuses what could not be saved; takes the first tensors from a saved model, unless a run is resumed."""
        checkpoints.describe(self.model)
        if self.start_from is not None and self.trainer.ckpt_path is None:
            warm_start(self.model, self.start_from)
        data = attached_data(self.trainer)
        examples = [] if data is None else data.rows["train"].examples
        fit_input_ranges(self.model, examples, skip_bad=data is not None and data.on_bad == "skip")
        if self.compiles:
            self.model.decoder.compile_layers()
        if self.recomputes:
            self.model.decoder.recompute_layers()

    def on_train_start(self) -> None:
        """The first step of a run that is resumed with another number of steps has the rate of its new schedule."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(plan := config.scheduler, torch.optim.lr_scheduler.LambdaLR):
                rates = zip(plan.optimizer.param_groups, plan.base_lrs, plan.lr_lambdas, strict=True)
                for group, rate, factor in rates:
                    group["lr"] = rate * factor(plan.last_epoch)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if self.modality_dropout:
            batch = drop_modalities(batch, self.modality_dropout, self.model.reads_text)
        loss = self.model.text_loss(batch)
        mean = loss.mean()
        self.log("train/loss", mean.detach(), prog_bar=True, batch_size=len(batch))
        return mean

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch)

    def predict_step(self, batch: Batch, index: int) -> list[dict[str, Any]]:
        """For each input its id, text, references (if any), and all candidates with their scores."""
        if batch.questions:
            opened = self.model.decoder.append_prompts(self.model.prefill(batch), prompts := self.model.prompts(batch))
            answers = self._answer(opened, prompts, self.model.questions(batch))
            return [
                {"id": i, "questions": asked, "answers": said, "references": texts}
                for i, asked, said, texts in zip(batch.ids, batch.questions, answers, batch.targets, strict=True)
            ]
        found = self.model.generate(batch, self.options)
        return [
            {"id": i, "prediction": c[0].text, "references": texts, "candidates": [asdict(text) for text in c]}
            for i, texts, c in zip(batch.ids, batch.targets, found, strict=True)
        ]

    def on_validation_epoch_start(self) -> None:
        self.rows = []  # an evaluation that was broken off leaves some
        self._training_state = rng_state()

    def on_test_epoch_start(self) -> None:
        self.rows = []

    def on_validation_epoch_end(self) -> None:
        self._report("val")
        restore_rng_state(self._training_state)  # what is trained does not depend on how often it is looked at

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _evaluate(self, batch: Batch) -> None:
        """Each input's loss with its own prefix and with a neighbour's, and the text that is written for it."""
        decoder, count = self.model.decoder, len(batch)
        prompts, questions = self.model.prompts(batch), self.model.questions(batch)
        state = self.model.prefill(batch)
        own = decoder.text_loss(state, prompts, batch.targets, questions)
        other = None
        if count > 1:
            turned = self.model.prompts(replace(batch, contexts=[batch.contexts[-1], *batch.contexts[:-1]]))
            other = decoder.text_loss(state.roll(1), turned, batch.targets, questions)
        opened = decoder.append_prompts(state, prompts)
        told = [bool(context) and self.model.reads_text for context in batch.contexts]
        groups = ["+".join([*batch.inputs, *(["text"] if text else [])]) for text in told]
        media = batch.sources or [""] * count
        if batch.questions:
            self._add_answers(batch, groups, media, own, other, self._answer(opened, prompts, questions))
            return
        mine, theirs = own.by_input(count), None if other is None else other.by_input(count).nll.tolist()
        closed = decoder.append_questions(opened, prompts, [""] * count)
        texts = [candidates[0].text for candidates in decoder.generate_from(closed, self.options)]
        odds: list[float] | list[None] = [None] * count
        if self.answers is not None:
            weights = decoder.score_choices(opened, prompts, self.answers)
            odds = (weights[:, 0] - weights[:, 1]).tolist()
        columns = (batch.ids, groups, media, texts, batch.targets, mine.nll.tolist(), theirs or [None] * count)
        for values in zip(*columns, mine.tokens.tolist(), odds, strict=True):
            self.rows.append(ValidationRow(*values))

    def _answer(self, opened: State, prompts: list[str], questions: list[list[str]]) -> list[list[str]]:
        """What is answered to each question of each input."""
        decoder, found = self.model.decoder, [list[str]() for _ in questions]
        for number in range(max(map(len, questions))):
            asked = [row[min(number, len(row) - 1)] if row else "" for row in questions]
            written = decoder.generate_from(decoder.append_questions(opened, prompts, asked), self.options)
            for texts, row, candidates in zip(found, questions, written, strict=True):
                texts += [candidates[0].text] if number < len(row) else []
        return found

    def _add_answers(
        self,
        batch: Batch,
        groups: list[str],
        media: list[str],
        own: TextLoss,
        other: TextLoss | None,
        texts: list[list[str]],
    ) -> None:
        """A row of the report for each question, in the order of the losses."""
        theirs = iter([None] * len(own.nll) if other is None else other.nll.tolist())
        mine, tokens = iter(own.nll.tolist()), iter(own.tokens.tolist())
        for b, name in enumerate(batch.ids):
            for number, question in enumerate(batch.questions[b]):
                at = (f"{name} [{number + 1}] {question}", groups[b], media[b], texts[b][number])
                self.rows.append(ValidationRow(*at, [batch.targets[b][number]], next(mine), next(theirs), next(tokens)))

    def _report(self, stage: str) -> None:
        report = Report.gather(self.rows, self.answers[0] if self.answers else None)
        self.rows = []
        for name, value in report.figures().items():  # the same in every process
            self.log(f"{stage}/{name}", value, prog_bar=name in ("loss", "cider_d", "exact_match", "eer"))
        if self.trainer.sanity_checking:
            return
        report.write(self.trainer, stage)
        if self.trainer.is_global_zero:
            log.info("\n%s: step %d\n%s\n", stage, self.trainer.global_step, report.table(3 if stage == "val" else 8))
            for warning in report.warnings():
                log.warning(warning)

    def configure_optimizers(self) -> Any:
        params = self.model.trained_parameters()
        optimizer = self.optimizer(params)
        use_fused_optimizer(optimizer)
        if self.schedule == "constant" and not self.warmup:
            return optimizer
        total = self.trainer.estimated_stepping_batches
        if total == float("inf") and (self.schedule != "constant" or self.warmup < 1):
            raise InputError(
                f"model.schedule {self.schedule}, model.warmup {self.warmup}: this run has no last step to count back "
                "from; give trainer.max_epochs or trainer.max_steps, or a constant schedule and a warmup in steps"
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(self.schedule, self.warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what was trained, what it was trained with, and the random state."""
        checkpoint["state_dict"] = {f"model.{name}": tensor for name, tensor in self.model.trained.items()}
        checkpoint["mmprefix"] = checkpoints.describe(self.model)
        checkpoint["random_states"] = gather_rng_states()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses tensors or frozen parts that are not this model's."""
        file = str(self.trainer.ckpt_path)
        checkpoints.require_ours(checkpoint, file)
        checkpoints.require_same_parts(self.model, checkpoint["mmprefix"], file)
        tensors = {name.removeprefix("model."): t for name, t in checkpoint["state_dict"].items()}
        checkpoints.load_trained(self.model, tensors, file)
        if self.trainer.state.fn == TrainerFn.FITTING:
            states = checkpoint["random_states"]
            self._resumed = states[min(self.trainer.global_rank, len(states) - 1)]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self._resumed is not None:  # not before: set-up and sanity checks have drawn from the generators meanwhile
            restore_rng_state(self._resumed)
            self._resumed = None
