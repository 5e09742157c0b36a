"""Few shots across the senses: heads whose training samples are pictures, sounds or texts in one aligned space.

Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models (Lin et al.),
https://arxiv.org/abs/2301.06267. Everything works on features: rows of tensors go in, heads come out.
"""

from mmprefix.training.few_shots.grid import Fitted, Grid, Setting, fit, fit_best
from mmprefix.training.few_shots.heads import (
    AdapterHeads,
    Heads,
    LinearHeads,
    PartialHeads,
    random_start,
    wise_ft,
    zero_shot_start,
)
from mmprefix.training.few_shots.imagenet_esc import imagenet_esc
from mmprefix.training.few_shots.samples import Run, Shots, draw_shots, joined

__all__ = [
    "AdapterHeads",
    "Fitted",
    "Grid",
    "Heads",
    "LinearHeads",
    "PartialHeads",
    "Run",
    "Setting",
    "Shots",
    "draw_shots",
    "fit",
    "fit_best",
    "imagenet_esc",
    "joined",
    "random_start",
    "wise_ft",
    "zero_shot_start",
]
