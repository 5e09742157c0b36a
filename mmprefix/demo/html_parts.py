"""Small pieces of HTML: tables that a screen reader can walk, a progress bar, a line of timing. All text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from urllib.parse import quote


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], *, row_head: bool = True) -> str:
    """Table with a caption and heads of columns; with ``row_head`` the first cell of a row is its head."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "".join(f"<tr>{_cells(row, row_head)}</tr>" for row in rows)
    parts = f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll" role="region" aria-label="{_text(caption)}" tabindex="0"><table>{parts}</table></div>'


def _cells(row: Sequence[object], row_head: bool) -> str:
    cells = [f"<td>{_text(value)}</td>" for value in row]
    if row_head and row:
        cells[0] = f'<th scope="row">{_text(row[0])}</th>'
    return "".join(cells)


def progress(done: int, total: int, text: str) -> str:
    """Progress bar and its line, which a screen reader reads out when it changes."""
    bar = f'<progress value="{done}" max="{max(1, total)}" aria-label="files done"></progress>'
    return f'{bar} <span role="status">{_text(text)}</span>'


def note(text: str) -> str:
    """One line, which a screen reader reads out when it changes."""
    return f'<p role="status">{_text(text)}</p>'


def player(name: str, path: str) -> str:
    """The browser's own player of a file that this page serves."""
    return f'<audio controls aria-label="{_text(name)}" src="gradio_api/file={quote(path)}"></audio>'


def _text(value: object) -> str:
    return html.escape(str(value))
