"""``mmprefix import``: convert the released checkpoints of ClipCap and Prefix-AAC to saved models.

Sizes are read off the tensors. Facts that a file does not hold (the encoder of its features, its training data, the
vocabulary of its head) are required as options, never guessed.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.model import PrefixLM

log = logging.getLogger(__name__)

GPT2 = "openai-community/gpt2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mmprefix import`` to ``parser``."""
    systems = parser.add_subparsers(dest="system", metavar="SYSTEM", required=True)
    clipcap = systems.add_parser("clipcap", help="a checkpoint of ClipCap's train.py", allow_abbrev=False)
    aac = systems.add_parser(
        "prefix-aac", help="a checkpoint of Prefix-AAC, or a folder of its parts", allow_abbrev=False
    )
    for system in (clipcap, aac):
        system.add_argument("checkpoint", metavar="CHECKPOINT", help="a local file, or hf://OWNER/NAME/FILE")
        system.add_argument("directory", metavar="DIRECTORY", help="the saved model to write")
        system.add_argument(
            "--decoder", default=GPT2, metavar="NAME", help="the GPT-2 that it was trained with (%(default)s)"
        )
        system.add_argument(
            "--heads", type=int, default=8, help="heads of the mapper's attention (default, as published: %(default)s)"
        )
    clipcap.add_argument(
        "--encoder", metavar="NAME", help="the CLIP that made its features: a name of open_clip or a folder"
    )
    clipcap.add_argument("--pretrained", metavar="TAG", help="weights of a named --encoder: openai, or a file")
    clipcap.add_argument("--normalize", choices=["yes", "no"], help="whether its features were scaled to length 1")
    aac.add_argument("--dataset", choices=["audiocaps", "clotho", "both"], help="data set of its training")
    aac.add_argument("--relu", choices=["yes", "no"], help="for --dataset both: whether its mappers have a ReLU")
    aac.add_argument("--vocabulary", metavar="FILE", help="its word list, where it does not write GPT-2's tokens")


def run(args: argparse.Namespace) -> int:
    """Read the checkpoint and write the saved model; returns the exit code 0."""
    from mmprefix.generation.options import GenerateOptions
    from mmprefix.inference.predictor import Predictor
    from mmprefix.saved_model import ImportRecord, ModelSettings, require_writable
    from mmprefix.weights import source as sources

    require_writable(args.directory)
    model, file = _clipcap(args) if args.system == "clipcap" else _prefix_aac(args)
    decoding = GenerateOptions(max_new_tokens=67, num_beams=5, ranking="clipcap")  # as both published programs decode
    sha256 = sources.fingerprint([file]) if file.is_file() else None
    imported = ImportRecord(args.system, args.checkpoint, sha256)
    Predictor(model, ModelSettings(decoding, imported=imported)).save(args.directory)
    size = sum(part.stat().st_size for part in Path(args.directory).iterdir())
    log.info("saved the model: %s (%.1f MB)", args.directory, size / 1e6, extra={"result": True})
    return 0


def _clipcap(args: argparse.Namespace) -> tuple[PrefixLM, Path]:
    from mmprefix.encoders.clip import Clip
    from mmprefix.importers.clipcap import clipcap, has_heads
    from mmprefix.weights import untrusted

    file = untrusted.fetch_file(args.checkpoint)
    tensors = untrusted.read_tensors(file)
    if args.encoder is None:
        raise InputError(
            f"--encoder: {file} does not say which CLIP made its features. The released MLP files: --encoder ViT-B-32 "
            "--pretrained openai --normalize no; the released transformer: RN50x4, openai, yes"
        )
    if args.normalize is None:
        raise InputError(
            f"--normalize: {file} does not say whether features were scaled to length 1. The released MLP files: no; "
            "the released transformer: yes"
        )
    encoder = Clip(args.encoder, args.pretrained, normalize=args.normalize == "yes")
    model = clipcap(tensors, str(file), encoder, decoder=args.decoder, heads=args.heads)
    mapper = type(model.mappers["image"]).__name__ + (f" of {args.heads} heads" if has_heads(tensors) else "")
    log.info("mapper: %s; decoder: %s", mapper, _decoder(args.decoder, model))
    return model, file


def _prefix_aac(args: argparse.Namespace) -> tuple[PrefixLM, Path]:
    from mmprefix.importers.prefix_aac import Trained, prefix_aac, read_aac
    from mmprefix.weights import untrusted

    tensors, path = read_aac(args.checkpoint)
    if args.dataset is None:
        raise InputError(
            f"--dataset: {path} does not say what it was trained on, and the length of clips and a ReLU in its mappers "
            "depend on that: audiocaps (10 s), clotho (30 s) or both (10 s, longer clips compressed)"
        )
    if (args.relu is not None) != (args.dataset == "both"):
        raise InputError(
            "--relu: give yes or no for --dataset both, which does not determine it; leave it out for audiocaps (with "
            "ReLU) and clotho (without)"
        )
    relu = args.relu == "yes" if args.dataset == "both" else args.dataset == "audiocaps"
    trained = Trained(30.0 if args.dataset == "clotho" else 10.0, "compress" if args.dataset == "both" else "cut", relu)
    words = None if args.vocabulary is None else untrusted.read_vocabulary(untrusted.fetch_file(args.vocabulary))
    model = prefix_aac(tensors, str(path), trained, decoder=args.decoder, words=words, heads=args.heads)
    message = "encoder and output head: those in the file; mappers of %d heads; decoder: %s"
    log.info(message, args.heads, _decoder(args.decoder, model))
    return model, path


def _decoder(name: str, model: PrefixLM) -> str:
    return f"{name} as it is" if model.decoder.frozen else f"{name} with the tuned weights in the file"
