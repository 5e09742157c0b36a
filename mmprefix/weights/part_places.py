"""Places of frozen parts: a saved model names their folders, never where these lie on the machine that saved it.

A part that was read from disk stands in the recipe as ``./parts/NAME``: it is in the model directory if it was packed,
or put there. Otherwise it is looked for by its name: where the user says (``MMPREFIX_PARTS``), below the working folder
as it was named in training, and where this machine saw weights of its hash when a model was saved: that is noted in the
user's cache (``MMPREFIX_CACHE``, by default ~/.cache/mmprefix).
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmprefix.atomic import write_atomically
from mmprefix.errors import InputError
from mmprefix.weights import frozen_parts
from mmprefix.weights.frozen_parts import PACKED
from mmprefix.weights.source import GGUF, MODELS, WEIGHTS, absolute, resolve_weights, weight_files

log = logging.getLogger(__name__)
_REMEMBERED = 8  # places of a part
PACK_LIMIT = 200.0  # megabytes of a frozen part that is packed
_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*")  # beside a .gguf
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.yaml", "*.md", "*_Pooling/config.json")  # beside the weights
_MARK = f"./{PACKED}/"


def without_places(described: dict[str, Any]) -> dict[str, Path]:
    """Replace the absolute paths in ``described`` ({"recipe", "parts"}) by ``./parts/NAME``, and remember them here.

    Returns the path of each name. Two parts of one path share a name; other paths of the same name get a number.
    """
    recipe, parts = described["recipe"], described["parts"]
    places: dict[str, Path] = {}
    for part in frozen_parts.part_names(recipe):
        for options, option, path in frozen_parts.local_paths(recipe, part):
            name = _free_name(path, places)
            places[name] = path
            options[option] = f"{_MARK}{name}"
            _remember(parts[part]["sha256"], name, path)
        parts[part]["source"] = portable(parts[part]["source"])
    return places


def from_hub_cache(described: dict[str, Any], limit: float) -> None:
    """Replace names of a hub and of MMPREFIX_MODELS in ``described`` by folders of up to ``limit`` MB, to be packed."""
    for part, identity in described["parts"].items():
        options = frozen_parts.part_options(described["recipe"], part)
        fetched = identity["revision"] or str(identity["source"]).startswith(MODELS)
        if fetched and options.get("model") == identity["source"] and "revision" in options:
            folder = resolve_weights(identity["source"], identity["revision"])
            if megabytes(folder) <= limit:
                options |= {"model": str(folder), "revision": None}


def locate(saved: dict[str, Any], directory: Path) -> None:
    """Replace each ``./parts/NAME`` in ``saved`` ({"recipe", "parts"}) by the path of that part on this machine.

    Raises InputError for a part that is nowhere; the message says how to name its place.
    """
    for part in frozen_parts.part_names(saved["recipe"]):
        identity = saved["parts"].get(part) or {}
        for options, option, value in frozen_parts.path_values(saved["recipe"], part):
            name = value.removeprefix(_MARK)
            if not value.startswith(_MARK) or name in ("", ".", "..") or "/" in name or "\\" in name:
                continue
            path, remembered = _find(name, identity, directory)
            if path is None:
                raise InputError(
                    f"{directory}: the {frozen_parts.title(part)} is not at {remembered or directory / value}; "
                    f"say where it is now: --part {part}=PLACE in the shell, parts={{{part!r}: PLACE}} in Python, or "
                    f"MMPREFIX_PARTS=FOLDER with {name!r} in it"
                )
            options[option] = str(path)


def _find(name: str, identity: dict[str, Any], directory: Path) -> tuple[Path | None, Path | None]:
    """Path of the part ``name``, and the one that this machine remembers (each None if there is none)."""
    folders = [Path(folder).expanduser() for folder in os.environ.get("MMPREFIX_PARTS", "").split(os.pathsep) if folder]
    typed = Path(str(identity.get("source", "")))
    remembered = _remembered(str(identity.get("sha256", "")), name)
    candidates = [directory / PACKED / name, *(folder / name for folder in folders)]
    candidates += [folder for folder in folders if folder.name == name]
    candidates += [typed] if typed.name == name and not typed.is_absolute() else []
    candidates += remembered
    return next((absolute(path) for path in candidates if path.exists()), None), next(iter(remembered), None)


def pack(places: dict[str, Path], directory: Path, limit: float) -> None:
    """Copy the parts at ``places`` (name → path) of up to ``limit`` MB into ``directory``/parts; log their sizes."""
    for name, path in places.items():
        if (size := megabytes(path)) > limit:
            log.warning("%s has %.1f MB, and the limit is %g MB: not packed; raise pack_limit", name, size, limit)
            continue
        target, files = directory / PACKED / name, _files(path)
        alone = files == [path]  # else a folder, also for a file with a tokenizer beside it
        for file in files:
            copy = target if alone else target / file.relative_to(path.parent if path.is_file() else path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        log.info("packed %s: %.1f MB", name, size)


def packed_files(directory: Path) -> list[Path]:
    """Configuration and tokenizer files of the parts packed in ``directory``; weights have hashes of their own."""
    below = (directory / PACKED).rglob("*")
    return sorted(file for file in below if file.is_file() and not any(file.match(name) for name in WEIGHTS))


def portable(source: str) -> str:
    """A source without the place of a folder on this machine: its name."""
    path = Path(source)
    return path.name if path.is_absolute() or source.startswith(("~", "..")) else source


def megabytes(path: Path) -> float:
    """Size of the files that ``pack`` copies."""
    return sum(file.stat().st_size for file in _files(path)) / 1e6


def _files(path: Path) -> list[Path]:
    if path.is_file():
        beside = _TOKENIZER if path.suffix == GGUF and (path.parent / "tokenizer.json").is_file() else ()
        return [path, *sorted({file for pattern in beside for file in path.parent.glob(pattern) if file.is_file()})]
    beside = (file for pattern in _BESIDE for file in path.glob(pattern))
    return sorted({file for file in (*weight_files(path), *beside) if file.is_file()})


def _free_name(path: Path, places: dict[str, Path]) -> str:
    name, number = path.name or "part", 1
    while places.get(name, path) != path:
        number += 1
        name = f"{path.stem}-{number}{path.suffix}"
    return name


def _memory(sha256: str, name: str) -> Path:
    cache = os.environ.get("MMPREFIX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mmprefix"
    key = hashlib.sha256(f"{sha256} {name}".encode()).hexdigest()[:32]
    return Path(cache).expanduser() / "parts" / key


def _remember(sha256: str, name: str, path: Path) -> None:
    """Note the place of a part for ``locate``; a home that cannot be written to is no reason to stop."""
    file = _memory(sha256, name)
    with suppress(OSError, InputError, RuntimeError):
        file.parent.mkdir(parents=True, exist_ok=True)
        places = list(dict.fromkeys([str(path), *map(str, _remembered(sha256, name))]))[:_REMEMBERED]
        write_atomically(file, lambda fresh: fresh.write_text("\n".join(places), encoding="utf-8"))


def _remembered(sha256: str, name: str) -> list[Path]:
    """Places of a part on this machine, the latest first: a copy that is gone does not hide the others."""
    try:
        lines = _memory(sha256, name).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        return []
    return [Path(line) for line in lines if "\0" not in line and Path(line).is_absolute()]
