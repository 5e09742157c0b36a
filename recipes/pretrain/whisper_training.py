"""The training loop of a small Whisper: its decoder writes what was said, its encoder spells it by CTC.

CTC beside attention: Watanabe et al. 2017, https://arxiv.org/abs/1609.06773. Weights are averaged over the last steps.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmprefix.recipes.pretrain import whisper_tokens as speech_tokens
from mmprefix.recipes.pretrain.whisper_windows import Clip, Filling, fill

log = logging.getLogger("pretrain_whisper")

RATE = 16000
SEPARATOR = " , "  # between slot values


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train; the learning rate warms up for a tenth of the steps and falls along a cosine."""

    steps: int = 4000
    batch_size: int = 8  # windows
    lr: float = 1.5e-3
    weight_decay: float = 1e-2
    smoothing: float = 0.1  # share of each target that all tokens divide
    head: str = "letters"  # what the encoder learns to find beside: letters in order (CTC), or words in any order
    head_weight: float = 1.0  # of that loss beside the decoder's
    garbled: float = 0.2  # share of the text's tokens that the decoder reads wrong
    easy: float = 0.5  # share of the steps in which windows get harder, from one plain clip on
    average: float = 0.998  # how much of the averaged weights a step keeps
    seed: int = 0


@dataclass(frozen=True)
class Whisper:
    """A network and what stands before and after it."""

    network: WhisperForConditionalGeneration
    extractor: WhisperFeatureExtractor
    tokenizer: WhisperTokenizer

    @property
    def columns(self) -> int:
        """Columns of log-mel in a window."""
        return 2 * self.network.config.max_source_positions

    def save(self, folder: Path) -> None:
        """Writes all three to ``folder``, in whose place a whole model is found at any time but for an instant."""
        new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
        for part in (self.network, self.extractor, self.tokenizer):
            part.save_pretrained(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Tensor], at_once: int = 16) -> list[str]:
        """What is said in each of ``waves`` (S,), by greedy search; only one window of each is heard."""
        texts: list[str] = []
        size = self.columns * self.extractor.hop_length
        for first in range(0, len(waves), at_once):
            some = [wave.numpy() for wave in waves[first : first + at_once]]
            heard = self.extractor(some, sampling_rate=RATE, max_length=size, return_tensors="pt")
            found: Any = self.network.generate(heard.input_features)
            texts += self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [text.strip() for text in texts]


@dataclass(frozen=True)
class Batch:
    """Windows (B M F), what the decoder reads and should say (B N), and the text of each window."""

    windows: Tensor
    read: Tensor
    judged: Tensor
    texts: list[str]


@dataclass(frozen=True)
class Draw:
    """Batches of random windows."""

    clips: Sequence[Clip]  # by length
    before: Sequence[str]  # what a previous text may be
    filling: Filling
    garbled: float
    model: Whisper

    def __call__(self, size: int, share: float = 1.0) -> Batch:
        """A batch of ``size`` windows, made easier by ``share``."""
        windows, heard = fill(self.clips, self.filling.eased(share), size)
        texts = [" ".join(found) for found in heard]
        tokenizer, most = self.model.tokenizer, self.model.network.config.max_target_positions // 2
        rows = [
            speech_tokens.window_tokens(tokenizer, speech_tokens.previous(tokenizer, self.before, most), text or None)
            for text in texts
        ]
        read, judged = speech_tokens.batch(rows, speech_tokens.end_id(tokenizer))
        read = speech_tokens.garble(read, judged, self.garbled, speech_tokens.end_id(tokenizer))
        return Batch(windows, read, judged, texts)


class Speller(nn.Module):
    """The CTC head: two letters for each of the encoder's frames, which are few for fast speech."""

    def __init__(self, width: int, texts: Iterable[str]) -> None:
        super().__init__()
        letters = sorted(set("".join(texts)) | {" "})
        self.codes = {letter: place + 1 for place, letter in enumerate(letters)}  # 0 is the blank
        self.out = nn.Linear(width, 2 * (len(letters) + 1))

    def forward(self, frames: Tensor, texts: Sequence[str]) -> Tensor:
        """Mean loss of a letter of ``texts`` in frames (B T D)."""
        chances = self.out(frames).unflatten(2, (2, -1)).flatten(1, 2).log_softmax(2).transpose(0, 1)  # (2T B C)
        codes = [torch.tensor([self.codes[letter] for letter in text], dtype=torch.long) for text in texts]
        lengths = torch.tensor([len(some) for some in codes])
        sizes = torch.full_like(lengths, len(chances))
        losses = F.ctc_loss(chances, pad_sequence(codes, True), sizes, lengths, reduction="sum", zero_infinity=True)
        return losses / lengths.sum().clamp(min=1)


class Spotter(nn.Module):
    """The head for texts whose order is not that of the speech: which words occur anywhere in a window.

    A word's score is the log of its mean odds over the frames, so that one frame is enough to find it.
    """

    def __init__(self, width: int, texts: Iterable[str]) -> None:
        super().__init__()
        words = sorted({word for text in texts for word in text.split()} - {SEPARATOR.strip()})
        self.places = {word: place for place, word in enumerate(words)}
        self.out = nn.Linear(width, len(words))

    def forward(self, frames: Tensor, texts: Sequence[str]) -> Tensor:
        """Loss of all words in frames (B T D), for each word that is said in ``texts``."""
        scores = self.out(frames).logsumexp(1) - math.log(frames.shape[1])  # (B W)
        said = torch.zeros_like(scores)
        for row, text in zip(said, texts, strict=True):
            row[[self.places[word] for word in text.split() if word in self.places]] = 1
        return F.binary_cross_entropy_with_logits(scores, said, reduction="sum") / said.sum().clamp(min=1)


HEADS = {"letters": Speller, "words": Spotter}


def hear(encoder: WhisperEncoder, windows: Tensor) -> Tensor:
    """What the encoder finds (B F/2 D) in log-mel (B M F) of a window or less; its own `forward` takes no less."""
    frames = F.gelu(encoder.conv2(F.gelu(encoder.conv1(windows)))).transpose(1, 2)
    frames = F.dropout(frames + encoder.embed_positions.weight[: frames.shape[1]], encoder.dropout, encoder.training)
    for layer in encoder.layers:
        frames = layer(frames, None)
    return encoder.layer_norm(frames)


def losses(model: Whisper, head: nn.Module, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
    """Mean loss of a token that the decoder should say, and of what ``head`` should find in the encoder."""
    network = model.network
    frames = hear(network.model.encoder, batch.windows)
    hidden = network.model.decoder(input_ids=batch.read, encoder_hidden_states=frames).last_hidden_state
    said = F.cross_entropy(
        network.proj_out(hidden).flatten(0, 1),
        batch.judged.flatten(),
        ignore_index=speech_tokens.IGNORED,
        label_smoothing=smoothing,
    )
    return said, head(frames, batch.texts)


def fit(model: Whisper, draw: Draw, plan: Plan, look: Callable[[Whisper, int], None]) -> None:
    """Trains ``model.network`` in place; it ends as the average of its weights, which ``look`` sees after each step."""
    network = model.network.train()
    head = HEADS[plan.head](network.config.d_model, [clip.text for clip in draw.clips])
    average = Whisper(copy.deepcopy(network).eval(), model.extractor, model.tokenizer)
    learnt = [value for value in (*network.parameters(), *head.parameters()) if value.requires_grad]
    groups = [
        {"params": [value for value in learnt if value.dim() > 1], "weight_decay": plan.weight_decay},
        {"params": [value for value in learnt if value.dim() < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, plan.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.lr, plan.steps + 1, pct_start=0.1)
    began, recent = time.monotonic(), torch.zeros(2)
    for step in range(1, plan.steps + 1):
        share = min(1.0, step / (plan.easy * plan.steps + 1))
        said, found = losses(model, head, draw(plan.batch_size, share), plan.smoothing)
        optimiser.zero_grad()
        (said + plan.head_weight * found).backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
        _follow(average.network, network, min(plan.average, (1 + step) / (10 + step)))
        recent += torch.stack([said, found]).detach() / 100
        if step % 100 == 0:
            means = f"decoder {recent[0]:.3f}  head {recent[1]:.3f}"
            log.info("step %d/%d  %s  %.0f s", step, plan.steps, means, time.monotonic() - began)
            recent.zero_()
        look(average, step)
    network.load_state_dict(average.network.state_dict())
    network.eval()


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    for mean, new in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(new, 1 - keep)
