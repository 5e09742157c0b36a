"""Self-critical training: the model writes, CIDEr-D judges, and what is better than its other texts becomes likelier.

Rennie et al. 2017 (https://arxiv.org/abs/1612.00563), with the mean reward of the other samples of an input as
baseline (Luo 2020, https://arxiv.org/abs/2003.09971) in the place of the greedy text's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.metrics.cider_reward import CiderReward
from mmprefix.model import PrefixLM
from mmprefix.types import Batch


@dataclass(frozen=True)
class SelfCritical:
    """Options of self-critical training, which begins where training on the captions ended (``start_from``).

    Args:
        samples: texts that are drawn for each input, at least two.
        max_new_tokens: most tokens of a text.
        temperature: of the draws; the loss is that of the texts at 1.
    """

    samples: int = 5
    max_new_tokens: int = 24
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"model.self_critical.samples {self.samples}: draw at least 2, which are compared")
        try:
            _ = self.draws
        except InputError as error:
            raise InputError(f"model.self_critical: {str(error).removeprefix('generate: ')}") from error

    @property
    def draws(self) -> GenerateOptions:
        """Options of the search that draws the texts."""
        return GenerateOptions(
            max_new_tokens=self.max_new_tokens, sample=True, num_return=self.samples, temperature=self.temperature
        )

    def loss(self, model: PrefixLM, batch: Batch, reward: CiderReward) -> tuple[Tensor, float]:
        """Loss whose gradient raises the expected reward, and the mean reward of the texts that were drawn."""
        if any(batch.questions):
            raise InputError("model.self_critical: trains on captions, not on answers to questions; leave it out")
        decoder = model.decoder
        if not isinstance(decoder, ComposedDecoder):
            raise InputError(f"model.self_critical: a {type(decoder).__name__} draws no tokens; leave it out")
        state = decoder.append(model.prefill(batch), model.prompts(batch))
        drawn = [[ids for ids, _ in row] for row in decoder.search_tokens(state, self.draws, decoder.stop_ids())]
        texts = [[decoder.codec.decode(ids) for ids in row] for row in drawn]
        rewards = torch.tensor([[reward(t, own) for t in row] for row, own in zip(texts, batch.targets, strict=True)])
        losses = decoder.token_loss(state, drawn)  # of the very tokens: one text may be written in several ways
        weights = advantages(rewards).flatten().to(losses.nll)
        return (weights * losses.nll).sum() / losses.tokens.sum(), float(rewards.mean())


def advantages(rewards: Tensor) -> Tensor:
    """Reward (B S) of each text above the mean of the other texts of its input, (B S)."""
    others = rewards.shape[1] - 1
    return (rewards * (others + 1) - rewards.sum(1, keepdim=True)) / others


def caption_reward(references: Sequence[Sequence[str]]) -> CiderReward:
    """Reward with the document frequencies of the training captions; InputError where there are too few."""
    known = [texts for texts in references if texts]
    if len(known) < 2:
        raise InputError("model.self_critical: needs training rows with captions, in a manifest, to count words in")
    return CiderReward(known)
