"""Models to look into: the embedded one, and tiny ones with every kind of mapper and prefix."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmprefix
from mmprefix import Predictor
from tiny import models as tiny_models


@pytest.fixture(scope="package")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.frozen_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="package")
def tiny_model(parts: dict[str, Path]) -> Predictor:
    """Pictures through a Resampler, sounds through an MLP."""
    return Predictor(tiny_models.build_model(parts, "image", "audio"))


@pytest.fixture(scope="package")
def world_model() -> Predictor:
    return mmprefix.load(device="cpu")
