"""``mmprefix caption MODEL FILE...``: a saved model writes a text for every file."""

from __future__ import annotations

import argparse
import json
import sys

from mmprefix.cli.model_inputs import add_model, open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_model(parser)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="pictures, sounds, videos (or folders of their frames); archive.zip::member reads inside a zip",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what stands before the caption")
    parser.add_argument(
        "--context", metavar="TEXT", help="what the model should know of the user (models trained with one)"
    )
    parser.add_argument("--num-beams", type=int, metavar="N", help="beams of the search (default: the model's own)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest text (default: the model's own)")
    parser.add_argument("--num-return", type=int, default=1, metavar="N", help="texts a file, best first (default 1)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="draw texts instead of searching, the same for the same N"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a file: file, candidates with scores")


def run(args: argparse.Namespace) -> int:
    """Loads the model, prints a line a file."""
    model = open_model(args)
    found = model.candidates(
        args.files,
        num_return=args.num_return,
        prompt=args.prompt,
        context=args.context,
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    for file, candidates in zip(args.files, found, strict=True):
        if args.json:
            texts = [{"text": c.text, "score": c.score} for c in candidates]
            line = json.dumps({"file": file, "candidates": texts}, ensure_ascii=False)
        else:
            line = "\n".join(f"{file}: {c.text}" for c in candidates)
        sys.stdout.write(f"{line}\n")
    return 0
