"""The embedded world's model, and inputs with their right answers."""

from __future__ import annotations

import io
from itertools import islice

import pytest
import soundfile

import mmprefix
from mmprefix import Predictor, world
from mmprefix.serving.calls import ServedModel
from mmprefix.world.audio import RATE
from tiny.service import Sample


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return mmprefix.load(device="cpu")


@pytest.fixture(scope="session")
def served(predictor: Predictor) -> list[ServedModel]:
    return [ServedModel("world", predictor)]


@pytest.fixture(scope="session")
def samples(predictor: Predictor) -> list[Sample]:
    """Six pictures, then six sounds."""
    files: list[tuple[str, bytes]] = []
    for n, scene in enumerate(islice(world.sample("image", 7, new=False), 6)):
        stream = io.BytesIO()
        assert isinstance(scene, world.Picture)
        world.draw(scene).save(stream, "PNG")
        files.append((f"{n}.png", stream.getvalue()))
    for n, scene in enumerate(islice(world.sample("audio", 7, new=False), 6)):
        stream = io.BytesIO()
        assert isinstance(scene, world.Sound)
        soundfile.write(stream, world.render(scene), RATE, format="WAV")
        files.append((f"{n}.wav", stream.getvalue()))
    texts = [predictor(content) for _, content in files]
    assert len(set(texts)) > 8  # answers tell inputs apart
    return [Sample(name, content, text) for (name, content), text in zip(files, texts, strict=True)]
