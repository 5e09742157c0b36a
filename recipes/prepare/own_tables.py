"""Own tables → items: csv and tsv with any names of columns, lists without header, json of several forms.

Read are tables with one row a file or one row a caption, the token files of Flickr8k and Flickr30k
(``name.jpg#0<TAB>caption``), Karpathy's and COCO's json files, lists of objects, and objects that map names to
captions. Columns are known by their names, or by what is in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmprefix.data.manifest_file import RowError, manifest_rows, table_rows
from mmprefix.errors import InputError
from mmprefix.media.kinds import FILE_KINDS, KINDS
from mmprefix.recipes.prepare.tables import refusal

FILES = (
    *FILE_KINDS,
    "file",
    "file_name",
    "filename",
    "file_path",
    "filepath",
    "path",
    "image_path",
    "audio_path",
    "image_name",
)
FILES += ("image_file", "audio_file", "video_path", "img", "photo", "picture", "wav", "sound", "clip", "media", "name")
CAPTIONS = (
    "captions",
    "comment",
    "comments",
    "sentence",
    "sentences",
    "text",
    "texts",
    "description",
    "title",
    "target",
)
KEPT = ("prompt", "context", "user", "label")  # columns of a manifest that are kept
SPLITS = {"train": "train", "training": "train", "restval": "train", "development": "train", "test": "test"} | {
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "evaluation": "test", "eval": "test",
}  # fmt: skip
SUFFIXES = frozenset(suffix for kind in KINDS.values() for suffix in kind.suffixes)
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".token")
_CAPTION = re.compile(r"captions?([\s_.-]?(\d+|[a-z]))?", re.IGNORECASE)  # not caption_source, caption_id ...
_TOKEN = re.compile(r"^(\S.*)#\d+\t(.+)$")  # a line of Flickr's token files


@dataclass(frozen=True)
class OwnItem:
    """File as a source names it, its captions, further fields, its split and the part that counts (seconds)."""

    name: str
    captions: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    split: str | None = None
    part: tuple[float, float | None] | None = None


@dataclass(frozen=True)
class Columns:
    """Columns of files and captions; as options: None or empty where they are to be guessed."""

    file: str | None = None
    captions: tuple[str, ...] = ()

    def guess(self, source: Path, rows: Sequence[Mapping[str, Any]]) -> Columns:
        """Columns of ``rows``: those that are given, by name, or by content. Raises InputError where none is."""
        names = list(dict.fromkeys(name for row in rows[:100] for name in row))
        file = self.file or _named(names, FILES) or _by_content(rows, names, _is_file_name)
        captions = self.captions or tuple(name for name in names if _CAPTION.fullmatch(name.strip()))
        captions = captions or tuple(name for name in names if name.lower().strip().startswith("caption"))
        if not captions:
            text = _named(names, CAPTIONS) or _by_content(rows, [n for n in names if n != file], _is_sentence)
            captions = () if text is None else (text,)
        for option, chosen in (("--file-column", [file] if file else []), ("--caption-columns", captions)):
            absent = [name for name in chosen if name not in names]
            if absent or not chosen:
                wanted = f"no column {absent[0]!r}" if absent else "no column looks like it"
                raise InputError(f"{source}: {option}: {wanted}; there are {', '.join(names) or 'none'}")
        return Columns(str(file), captions)


def with_full_stop(caption: str) -> str:
    """Return ``caption`` with one full stop at its end and no space before a mark: tokenised data have "a dog ."."""
    text = re.sub(r"\s+([.,;:!?])", r"\1", caption).strip()
    return text if text.endswith(("!", "?")) else f"{text.rstrip(' .')}."


def read_items(source: Path, columns: Columns) -> tuple[list[OwnItem], Columns | None]:
    """Items of a table, one a file and part, in the order of the table; and its columns, where it has any.

    Raises InputError for a file that is no table, a row that cannot be read, and one without file or caption.
    """
    items = _token_items(source)
    if items is None and source.suffix.lower() == ".json":
        content = _load(source)
        items = _coco_items(content) or _mapped_items(content)
        rows = [] if items else _listed(source, content)
    else:
        rows = [] if items else _rows(source)
    if items:
        return _grouped(items), None
    if not rows:
        raise InputError(f"{source}: no rows")
    columns = columns.guess(source, [row for _, row in rows])
    return _grouped(_item(place, row, columns) for place, row in rows), columns


# ------------------------------------------------------------------------------------------------------------ tables


def _rows(source: Path) -> list[tuple[str, dict[str, Any]]]:
    """Position and cells of each row."""
    known = {*FILES, *CAPTIONS, "caption", "split", "start", "end", *KEPT}
    if source.suffix.lower() == ".jsonl":
        pairs = manifest_rows(source)
    else:
        pairs = table_rows(source, known, ("file", "caption") if _is_headless(source) else None)
    rows: list[tuple[str, dict[str, Any]]] = []
    for line, row in pairs:
        if isinstance(row, RowError) or not isinstance(row, dict):
            raise InputError(f"{source}:{line}: {row if isinstance(row, RowError) else 'not an object'}")
        rows.append((f"{source}:{line}", row))
    return rows


def _is_headless(source: Path) -> bool:
    """True where the first line names a file already."""
    with source.open(encoding="utf-8-sig", errors="replace") as stream:
        first = re.split(r"[,;\t|]", stream.readline())
    return len(first) > 1 and _is_file_name(first[0].strip())


def _item(place: str, row: Mapping[str, Any], columns: Columns) -> OwnItem:
    texts = [text for name in columns.captions for text in _texts(place, row.get(name))]
    name = row.get(str(columns.file))
    if not isinstance(name, str) or not name.strip() or not texts:
        raise InputError(f"{place}: {'no caption' if isinstance(name, str) and name.strip() else 'no file is named'}")
    start, end = (_seconds(place, key, row.get(key)) for key in ("start", "end"))
    part = None if start is None and end is None else (start or 0.0, end)
    fields = {key: row[key] for key in KEPT if row.get(key) not in (None, "") and key not in columns.captions}
    return OwnItem(name, tuple(texts), fields, _split(place, row.get("split")), part)


def _texts(place: str, value: Any) -> list[str]:
    """Texts of a cell: one, or a list of texts or of objects with a text (``raw``, ``caption``)."""
    values = value if isinstance(value, list) else [value]
    values = [each.get("raw", each.get("caption")) if isinstance(each, dict) else each for each in values]
    if not all(each is None or isinstance(each, str) for each in values):
        raise InputError(f"{place}: a caption must be a text, found {json.dumps(value)[:40]}")
    return [" ".join(each.split()) for each in values if each and each.strip()]


def _seconds(place: str, key: str, value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{place}: {key} must be a number of seconds, found {value!r}") from None


def _split(place: str, value: Any) -> str | None:
    if value in (None, ""):
        return None
    name = SPLITS.get(str(value).strip().lower())
    if name is None:
        raise InputError(f"{place}: split {value!r}: give one of {', '.join(SPLITS)}")
    return name


def _grouped(items: Iterable[OwnItem]) -> list[OwnItem]:
    """Items with all captions of those that differ in nothing else, in order."""
    captions: dict[str, list[str]] = {}
    first: dict[str, OwnItem] = {}
    for item in items:
        key = repr((item.name, item.part, item.split, sorted(item.fields.items())))
        first.setdefault(key, item)
        captions.setdefault(key, []).extend(item.captions)
    return [OwnItem(item.name, tuple(captions[key]), item.fields, item.split, item.part) for key, item in first.items()]


def _named(names: Iterable[str], known: Sequence[str]) -> str | None:
    """The first of ``known`` that is a column, whatever its case."""
    columns = {name.lower().strip(): name for name in names}
    return next((columns[name] for name in known if name in columns), None)


def _by_content(rows: Sequence[Mapping[str, Any]], names: Iterable[str], fits: Any) -> str | None:
    """The column most of whose cells fit."""
    sample = rows[:100]
    counts = {name: sum(isinstance(row.get(name), str) and fits(row[name]) for row in sample) for name in names}
    best = max(counts, key=counts.__getitem__, default=None)
    return best if best is not None and 2 * counts[best] > len(sample) else None


def _is_file_name(text: str) -> bool:
    return Path(text.strip()).suffix.lower() in SUFFIXES


def _is_sentence(text: str) -> bool:
    return len(text.split()) > 1


# ------------------------------------------------------------------------------------------------- other files' forms


def _token_items(source: Path) -> list[OwnItem] | None:
    """Items of a token file; None for any other file."""
    if source.suffix.lower() not in (".txt", ".token", ".tsv"):
        return None
    items: list[OwnItem] = []
    try:
        with source.open(encoding="utf-8-sig") as stream:
            for line, text in enumerate(stream, start=1):
                match = _TOKEN.match(text.rstrip("\r\n"))
                if match is None and not items:
                    return None
                if match is None and text.strip():
                    raise InputError(f"{source}:{line}: not NAME#NUMBER, a tab and a caption, as the lines before")
                items += [] if match is None else [OwnItem(match[1], (" ".join(match[2].split()),))]
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(source, error) if isinstance(error, OSError) else InputError(f"{source}: {error}") from error
    return items


def _load(source: Path) -> Any:
    try:
        return json.loads(source.read_bytes())
    except OSError as error:
        raise refusal(source, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not JSON: {error}") from error


def _coco_items(content: Any) -> list[OwnItem] | None:
    """Items of a file like COCO's captions: pictures with ids, and captions with ``image_id``."""
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        return None
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        return [OwnItem(names[row["image_id"]], (" ".join(row["caption"].split()),)) for row in content["annotations"]]
    except (KeyError, TypeError, AttributeError):
        return None


def _mapped_items(content: Any) -> list[OwnItem] | None:
    """Items of an object that maps the names of files to their captions."""
    if not isinstance(content, dict) or not content or not all(_is_file_name(name) for name in content):
        return None
    return [OwnItem(name, tuple(_texts(name, texts))) for name, texts in content.items()]


def _listed(source: Path, content: Any) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a list of objects, or of the first such list in an object; Karpathy's have their folder apart."""
    lists = [content] if isinstance(content, list) else list(content.values()) if isinstance(content, dict) else []
    rows = next((value for value in lists if isinstance(value, list) and value and isinstance(value[0], dict)), [])
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{source}: neither a list of objects with file and captions, nor file names with captions")
    for row in rows:
        if {"filepath", "filename"} <= row.keys():  # Karpathy: the folder, and the name in it
            row["filename"] = f"{row.pop('filepath')}/{row['filename']}"
    return [(f"{source}: object {number}", row) for number, row in enumerate(rows, start=1)]
