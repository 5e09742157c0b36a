"""Trained mapper of the embedded world: it needs no name, and captions scenes that it was never trained on."""

from __future__ import annotations

from itertools import islice

import pytest

import mmprefix
from mmprefix import world
from mmprefix.world.audio import RATE
from mmprefix.world.scenes import Medium


@pytest.mark.parametrize("medium", ["image", "audio"])
def test_it_writes_a_true_caption_of_most_held_out_scenes(medium: Medium) -> None:
    model = mmprefix.load(device="cpu")
    scenes = list(islice(world.sample(medium, 41, new=True), 40))  # the run's own test has seed 2
    inputs = [
        world.draw(scene) if isinstance(scene, world.Picture) else mmprefix.Waveform(world.render(scene), RATE)
        for scene in scenes
    ]
    right = [text in world.captions(scene) for text, scene in zip(model(inputs), scenes, strict=True)]
    assert sum(right) >= 30
