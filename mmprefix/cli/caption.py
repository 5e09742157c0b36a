"""``mmprefix caption MODEL FILE...``: a text for every file, by a saved model."""

from __future__ import annotations

import argparse
import json
import sys

from mmprefix.cli.model_inputs import add_model, open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    add_model(parser)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="pictures, sounds, videos (or folders of their frames); archive.zip::member reads inside a zip",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="text before the caption")
    parser.add_argument("--context", metavar="TEXT", help="text about the user, for models trained with one")
    parser.add_argument("--num-beams", type=int, metavar="N", help="beams of the search (default: the model's own)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="most tokens of a text (default: the model's own)"
    )
    parser.add_argument("--num-return", type=int, default=1, metavar="N", help="texts a file, best first (default 1)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="sample texts instead of searching; one N gives the same texts each time"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a file: file, candidates")


def run(args: argparse.Namespace) -> int:
    """Load the model and print a line a file; returns the exit code 0."""
    model = open_model(args)
    captions = model.candidates(
        args.files,
        num_return=args.num_return,
        prompt=args.prompt,
        context=args.context,
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    for file, candidates in zip(args.files, captions, strict=True):
        if args.json:
            texts = [{"text": c.text, "score": c.score} for c in candidates]
            line = json.dumps({"file": file, "candidates": texts}, ensure_ascii=False)
        else:
            line = "\n".join(f"{file}: {c.text}" for c in candidates)
        sys.stdout.write(f"{line}\n")
    return 0
