"""``mmprefix transcribe WHISPER FILE...``: what is said, and how sure Whisper is; or a manifest with both added."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mmprefix.cli.model_inputs import InputRow, add_rows, read_input_rows, relocated_paths, write_lines
from mmprefix.data.manifest import InputRef
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.transcriber import Transcript


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("model", metavar="WHISPER", help="a folder or hub name of a Whisper model")
    add_rows(parser, contexts=False)
    parser.add_argument("--revision", help="the hub's branch, tag or commit")
    parser.add_argument("--language", default="en", help="Whisper's word for it; none for a model of one language")
    parser.add_argument("--num-beams", type=int, default=5, metavar="N", help="beams (default 5)")
    parser.add_argument("--max-new-tokens", type=int, default=100, metavar="N", help="longest text (default 100)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="files at once (default 8)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--json", action="store_true", help="one JSON object a file: text, signals, n best texts")


def run(args: argparse.Namespace) -> int:
    """A line a file. With ``--manifest`` its rows, with ``asr`` (the text) and ``signals`` (four numbers) added."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give a number from 1 on")
    rows = read_input_rows(args)
    for row in rows:
        if row.fields and "audio" not in row.inputs:
            raise InputError(f"{args.manifest}: row {row.id!r} has no audio")
    heard = _listen(args, [row.inputs["audio" if row.fields else ""] for row in rows])
    lines = [_line(row, one, args) for row, one in zip(rows, heard, strict=True)]
    write_lines(
        args,
        lines,
        None if args.json or args.manifest else [f"{r.id}: {h.text}" for r, h in zip(rows, heard, strict=True)],
    )
    return 0


def _listen(args: argparse.Namespace, files: list[str | InputRef]) -> list[Transcript]:
    from transformers.utils import logging

    from mmprefix.data.collate import pad_media
    from mmprefix.inference.inputs import source_and_span
    from mmprefix.transcriber import Transcriber
    from mmprefix.weights.devices import best_device, require_device

    logging.disable_progress_bar()
    language = None if args.language == "none" else args.language
    device = require_device(args.device or best_device())
    model = Transcriber(args.model, args.revision, language, args.num_beams, args.max_new_tokens).to(device)
    found: list[Transcript] = []
    for start in range(0, len(files), args.batch_size):
        some = files[start : start + args.batch_size]
        found += model(pad_media([model.preprocess(*source_and_span(file)) for file in some]).to(device))
    return found


def _line(row: InputRow, heard: Transcript, args: argparse.Namespace) -> dict[str, Any]:
    if not row.fields:
        nbest = [{"text": one.text, "score": one.score} for one in heard.nbest]
        return {"file": row.id, "text": heard.text, "signals": heard.signals, "nbest": nbest}
    return {**relocated_paths(row.fields, args.manifest, args.out), "asr": heard.text, "signals": heard.signals}
