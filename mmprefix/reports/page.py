"""Page of HTML: one file with its style inside, that asks for nothing outside and runs no script."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #e3e6ec; --paper: #fff; --card: #f7f8fa;
  --accent: #2f6fdd; --good: #177245; --bad: #b3341f; --warn: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #313846; --paper: #14171d;
  --card: #1c2129; --accent: #7aa7ff; --good: #5cc38c; --bad: #f08a75; --warn: #3a2f19; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; color: var(--soft); }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); font-size: .87rem; }
.warnings { background: var(--warn); border-radius: 8px; padding: .7rem 1rem .7rem 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0; }
.card img { width: 100%; height: 150px; object-fit: contain; display: block; background: #0001; }
.card img.sound { object-fit: fill; }
.card audio { width: 100%; height: 2.2rem; display: block; }
.card div { padding: .6rem .8rem; overflow-wrap: anywhere; }
.card p { margin: 0 0 .4rem; } .wrote { font-weight: 600; } .card ul { margin: 0 0 .4rem; padding-left: 1.1rem; }
.card li, .card .soft { color: var(--soft); font-size: .87rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .87rem; text-align: center; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg { max-width: 100%; height: auto; }
svg .axis { stroke: var(--line); fill: none; } svg .line { fill: none; stroke-width: 1.8; }
.confusion td, .confusion th { padding: .2rem .45rem; text-align: center; border: 1px solid var(--line);
  font-size: .82rem; } .confusion th { max-width: 9rem; overflow-wrap: anywhere; font-weight: 400; }
.confusion th[scope=row] { text-align: right; }
"""
COLOURS = ("#2f6fdd", "#d9822b", "#1a9a70", "#c0459a", "#8a6fd1", "#b0a028")


def escape(text: object) -> str:
    """``text`` for a place between tags or within quotes; control characters that HTML forbids are shown as U+FFFD."""
    shown = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(text))
    return html.escape(shown.encode(errors="replace").decode(), quote=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Table of texts, which are escaped here."""
    first = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{first}</tr>{body}</table></div>'


def section(title: str, *parts: str) -> str:
    """Heading and the ``parts``, which are HTML; an empty text where all of these are empty."""
    body = "".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def document(title: str, note: str, sections: Iterable[str]) -> str:
    """Whole page; ``sections`` are HTML."""
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:; media-src data:">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
    )
    body = "".join(sections)
    return f'{head}<body><h1>{escape(title)}</h1><p class="soft">{escape(note)}</p>{body}</body></html>\n'
