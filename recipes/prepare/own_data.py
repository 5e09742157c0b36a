"""Your own pictures, sounds or videos with captions → train.jsonl and val.jsonl.

SOURCE is one of these:
  a table    csv, tsv, json or jsonl: a column that names the files, and captions in one or several columns, or one row
             a caption; Flickr's token files, Karpathy's and COCO's json. Columns are guessed, and can be named
  a folder   each file with its captions beside it (dog.jpg, dog.txt: a caption a line), or files in folders whose names
             are their captions (dog_barking/1.wav), or files and one table
  NAME       a known data set: audiocaps, clotho, coco, conceptual_captions, fluent_speech_commands, slurp,
             speech_commands; of known users attend2u, flickr_style, personal, personality_captions; then its folder
             and options: mmprefix prepare NAME --help

  mmprefix prepare captions.csv --media-root photos --out data
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS, kind_of
from mmprefix.media.search import find_folder
from mmprefix.media.source import missing
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.folder import hold_back
from mmprefix.recipes.prepare.own_tables import SPLITS, SUFFIXES, TABLES, Columns, OwnItem, read_items, with_full_stop
from mmprefix.recipes.prepare.writing import Kind, ManifestRow, Split

_SHARE = 0.1
_FEW, _SMALL, _STEPS = 100, 4, 200  # files that are few; batch size and steps of a training on them (chosen here)
_RECIPES: dict[Kind, str] = {"image": "pictures", "audio": "sounds", "video": "videos"}


class MediaFolder:
    """Files below ``root``: sought by path, and where ``deep`` by name, with or without its ending.

    A name that several files have is none of them.
    """

    def __init__(self, root: Path, deep: bool) -> None:
        self.root = root
        self._by_name: dict[str, str | None] | None = None if deep else {}

    def find(self, name: str) -> str | None:
        """Path of the file that a source calls ``name``; None where there is none."""
        path = str(self.root / name)
        if not missing(path) or (os.path.isdir(path) and name.strip("./")):
            return path
        if self._by_name is None:
            self._by_name = {}
            for folder, file in tables.files_below(self.root, SUFFIXES):
                for key in (file, os.path.splitext(file)[0]):
                    self._by_name[key] = None if key in self._by_name else f"{folder}/{file}"
        return self._by_name.get(os.path.basename(name)) if name else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of own data to ``parser``."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="a table, a folder, or the NAME of a known data set"
    )
    writing.add_common_options(parser)
    text = "folder of the files (default: that of the table)"
    parser.add_argument("--media-root", type=Path, metavar="DIR", help=text)
    kinds = [name for name in _RECIPES if name in KINDS]
    parser.add_argument("--media", choices=kinds, help="what the files are (default: as they are themselves)")
    parser.add_argument("--file-column", metavar="NAME", help="column that names the files (default: guessed)")
    text = "columns of captions (default: guessed)"
    parser.add_argument("--caption-columns", nargs="+", metavar="NAME", default=[], help=text)
    text = 'end each caption with one full stop, without a space before: "a dog ." becomes "a dog."'
    parser.add_argument("--full-stop", action="store_true", help=text)
    text = f"share of the files to validate on (default: {_SHARE}, or what a column split says)"
    parser.add_argument("--val-share", type=float, metavar="SHARE", help=text)
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed draws other files to validate on (default: 0)"
    )


def prepare(options: argparse.Namespace) -> None:
    """Write the manifests that ``options`` (see ``add_arguments``) ask for, and print what was written.

    Raises InputError where nothing can be used, and for options that contradict each other.
    """
    source: Path = options.source
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder, and no known data set (mmprefix prepare --help lists them)"
        )
    notes: list[str] = []
    items, media = _read(source, options, notes)
    if options.full_stop:
        items = [replace(item, captions=tuple(map(with_full_stop, item.captions))) for item in items]
    paths = {item.name: media.find(item.name) for item in items}
    present = [path for path in paths.values() if path is not None]
    if not present:
        raise InputError(_no_file(source, media.root, [item.name for item in items]))
    kind = options.media or _kind(source, present)
    parts = _splits(list(zip(items, _rows(items, paths), strict=True)), options)
    splits = [Split(name, source, part, notes=notes if not n else ()) for n, (name, part) in enumerate(parts.items())]
    writing.write_manifests(splits, kind, options)
    print(f"next: mmprefix fit --config recipes/{_RECIPES[kind]}.yaml --data.root {options.out}{_for_few(parts)}")


def _for_few(parts: Mapping[str, Sequence[ManifestRow]]) -> str:
    """Options that give a training on few files enough steps: small batches and more epochs; "" for many files."""
    files = len({row.name for row in parts.get("train", ())})
    if not 0 < files <= _FEW:
        return ""
    return f" --data.batch_size {_SMALL} --trainer.max_epochs {math.ceil(_STEPS / math.ceil(files / _SMALL))}"


def _read(source: Path, options: argparse.Namespace, notes: list[str]) -> tuple[list[OwnItem], MediaFolder]:
    """Items of ``source``, and the folder of their files; ``notes`` are lines for the report."""
    columns = Columns(options.file_column, tuple(options.caption_columns))
    root: Path | None = options.media_root or (source if source.is_dir() else None)
    if root is not None and not root.is_dir():
        raise InputError(f"--media-root {root}: no such folder")
    if source.is_dir():
        inside = _table_in(source)
        if inside is None:
            return _folder_items(source, notes), MediaFolder(source, deep=False)
        source = inside
    if source.suffix.lower() not in TABLES:
        raise InputError(f"{source}: not a table that is known by its ending ({', '.join(TABLES)}), nor a folder")
    items, chosen = read_items(source, columns)
    if chosen is not None:
        notes.append(f"columns of {source.name}: files {chosen.file}, captions {', '.join(chosen.captions)}")
    if root is not None:
        return items, MediaFolder(root, deep=True)
    folder = _folder_of([item.name for item in items], source.parent)
    if folder is not None and folder != source.parent:
        notes.append(f"files are those below {folder}")
    return items, MediaFolder(folder or source.parent, deep=False)


def _folder_of(names: Sequence[str], near: Path) -> Path | None:
    """The folder in or ``near`` the table's that holds most of the files ``names``; None where none does."""
    if any(not missing(near / name) for name in names[:100]):
        return near
    folder = find_folder(names, near)
    return folder if folder and 2 * sum(not missing(folder / name) for name in names) > len(names) else None


def _table_in(folder: Path) -> Path | None:
    """The one table directly in ``folder``; None where there is none, or where captions lie beside the files."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    media = {file.stem for file in files if file.suffix.lower() in SUFFIXES}
    found_tables = [file for file in files if file.suffix.lower() in TABLES and file.stem not in media]
    if len(found_tables) > 1:
        names = ", ".join(file.name for file in found_tables)
        raise InputError(f"{folder}: holds several tables ({names}); give one of them, with --media-root {folder}")
    return found_tables[0] if found_tables else None


def _folder_items(folder: Path, notes: list[str]) -> list[OwnItem]:
    """Items of a folder without table: captions in .txt files, or the names of folders. InputError for neither."""
    files = [os.path.relpath(f"{path}/{name}", folder) for path, name in tables.files_below(folder, SUFFIXES)]
    if not files:
        raise InputError(f"{folder}: holds no pictures, sounds or videos")
    beside = {name: text for name in files if (text := Path(folder, name).with_suffix(".txt")).is_file()}
    if beside:
        if len(beside) < len(files):
            notes.append(f"{len(files) - len(beside)} files have no captions beside them (NAME.txt) and are left out")
        return [OwnItem(name, tuple(_lines(text)), split=_place(name)[0]) for name, text in beside.items()]
    places = {name: _place(name) for name in files}
    bare = next((name for name, (_, label) in places.items() if not label), None)
    if bare is not None:
        what = "neither a caption beside it (NAME.txt) nor a folder of its own, whose name would be its caption"
        raise InputError(f"{folder}: {bare} has {what}; or give a table of captions")
    notes.append(f"captions are the names of {len({label for _, label in places.values()})} folders")
    return [
        OwnItem(name, (" ".join(label.replace("_", " ").replace("-", " ").split()),), {"label": label}, split)
        for name, (split, label) in places.items()
    ]


def _place(name: str) -> tuple[str | None, str]:
    """Split and label of a file by the names of its folders: train/dog/1.jpg → train, dog."""
    folders = list(Path(name).parts[:-1])
    split = SPLITS.get(folders[0].lower()) if folders else None
    folders = folders[1:] if split else folders
    return split, folders[-1] if folders else ""


def _lines(file: Path) -> Iterator[str]:
    try:
        lines = [" ".join(line.split()) for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise tables.refusal(file, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8; save it as UTF-8") from error
    if not any(lines):
        raise InputError(f"{file}: an empty caption")
    return (line for line in lines if line)


def _rows(items: Sequence[OwnItem], paths: Mapping[str, str | None]) -> list[ManifestRow]:
    """Rows of ``items``, each with an id of its own: name, part, and a number where these are not enough."""
    times: Counter[str] = Counter()
    rows: list[ManifestRow] = []
    for item in items:
        start, end = item.part or (0.0, None)
        name = item.name if item.part is None else f"{item.name}#{start:g}-{'' if end is None else f'{end:g}'}"
        times[name] += 1
        name = name if times[name] == 1 else f"{name}#{times[name]}"
        rows.append(ManifestRow(name, item.name, paths[item.name], item.captions, item.fields, item.part))
    return rows


def _splits(pairs: Sequence[tuple[OwnItem, ManifestRow]], options: argparse.Namespace) -> dict[str, list[ManifestRow]]:
    """Rows of train, val and test: as the source says, or with files drawn for val."""
    named: dict[str, list[ManifestRow]] = {}
    for item, row in pairs:
        named.setdefault(item.split or "train", []).append(row)
    share = options.val_share
    if "val" in named and share is not None:
        raise InputError(f"--val-share {share}: {options.source} says itself what to validate on; leave it out")
    train = named.get("train", [])
    files = list({row.name: ManifestRow(row.name, row.name, row.path) for row in train}.values())  # no file in both
    if share is None:
        share = 0.0 if "val" in named or len(files) < 2 else max(_SHARE, 1 / len(files))
    held = hold_back(files, share, options.seed)
    drawn = {"train": [row for row in train if row.name not in held], "val": [row for row in train if row.name in held]}
    parts = {name: [*drawn.get(name, []), *(named.get(name, []) if name != "train" else [])] for name in _NAMES}
    return {name: rows for name, rows in parts.items() if rows}


_NAMES = ("train", "val", "test")


def _kind(source: Path, paths: Sequence[str]) -> Kind:
    """Kind of all files, by their endings or what is in them. Raises InputError where they are of several."""
    suffixes = {os.path.splitext(path)[1].lower(): path for path in paths}
    kinds = {suffix: kind_of(path) for suffix, path in suffixes.items()}
    for name in _RECIPES:
        if set(kinds.values()) == {name}:
            return name
    raise InputError(
        f"{source}: the files are not all of one kind ({', '.join(sorted(map(str, suffixes)))}); "
        f"give --media {' or '.join(_RECIPES)}"
    )


def _no_file(source: Path, root: Path, names: Sequence[str]) -> str:
    """Message where no file of a source exists, with the folder that holds them if it is near."""
    folder = find_folder(names, root)
    hint = f"they exist under {folder}: --media-root {folder}" if folder else "--media-root DIR names their folder"
    return f"{source}: none of its {len(set(names))} files exists under {root}, the first is {names[0]}; {hint}"
