"""Page of ``mmprefix evaluate --html FILE``: figures, curve or confusion, the worst and best with their inputs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.errors import InputError
from mmprefix.media.kinds import kind_of
from mmprefix.media.source import is_url

if TYPE_CHECKING:
    from mmprefix.reports.rows import ScoredText

MEDIA = ("file", "media", "image", "audio", "video")  # fields that may hold the path of a line's input


def media_in(record: Any) -> str:
    """Path of the input that a line names, or ""."""
    if not isinstance(record, Mapping):
        return ""
    return next((record[key] for key in MEDIA if isinstance(record.get(key), str)), "")


def shown_media(path: str, folder: Path) -> tuple[str, str]:
    """Kind of the input at ``path`` ("": it cannot be told), and its path from here.

    ``folder``: of the file that names it, where the path is looked up when it leads to nothing from here.
    """
    near = path if not path or is_url(path) or Path(path).exists() else str(folder / path)
    try:
        return (kind_of(near) or "" if near else ""), near
    except (InputError, OSError):
        return "", near


def write_page(
    args: argparse.Namespace,
    rows: Sequence[ScoredText],
    figures: Mapping[str, float],
    *,
    notes: Sequence[str] = (),
    sections: Sequence[str] = (),
) -> None:
    """Write the page of ``rows``, which are scored, to ``args.html``. Raises InputError where it cannot be written.

    ``sections``: HTML that stands between the figures and the inputs.
    """
    from mmprefix.reports.evaluation_report import write_evaluation

    title = Path(args.predictions).name
    write_evaluation(title, rows, figures, Path(args.html), notes=notes, sections=sections)
