"""``mmprefix inspect MODEL FILE``: what a prefix says, how long it is, and where it looks, for one input."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmprefix.atomic import write_atomically
from mmprefix.cli.inference.histories import read_history
from mmprefix.cli.inference.open_model import open_model
from mmprefix.cli.inference.user_options import add_users
from mmprefix.cli.inspection.side_table import side_lines
from mmprefix.cli.model_inputs import add_model
from mmprefix.cli.spellings import utf8_text
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.inference.call_options import CallOptions
    from mmprefix.inference.predictor import Predictor
    from mmprefix.inspection.maps import Maps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    add_model(parser)
    parser.add_argument("file", metavar="FILE", help="a picture or a sound; archive.zip::member reads inside a zip")
    parser.add_argument("--words", type=int, default=5, metavar="N", help="words for each position (default 5)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="write maps of where it looks there, as PNG files and maps.json"
    )
    parser.add_argument(
        "--map",
        choices=["occlusion", "attention"],
        default="occlusion",
        help="how places are looked for: hide parts of the input, or the mapper's own attention (default occlusion)",
    )
    parser.add_argument("--grid", type=int, metavar="N", help="hide cells of an N x N grid of a picture (default 8)")
    parser.add_argument("--seconds", type=float, metavar="S", help="hide slices of S seconds of a sound (default 0.25)")
    parser.add_argument("--prompt", type=utf8_text, metavar="TEXT", help="text before the caption")
    add_users(parser, "whom to write for")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the words and norms of each position; returns the exit code."""
    if args.out is None and (args.grid is not None or args.seconds is not None or args.map != "occlusion"):
        raise InputError(
            "--map, --grid, --seconds: shape the maps that --out FOLDER writes; give it, or leave these out"
        )
    from mmprefix import inspection

    model = open_model(args)
    options = _options(args)
    caption = model(args.file, **options)
    beside = inspection.beside_positions(model, args.file, text=str(caption), **options)
    positions = {"positions": list[Any]()} if beside and not _length(model, args, options) else None
    report = {"file": args.file, "caption": caption, **(positions or _positions(model, args, options))}
    if beside:
        report["beside"] = asdict(beside)
    if args.out is not None:
        report["maps"] = _write_maps(model, args, options)
    text = json.dumps(report, ensure_ascii=False) + "\n" if args.json else _table(report, side_lines(beside))
    sys.stdout.write(text)
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a Predictor's call."""
    history = None if args.history is None else read_history(args.history)
    named = {"prompt": args.prompt, "user": args.user, "history": history}
    return {"batch_size": args.batch_size} | {name: value for name, value in named.items() if value is not None}


def _positions(model: Predictor, args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Words of each position; norms too, and those of the vocabulary, where it is an embedding."""
    from mmprefix import inspection

    if not inspection.has_embeddings(model, args.file, **options):
        rows = inspection.next_words(model, args.file, count=args.words, **options)
        return {"positions": [{"next": [word._asdict() for word in row]} for row in rows]}
    words = inspection.nearest_words(model, args.file, count=args.words, **options)
    lengths = inspection.norms(model, args.file, **options)
    own = [None] * lengths.deep + lengths.positions
    rows = [{"nearest": [w._asdict() for w in row], "norm": norm} for row, norm in zip(words, own, strict=True)]
    names = ("mean", "low", "median", "high")
    return {"positions": rows, "word_norms": {name: getattr(lengths, name) for name in names}}


def _write_maps(model: Predictor, args: argparse.Namespace, options: dict[str, Any]) -> list[str]:
    """Write a picture for all positions, one for each, one for each word, and the numbers; their files."""
    from mmprefix import inspection

    cells = {"grid": args.grid, "seconds": args.seconds}
    own = cells if args.map == "occlusion" else {}
    positions = inspection.attention_maps(model, args.file, kind=args.map, **own, **options)
    words = inspection.caption_map(model, args.file, **cells, **options)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    files = [_draw(args.file, positions, None, folder / "all.png")]
    files += [_draw(args.file, positions, n, folder / f"position-{n:02d}.png") for n in range(len(positions.labels))]
    files += [_draw(args.file, words, n, folder / f"word-{n:02d}.png") for n in range(len(words.labels))]
    numbers = {"positions": positions.to_dict(), "words": words.to_dict()}
    write_atomically(folder / "maps.json", lambda file: file.write_text(json.dumps(numbers), encoding="utf-8"))
    return [*files, str(folder / "maps.json")]


def _draw(source: str, maps: Maps, label: int | None, file: Path) -> str:
    from mmprefix import inspection

    draw = inspection.heat_picture if maps.kind == "image" else inspection.heat_spectrogram
    draw(source, maps, label).save(file)
    return str(file)


def _length(model: Predictor, args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Positions of the input's prefix."""
    from mmprefix.inspection.prefix_rows import prefix_rows

    (row,) = prefix_rows(model, [args.file], cast("CallOptions", options))
    return sum(row.lengths)


def _table(report: dict[str, Any], beside: list[str]) -> str:
    """Rows of the report for a person, and lines for what stands ``beside`` the positions."""
    lines = [f"caption: {report['caption']}"]
    if norms := report.get("word_norms"):
        shares = f"{norms['low']:.3g}, {norms['median']:.3g}, {norms['high']:.3g} (5th, 50th, 95th percentile)"
        lines.append(f"norms of words: mean {norms['mean']:.3g}; {shares}")
    for number, row in enumerate(report["positions"]):
        length = f"norm {row['norm']:<8.3g} " if row.get("norm") is not None else ""
        nearest = [f"{word['text']} {word['cosine']:.2f}" for word in row.get("nearest", ())]
        following = [f"{word['text']} {word['probability']:.2f}" for word in row.get("next", ())]
        lines.append(f"{number:>3}  {length}{', '.join(nearest or following)}")
    if report["positions"] and not report.get("word_norms"):
        lines.append("(keys and values: the words that each position alone brings forth, with their probabilities)")
    return "".join(f"{line}\n" for line in [*lines, *beside, *report.get("maps", ())])
