"""Parts in a dry run: their sizes without weights, and without random ones, which take seconds."""

from __future__ import annotations

import open_clip
import torch
from torch import nn

from mmprefix.weights.dry_run import sizes_only, without_weights

SIZES = {"embed_dim": 16, "text_cfg": {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}}
PICTURES = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}


def test_no_random_weights_are_drawn() -> None:
    """Layers that draw theirs uniformly or normally are zero, and trained like any other; random numbers stay."""
    before = torch.get_rng_state()
    with without_weights():
        assert sizes_only()
        layers = [nn.Linear(9, 7), nn.Embedding(5, 3), nn.Conv2d(2, 4, 3)]
    assert not sizes_only()
    assert torch.equal(torch.get_rng_state(), before)
    for parameter in (p for layer in layers for p in layer.parameters()):
        assert not parameter.any()
        assert parameter.requires_grad
    assert [tuple(p.shape) for p in layers[0].parameters()] == [(7, 9), (7,)]
    assert nn.Linear(9, 7).weight.all()


def test_the_sizes_are_those_with_weights() -> None:
    make = lambda: open_clip.CLIP(vision_cfg=PICTURES, **SIZES)  # type: ignore[arg-type]  # noqa: E731
    with without_weights():
        bare = make()
    whole = make()
    assert {name: p.shape for name, p in bare.named_parameters()} == {
        name: p.shape for name, p in whole.named_parameters()
    }
