"""Model that a command line names: a saved one, or the untrained parts of a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.cli.class_names import check_class_names, with_class_paths
from mmprefix.errors import InputError
from mmprefix.inference.model_folder import is_recipe
from mmprefix.trust.plain_yaml import read_yaml

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor


def open_model(args: argparse.Namespace) -> Predictor:
    """Load the model that the options of ``mmprefix.cli.model_inputs.add_model`` name."""
    from transformers.utils import logging

    from mmprefix.inference.loading import load, open_users
    from mmprefix.inference.untrained import load_recipe

    parts = dict(_pair(text) for text in args.part)
    options: dict[str, Any] = {"device": args.device, "dtype": args.dtype, "parts": parts, "allow": args.allow}
    logging.disable_progress_bar()
    users = getattr(args, "users", None)
    if not is_recipe(args.model):
        return load(args.model, **options, users=users)
    file = Path(args.model).expanduser()
    check_class_names([file])
    store = None if users is None else open_users(users)
    model = load_recipe(with_class_paths(read_yaml(file)), file, **options)
    model.users = store
    return model


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise InputError(f"--part {text}: expected NAME=PLACE, such as decoder=models/gpt2")
    return name, folder
