"""Saved models of the two branches and files to use them on, for the tests of ``Predictor``."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmprefix
from mmprefix import Predictor
from tiny import models as tiny_models


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.frozen_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def saved(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model directories: for sounds (audio), for pictures (image), for both."""
    folder = tmp_path_factory.mktemp("saved")
    names = {"audio": ("audio",), "image": ("image",), "both": ("image", "audio")}
    return {kind: tiny_models.save_model(folder / kind, parts, *branches) for kind, branches in names.items()}


@pytest.fixture(scope="module")
def model(saved: dict[str, Path]) -> Predictor:
    return mmprefix.load(saved["both"], device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny_models.media_files(tmp_path_factory.mktemp("media"))
