"""``mmprefix transcribe WHISPER INPUT...``: text and confidence signals of each file, or a manifest with both added."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.cli.inference.open_model import add_device
from mmprefix.cli.inference.output import open_output
from mmprefix.cli.inference.rows import InputRow, rows_for_kinds
from mmprefix.cli.inference.run import RowReport, write_results
from mmprefix.cli.model_inputs import add_rows, read_input_rows, relocated_paths
from mmprefix.data.manifest import InputRef
from mmprefix.errors import InputError, without_frames
from mmprefix.weights.source import resolve_folder

if TYPE_CHECKING:
    from torch import Tensor

    from mmprefix.transcriber import Transcriber, Transcript


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    parser.add_argument("model", metavar="WHISPER", help="a folder or hub name of a Whisper model")
    add_rows(parser, contexts=False)
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--language",
        default="en",
        help="such as en or german; auto: detected for each file; none: what the model's own config says (default en)",
    )
    parser.add_argument(
        "--task", choices=("transcribe", "translate"), default="transcribe", help="translate: into English"
    )
    parser.add_argument("--num-beams", type=int, default=5, metavar="N", help="beams (default 5)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="most tokens of 30 s (default: the model's, 444)"
    )
    parser.add_argument(
        "--silence",
        type=float,
        metavar="SECONDS",
        help="silence that is encoded behind each sound; 2 is faster and costs little (default: all of the window)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="files at once (default 8)")
    add_device(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="precision of the weights; half of it is faster on a GPU (default: float32)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a file: text, signals, n best texts")


def run(args: argparse.Namespace) -> int:
    """Print or write a line an input; a manifest's rows get ``asr`` (the text) and ``signals`` (four numbers)."""
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give a number from 1 on")
    folder = resolve_folder(args.model, args.revision)
    inputs = read_input_rows(args)
    rows, lacking = list[InputRow](), list[str]()
    for row in rows_for_kinds(inputs.rows, {"audio": "audio"}):
        if row.fields and "audio" not in row.inputs:
            lacking.append(f"{row.manifest}: row {row.id!r} has no audio")
        else:
            rows.append(row)
    if not rows:
        raise InputError(lacking[0])
    for line in lacking:
        inputs.bad.add(line)
    listed = args.json or any(row.fields for row in rows)
    names = [*_columns(rows), "language"] if args.language == "auto" else _columns(rows)
    columns = list(dict.fromkeys(names))
    with open_output(args, columns, folder, as_json=listed) as output:
        todo = [row for row in rows if not output.is_done(row.id)]
        results = _transcribe(args, [row.inputs["audio" if row.fields else ""] for row in todo])

        def record(row: InputRow, transcript: Transcript) -> dict[str, Any]:
            return _line(row, transcript, args)

        pairs = zip(todo, results, strict=True)
        return write_results(args, output, pairs, RowReport(record, _texts), total=len(todo), bad=inputs.bad)


def _columns(rows: list[InputRow]) -> list[str]:
    """Columns of a table: those of the manifests and the two that are added, or those of a file."""
    names = list(dict.fromkeys(["id", *(name for row in rows for name in row.fields)]))
    return [*names, "asr", "signals"] if any(row.fields for row in rows) else ["file", "text", "signals", "nbest"]


def _transcribe(args: argparse.Namespace, files: list[str | InputRef]) -> Iterator[Transcript | InputError]:
    """Transcript of each file, or the reason why it cannot be read, batch by batch."""
    from transformers.utils import logging

    from mmprefix.data.collate import pad_media
    from mmprefix.transcriber import Transcriber
    from mmprefix.weights.devices import best_device, require_device

    logging.disable_progress_bar()
    language = None if args.language == "none" else args.language
    device = require_device(args.device or best_device())
    names = ("task", "num_beams", "max_new_tokens", "silence", "dtype")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    model = Transcriber(args.model, args.revision, language=language, **options).to(device)
    for start in range(0, len(files), args.batch_size):
        sounds = [_sound(model, file, args.allow_urls) for file in files[start : start + args.batch_size]]
        good = [sound for sound in sounds if not isinstance(sound, InputError)]
        transcripts = iter(model(pad_media(good).to(device)) if good else ())
        yield from (sound if isinstance(sound, InputError) else next(transcripts) for sound in sounds)


def _sound(model: Transcriber, file: str | InputRef, allow_urls: bool) -> Tensor | InputError:
    """Samples of a file, or the reason why it cannot be read."""
    from mmprefix.inference.inputs import require_urls_allowed, source_and_span
    from mmprefix.inference.urls import downloaded, with_url

    try:
        require_urls_allowed(file, allow_urls)
        return model.preprocess(*source_and_span(downloaded(file)))
    except InputError as error:
        return without_frames(with_url(error, file))


def _texts(row: InputRow, transcript: Transcript) -> list[str]:
    return [transcript.text]


def _line(row: InputRow, transcript: Transcript, args: argparse.Namespace) -> dict[str, Any]:
    detected = {"language": transcript.language} if args.language == "auto" else {}
    if not row.fields:
        nbest = [{"text": candidate.text, "score": candidate.score} for candidate in transcript.nbest]
        return {"file": row.id, "text": transcript.text, "signals": transcript.signals, "nbest": nbest, **detected}
    fields = relocated_paths(row.fields, args.media_root or Path(row.manifest).parent, args.out)
    return {**fields, "asr": transcript.text, "signals": transcript.signals, **detected}
