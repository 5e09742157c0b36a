"""``mmprefix transcribe WHISPER FILE...``: text and confidence signals of each file, or a manifest with both added."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.cli.model_inputs import InputRow, add_rows, read_input_rows, relocated_paths, write_lines
from mmprefix.data.manifest import InputRef
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.transcriber import Transcript


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    parser.add_argument("model", metavar="WHISPER", help="a folder or hub name of a Whisper model")
    add_rows(parser, contexts=False)
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--language",
        default="en",
        help="language code, such as en or de; none for a model of one language (default en)",
    )
    parser.add_argument("--num-beams", type=int, default=5, metavar="N", help="beams (default 5)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=100, metavar="N", help="most tokens of a text (default 100)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="files at once (default 8)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file: text, signals, n best texts")


def run(args: argparse.Namespace) -> int:
    """Print or write a line a file; a manifest's rows get ``asr`` (the text) and ``signals`` (four numbers)."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give a number from 1 on")
    rows = read_input_rows(args)
    for row in rows:
        if row.fields and "audio" not in row.inputs:
            raise InputError(f"{args.manifest}: row {row.id!r} has no audio")
    transcripts = _transcribe(args, [row.inputs["audio" if row.fields else ""] for row in rows])
    lines = [_line(row, transcript, args) for row, transcript in zip(rows, transcripts, strict=True)]
    plain = [f"{row.id}: {transcript.text}" for row, transcript in zip(rows, transcripts, strict=True)]
    write_lines(args, lines, None if args.json or args.manifest else plain)
    return 0


def _transcribe(args: argparse.Namespace, files: list[str | InputRef]) -> list[Transcript]:
    from transformers.utils import logging

    from mmprefix.data.collate import pad_media
    from mmprefix.inference.inputs import source_and_span
    from mmprefix.transcriber import Transcriber
    from mmprefix.weights.devices import best_device, require_device

    logging.disable_progress_bar()
    language = None if args.language == "none" else args.language
    device = require_device(args.device or best_device())
    options = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}
    model = Transcriber(args.model, args.revision, language=language, **options).to(device)
    transcripts: list[Transcript] = []
    for start in range(0, len(files), args.batch_size):
        batch = [model.preprocess(*source_and_span(file)) for file in files[start : start + args.batch_size]]
        transcripts += model(pad_media(batch).to(device))
    return transcripts


def _line(row: InputRow, transcript: Transcript, args: argparse.Namespace) -> dict[str, Any]:
    if not row.fields:
        nbest = [{"text": candidate.text, "score": candidate.score} for candidate in transcript.nbest]
        return {"file": row.id, "text": transcript.text, "signals": transcript.signals, "nbest": nbest}
    fields = relocated_paths(row.fields, args.media_root or Path(args.manifest).parent, args.out)
    return {**fields, "asr": transcript.text, "signals": transcript.signals}
