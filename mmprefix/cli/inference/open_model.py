"""Model that a command line names: a saved one, the untrained parts of a recipe, or a decoder alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.cli.class_names import check_class_names, with_class_paths
from mmprefix.errors import InputError
from mmprefix.inference.model_folder import is_recipe
from mmprefix.trust.plain_yaml import read_yaml
from mmprefix.weights.source import RECIPE, resolve_weights

if TYPE_CHECKING:
    from mmprefix.decoders.composed import ComposedDecoder
    from mmprefix.inference.predictor import Predictor


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option for the device."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options for how a model is loaded, which ``open_model`` reads: device, precision, modules, parts."""
    add_device(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="precision of the frozen parts")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE", help="module whose classes the model may name"
    )
    parser.add_argument(
        "--part", action="append", default=[], metavar="NAME=PLACE", help="new folder of a frozen part that has moved"
    )


def open_model(args: argparse.Namespace) -> Predictor:
    """Load the model that the options of ``mmprefix.cli.model_inputs.add_model`` name."""
    from transformers.utils import logging

    from mmprefix.inference.loading import load, open_beside
    from mmprefix.inference.untrained import load_recipe

    parts = dict(_pair(text) for text in args.part)
    options: dict[str, Any] = {"device": args.device, "dtype": args.dtype, "parts": parts, "allow": args.allow}
    logging.disable_progress_bar()
    users, neighbours = getattr(args, "users", None), getattr(args, "neighbours", None)
    if not is_recipe(args.model):
        return load(args.model, **options, users=users, neighbours=neighbours)
    file = Path(args.model).expanduser()
    check_class_names([file])
    return load_recipe(with_class_paths(read_yaml(file)), file, open_beside(users, neighbours), **options)


def open_decoder(args: argparse.Namespace) -> ComposedDecoder:
    """Decoder of the model that the options name; where it is no model of ours, the language model that it is."""
    from mmprefix.decoders.composed import ComposedDecoder

    if is_recipe(args.model) or (resolve_weights(args.model) / RECIPE).is_file():
        decoder = open_model(args).model.decoder
        if not isinstance(decoder, ComposedDecoder):
            raise InputError(f"{args.model}: its decoder is no language model; name one by itself")
        return decoder
    from transformers.utils import logging

    from mmprefix.decoders.causal import CausalDecoder
    from mmprefix.weights.devices import best_device, default_dtype, require_device

    logging.disable_progress_bar()
    device = require_device(args.device or best_device())
    return CausalDecoder(args.model).to(device, default_dtype(args.dtype, device))


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise InputError(f"--part {text}: expected NAME=PLACE, such as decoder=models/gpt2")
    return name, folder
