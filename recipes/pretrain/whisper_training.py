"""Training of a small Whisper: its decoder writes the text, and a head on its encoder finds letters or words.

CTC beside attention: Watanabe et al. 2017, https://arxiv.org/abs/1609.06773. Weights are averaged over the last steps.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmprefix.recipes.pretrain import whisper_tokens
from mmprefix.recipes.pretrain.loop import AveragedWeights, LogLines, Losses, train
from mmprefix.recipes.pretrain.whisper_windows import Filling, SpeechClip, fill

log = logging.getLogger("pretrain_whisper")

RATE = 16000
SEPARATOR = " , "  # between slot values


@dataclass(frozen=True)
class WhisperPlan:
    """Training settings; the learning rate warms up for a tenth of the steps and falls along a cosine."""

    steps: int = 4000
    batch_size: int = 8  # windows
    lr: float = 1.5e-3
    weight_decay: float = 1e-2
    smoothing: float = 0.1  # label smoothing of the decoder's targets
    head: str = "letters"  # target of the head on the encoder: letters in order (CTC), or words in any order
    head_weight: float = 1.0  # of that loss beside the decoder's
    garbled: float = 0.2  # share of the text's tokens that the decoder reads wrong
    easy: float = 0.5  # share of the steps in which windows get harder, from one plain clip on
    average: float = 0.998  # share of the averaged weights that a step keeps
    seed: int = 0


@dataclass(frozen=True)
class SmallWhisper:
    """Network with its feature extractor and its tokenizer."""

    network: WhisperForConditionalGeneration
    extractor: WhisperFeatureExtractor
    tokenizer: WhisperTokenizer

    @property
    def columns(self) -> int:
        """Columns of log-mel in a window."""
        return 2 * self.network.config.max_source_positions

    def save(self, folder: Path) -> None:
        """Write all three to ``folder``, which holds a whole model at any time but for an instant."""
        new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
        for part in (self.network, self.extractor, self.tokenizer):
            part.save_pretrained(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Tensor], at_once: int = 16) -> list[str]:
        """Transcripts of ``waves`` (S,), by greedy search; only the first window of each is read."""
        texts: list[str] = []
        size = self.columns * self.extractor.hop_length
        for first in range(0, len(waves), at_once):
            batch = [wave.numpy() for wave in waves[first : first + at_once]]
            inputs = self.extractor(batch, sampling_rate=RATE, max_length=size, return_tensors="pt")
            ids: Any = self.network.generate(inputs.input_features)
            texts += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


@dataclass(frozen=True)
class WindowBatch:
    """Windows (B M F), the decoder's inputs and targets (B N), and the text of each window."""

    windows: Tensor
    read: Tensor
    judged: Tensor
    texts: list[str]


@dataclass(frozen=True)
class WindowSampler:
    """Sampler of batches of random windows."""

    clips: Sequence[SpeechClip]  # by length
    before: Sequence[str]  # candidates for a previous text
    filling: Filling
    garbled: float
    model: SmallWhisper

    def __call__(self, size: int, share: float = 1.0) -> WindowBatch:
        """Draw ``size`` windows, with ``share`` of the full difficulty."""
        windows, clip_texts = fill(self.clips, self.filling.eased(share), size)
        texts = [" ".join(parts) for parts in clip_texts]
        tokenizer, most = self.model.tokenizer, self.model.network.config.max_target_positions // 2
        rows = [
            whisper_tokens.window_tokens(tokenizer, whisper_tokens.previous(tokenizer, self.before, most), text or None)
            for text in texts
        ]
        read, judged = whisper_tokens.batch(rows, whisper_tokens.end_id(tokenizer))
        read = whisper_tokens.garble(read, judged, self.garbled, whisper_tokens.end_id(tokenizer))
        return WindowBatch(windows, read, judged, texts)


class Speller(nn.Module):
    """CTC head: two letters for each of the encoder's frames, which are few for fast speech."""

    def __init__(self, width: int, texts: Iterable[str]) -> None:
        super().__init__()
        letters = sorted(set("".join(texts)) | {" "})
        self.codes = {letter: code + 1 for code, letter in enumerate(letters)}  # 0 is the blank
        self.out = nn.Linear(width, 2 * (len(letters) + 1))

    def forward(self, frames: Tensor, texts: Sequence[str]) -> Tensor:
        """Mean loss of a letter of ``texts`` in frames (B T D)."""
        log_probs = self.out(frames).unflatten(2, (2, -1)).flatten(1, 2).log_softmax(2).transpose(0, 1)  # (2T B C)
        codes = [torch.tensor([self.codes[letter] for letter in text], dtype=torch.long) for text in texts]
        lengths = torch.tensor([len(some) for some in codes])
        sizes = torch.full_like(lengths, len(log_probs))
        losses = F.ctc_loss(log_probs, pad_sequence(codes, True), sizes, lengths, reduction="sum", zero_infinity=True)
        return losses / lengths.sum().clamp(min=1)


class Spotter(nn.Module):
    """Head for texts whose order is not that of the speech: which words occur anywhere in a window.

    A word's score is the log of its mean odds over the frames, so that one frame is enough to find it.
    """

    def __init__(self, width: int, texts: Iterable[str]) -> None:
        super().__init__()
        words = sorted({word for text in texts for word in text.split()} - {SEPARATOR.strip()})
        self.places = {word: index for index, word in enumerate(words)}
        self.out = nn.Linear(width, len(words))

    def forward(self, frames: Tensor, texts: Sequence[str]) -> Tensor:
        """Loss of all words in frames (B T D), for each word that occurs in ``texts``."""
        scores = self.out(frames).logsumexp(1) - math.log(frames.shape[1])  # (B W)
        occurs = torch.zeros_like(scores)
        for row, text in zip(occurs, texts, strict=True):
            row[[self.places[word] for word in text.split() if word in self.places]] = 1
        return F.binary_cross_entropy_with_logits(scores, occurs, reduction="sum") / occurs.sum().clamp(min=1)


HEADS = {"letters": Speller, "words": Spotter}


def encode(encoder: WhisperEncoder, windows: Tensor) -> Tensor:
    """Frames (B F/2 D) of log-mel (B M F), a window or less; the encoder's own `forward` takes whole windows only."""
    frames = F.gelu(encoder.conv2(F.gelu(encoder.conv1(windows)))).transpose(1, 2)
    frames = F.dropout(frames + encoder.embed_positions.weight[: frames.shape[1]], encoder.dropout, encoder.training)
    for layer in encoder.layers:
        frames = layer(frames, None)
    return encoder.layer_norm(frames)


def losses(model: SmallWhisper, head: nn.Module, batch: WindowBatch, smoothing: float) -> tuple[Tensor, Tensor]:
    """Mean loss of the decoder's targets, a token, and the loss of ``head`` on the encoder's frames."""
    network = model.network
    frames = encode(network.model.encoder, batch.windows)
    hidden = network.model.decoder(input_ids=batch.read, encoder_hidden_states=frames).last_hidden_state
    decoder_loss = F.cross_entropy(
        network.proj_out(hidden).flatten(0, 1),
        batch.judged.flatten(),
        ignore_index=whisper_tokens.IGNORED,
        label_smoothing=smoothing,
    )
    return decoder_loss, head(frames, batch.texts)


def fit(
    model: SmallWhisper, sampler: WindowSampler, plan: WhisperPlan, after_step: Callable[[SmallWhisper, int], None]
) -> None:
    """Train ``model.network`` in place; it ends as the average of its weights.

    ``after_step`` is called with that average, and with the number of steps done, after each step.
    """
    network = model.network
    head = HEADS[plan.head](network.config.d_model, [clip.text for clip in sampler.clips])
    averaged = AveragedWeights(network, plan.average, updates=1)
    average = SmallWhisper(averaged.average, model.extractor, model.tokenizer)
    both = nn.ModuleList([network, head])

    def loss(batch: WindowBatch) -> Losses:
        decoder_loss, head_loss = losses(model, head, batch, plan.smoothing)
        total = decoder_loss + plan.head_weight * head_loss
        return {"loss": total, "decoder": decoder_loss.detach(), "head": head_loss.detach()}

    def batches() -> Iterator[WindowBatch]:
        for step in range(1, plan.steps + 1):
            yield sampler(plan.batch_size, min(1.0, step / (plan.easy * plan.steps + 1)))

    snapshots = LambdaCallback(on_train_batch_end=lambda trainer, *_: after_step(average, trainer.global_step))
    train(
        both,
        loss,
        batches(),
        steps=plan.steps,
        schedule=_schedule(both, plan),
        max_norm=1.0,
        callbacks=[averaged, LogLines(log, _HundredMeans(plan.steps)), snapshots],
    )


def _schedule(model: nn.Module, plan: WhisperPlan) -> torch.optim.lr_scheduler.OneCycleLR:
    """One cycle over AdamW, with weight decay of matrices alone."""
    learnt = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in learnt if value.dim() > 1], "weight_decay": plan.weight_decay},
        {"params": [value for value in learnt if value.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, plan.lr, betas=(0.9, 0.98))
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, plan.steps + 1, pct_start=0.1)


class _HundredMeans:
    """Log line every hundred steps: the mean losses of these steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.recent = steps, torch.zeros(2)

    def __call__(self, step: int, losses: Losses, seconds: float) -> str | None:
        self.recent += torch.stack([losses["decoder"], losses["head"]]) / 100
        if (step + 1) % 100:
            return None
        means = f"decoder {self.recent[0]:.3f}  head {self.recent[1]:.3f}"
        self.recent.zero_()
        return f"step {step + 1}/{self.steps}  {means}  {seconds:.0f} s"
