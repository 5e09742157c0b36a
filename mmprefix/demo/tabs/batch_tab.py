"""Tab "Many files": files or a zip in; a table, a CSV and a zip of texts out, with progress."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from mmprefix.demo.batch import BatchRow, caption_files, write_csv, write_texts
from mmprefix.demo.calls import DemoState, on_page
from mmprefix.demo.html_parts import progress, table
from mmprefix.demo.limits import DemoLimits
from mmprefix.demo.uploads import batch_files
from mmprefix.demo.writing import Wishes

_EVERY = 0.5  # seconds between two states of the table
_TIMES = 10  # a batch may take ten times as long as a call
_SHOWN = 200  # rows on the page; the CSV has all
_HEADS = ("File", "Caption", "Score", "Error")


def batch_tab(state: DemoState) -> None:
    """Lay the tab out, inside Blocks that are open, and connect it."""
    names = state.models.names
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            gr.Markdown("## Files")
            files = gr.File(label=_label(state.limits), file_count="multiple", height=200)
            model = gr.Dropdown(names, value=names[0], label="Model", filterable=False)
            prompt = gr.Textbox(label="Prompt", info="Text before every caption; empty: the model's own.")
            start = gr.Button("Caption all files", variant="primary")
            stop = gr.Button("Stop")
        with gr.Column(min_width=300):
            gr.Markdown("## Captions")
            outputs = [
                gr.HTML(progress(0, 1, "Nothing is written yet."), label="Progress"),
                gr.DownloadButton("Download the table (CSV)", interactive=False),
                gr.DownloadButton("Download the texts (zip)", interactive=False),
                gr.HTML(label="Table"),
            ]
    call = start.click(
        on_page(batch_handler(state)),
        [files, model, prompt],
        outputs,
        concurrency_id="batch",
        concurrency_limit=1,
        api_visibility="private",
        show_progress="hidden",
    )
    stop.click(None, cancels=[call], api_visibility="private")


def _label(limits: DemoLimits) -> str:
    return f"Pictures, sounds, or a zip of them: at most {limits.max_files:,} files of {limits.max_mb:g} MB"


def batch_handler(state: DemoState) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Handler of the button: progress, CSV, zip and table, as the captions come."""

    def caption_all(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        uploads, model_name, prompt = values
        state.count(request)
        options, nothing = Wishes(prompt).options(), gr.update(value=None, interactive=False)
        yield progress(0, 1, "Reading the files ..."), nothing, nothing, ""
        with tempfile.TemporaryDirectory(prefix="mmprefix-batch-") as folder:
            files = batch_files(uploads or [], Path(folder), state.limits)
            model, deadline = state.load(model_name, _TIMES)
            rows: list[BatchRow] = []
            next_show = time.perf_counter() + _EVERY
            for row in caption_files(model, files, options, deadline):
                rows.append(row)
                if time.perf_counter() >= next_show:
                    yield _state(rows, len(files), deadline.spent), nothing, nothing, _table(rows)
                    next_show = time.perf_counter() + _EVERY
            status = _state(rows, len(files), deadline.spent)
            csv, texts = Path(folder) / "captions.csv", Path(folder) / "captions.zip"
            write_csv(rows, csv)
            write_texts(rows, texts)
            yield status, _download(csv), _download(texts), _table(rows)

    return caption_all


def _download(file: Path) -> Any:
    return gr.update(value=str(file), interactive=True)


def _state(rows: list[BatchRow], total: int, seconds: float) -> str:
    bad = sum(bool(row.error) for row in rows)
    faults = f", {bad} with an error" if bad else ""
    rate = len(rows) / max(seconds, 1e-9)
    text = f"{len(rows)} of {total} files{faults}, {seconds:.1f} s, {rate:.1f} files a second"
    return progress(len(rows), total, text)


def _table(rows: list[BatchRow]) -> str:
    shown = [
        (row.file, row.caption, "" if row.score is None else f"{row.score:.3f}", row.error) for row in rows[:_SHOWN]
    ]
    more = f"; the first {_SHOWN} of {len(rows)}, the CSV has all" if len(rows) > _SHOWN else ""
    return table(f"Captions{more}", _HEADS, shown)
