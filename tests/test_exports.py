"""Public names: every package's exports are importable by name, and other names raise AttributeError."""

from __future__ import annotations

import importlib

import pytest

import mmprefix
from mmprefix.parts import class_path

PACKAGES = ["data", "decoders", "features", "inference", "inspection", "media", "metrics", "slu", "training", "world"]


@pytest.mark.parametrize("name", ["mmprefix", *(f"mmprefix.{package}" for package in PACKAGES)])
def test_every_export_is_importable(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__
    for export in package.__all__:
        assert getattr(package, export) is not None, export
    with pytest.raises(AttributeError, match=f"module {name!r} has no attribute 'nothing'"):
        _ = package.nothing


def test_an_exported_class_is_named_by_its_package() -> None:
    assert class_path(mmprefix.Predictor) == "mmprefix.inference.Predictor"
    assert class_path(importlib.import_module("mmprefix.mappers.mlp").MLP) == "mmprefix.mappers.mlp.MLP"


def test_a_notebook_is_shown_the_public_names_alone() -> None:
    importlib.import_module("mmprefix.cli.main")  # what else is imported is no public name
    assert dir(mmprefix) == sorted(mmprefix.__all__)
    assert mmprefix.__version__
