"""Sources of frozen weights (a folder, MMPREFIX_MODELS, the files of this package, a model hub) and their provenance.

Every pretrained part is loaded from a folder on disk. huggingface_hub first downloads a hub model into one, so that
one code path loads all, and the files can be hashed: a mapper fits only the weights that it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from mmprefix.errors import InputError, did_you_mean
from mmprefix.weights.dry_run import sizes_only

EMBEDDED = "mmprefix:"
HUB = "hf-hub:"  # mark of a hub name that open_clip and timm use; other libraries take the plain name
MODELS = "models:"  # a folder in the one that MMPREFIX_MODELS names
RECIPE = "mmprefix.yaml"  # the file of a model directory that is read first
GGUF = ".gguf"  # ending of a file with weights, configuration and tokenizer
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", f"*{GGUF}")
_LFS = b"version https://git-lfs.github.com/spec/"
_TEXT = ["*.json", "*.txt", "*.model", "*.jinja", "*.yaml", "*.md"]


@dataclass(frozen=True)
class Provenance:
    """Identity of a frozen part: its source, the hub's commit (None for a folder), the hash of its weights."""

    source: str
    revision: str | None
    sha256: str

    def as_dict(self) -> dict[str, str | None]:
        """Plain data, as it stands in a saved model."""
        return asdict(self)


def resolve_folder(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder that holds the model ``name``.

    ``name`` is a local folder, ``mmprefix:NAME`` inside the package, ``models:NAME`` in the folder that the environment
    variable MMPREFIX_MODELS names, or a hub name, with or without ``hf-hub:``. Without ``weights`` only configuration
    and tokenizer are fetched, or made where the sizes are known. Raises InputError when there is no such folder and the
    hub does not have it or cannot be reached.
    """
    if name.startswith(EMBEDDED):
        path = Path(__file__).parents[1] / name.removeprefix(EMBEDDED)
        if not path.is_dir():
            raise InputError(f"{name!r}: this package holds no such model")
        return path
    if name.startswith(MODELS):
        return _own_model(name)
    if name.startswith(HUB):
        return hub_snapshot(name.removeprefix(HUB), revision, weights)
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser().resolve()
    if Path(name).expanduser().is_file():
        raise InputError(f"{name!r}: is a file, where the folder of a model is wanted{_of_gguf(name)}")
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"{name!r}: no such folder")
    if weights:
        return hub_snapshot(name, revision)
    from mmprefix.weights.dry_run import known_config_folder

    return known_config_folder(name) or hub_snapshot(name, revision, weights=False)


def _own_model(name: str, file: bool = False) -> Path:
    """Folder (or ``file``) of ``models:NAME``; InputError where there is none."""
    place = os.environ.get("MMPREFIX_MODELS", "")
    if not place:
        raise InputError(f"{name!r}: set MMPREFIX_MODELS to the folder that holds {name.removeprefix(MODELS)!r}")
    own = Path(name.removeprefix(MODELS))
    if own.is_absolute() or not own.parts:
        raise InputError(f"{name!r}: give the name of a folder in the one that MMPREFIX_MODELS names ({place})")
    path = Path(place).expanduser() / own
    if ".." not in path.parts and path.is_file() and not file:
        raise InputError(f"{name!r}: {path} is a file, where the folder of a model is wanted{_of_gguf(name)}")
    if ".." in path.parts or not (path.is_file() if file else path.is_dir()):
        kind = "file" if file else "folder"
        raise InputError(f"{name!r}: no such {kind} {path} (MMPREFIX_MODELS={place}){_near(name, path)}")
    return absolute(path)


def _near(name: str, path: Path) -> str:
    """End of a sentence about the missing ``path`` of ``name``: what is beside it under a like name, else all."""
    if ".." in path.parts or not path.parent.is_dir():
        return ""
    names = sorted(each.name for each in path.parent.iterdir() if not each.name.startswith("."))
    return (
        did_you_mean(path.name, names, name.removesuffix(path.name))
        or f"; there is {', '.join(names[:8]) or 'nothing'}"
    )


def _of_gguf(name: str) -> str:
    """End of a sentence about a .gguf ``name``, which only language models are; empty for another."""
    return "; mmprefix.decoders.CausalDecoder reads a .gguf file" if name.endswith(GGUF) else ""


def absolute(path: Path) -> Path:
    """The absolute path of a folder, or of a file under its own name: a hub's file is a link to one without ending."""
    path = path.expanduser()
    return path.parent.resolve() / path.name if path.is_file() else path.resolve()


def resolve_weights(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of the model ``name`` (see ``resolve_folder``), or its .gguf file.

    That is the file ``name``, ``models:NAME/FILE.gguf``, or the only one in a folder without other weights. Raises
    InputError as ``resolve_folder`` does, and for a folder with several .gguf files.
    """
    if name.endswith(GGUF) and not Path(name).expanduser().is_dir():
        if name.startswith(MODELS):
            return _own_model(name, file=True)
        if not Path(name).expanduser().is_file():
            raise InputError(f"{name!r}: no such file")
        return absolute(Path(name))
    folder = resolve_folder(name, revision, weights)
    files = [file for file in weight_files(folder) if file.suffix == GGUF]
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise InputError(f"{name!r}: the folder {folder} holds {len(files)} .gguf files; give one of them: {listed}")
    return files[0] if files else folder


def weight_files(folder: Path) -> list[Path]:
    """Files of weights in ``folder``, by name; those of GGUF only where there are no others."""
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    return [file for file in files if file.suffix != GGUF] or files


def resolve_model(name: str, revision: str | None = None) -> Path:
    """The folder of the saved model ``name``, as ``resolve_folder``; of a hub's repository with the parts packed in it.

    Raises InputError when there is no such folder and the hub does not have it or cannot be reached.
    """
    folder = resolve_folder(name, revision)
    if revision_of(folder) is None or not (folder / RECIPE).is_file():
        return folder
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    try:
        return Path(snapshot_download(name, revision=revision_of(folder), allow_patterns=["parts/*"]))
    except Exception:  # the client's many kinds: what is missing is named when the part is looked for
        return folder


def hub_snapshot(name: str, revision: str | None, weights: bool = True) -> Path:
    """Local copy of a hub repository's configuration and weights (safetensors, else .bin), fetched where needed.

    Raises InputError when the hub does not have it or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))

    try:
        if not weights:
            return fetch(_TEXT)
        path = fetch([*_TEXT, "*.safetensors"])
        return path if any(path.glob("*.safetensors")) else fetch([*_TEXT, "*.bin"])
    except (
        Exception
    ) as error:  # the hub's client raises many kinds of errors; each means that the model is not available
        kind = type(error).__name__
        raise InputError(
            f"{name!r} is no folder here, and the model hub did not give it ({kind}); "
            "give a folder on disk, or a hub name while the hub can be reached"
        ) from error


def fetch_file(name: str, commit: str, file: str) -> None:
    """Add ``file`` of a hub repository to the local copy of its ``commit``; nothing where the hub does not give it."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    with suppress(Exception):  # of the hub's client, a dozen kinds; what is missing is named where it is needed
        snapshot_download(name.removeprefix(HUB), revision=commit, allow_patterns=[file])


def resolve_sentence_encoder(name: str) -> Path:
    """The folder of a sentence encoder (see ``resolve_folder``), with the description of its pooling."""
    folder = resolve_folder(name)
    if commit := revision_of(folder):
        fetch_file(name, commit, "1_Pooling/config.json")
    return folder


def revision_of(path: Path) -> str | None:
    """Commit of the hub snapshot ``path``, None for any other folder."""
    return path.name if path.parent.name == "snapshots" else None


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of ``files`` in order of name (hex); their names and folders do not count."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def provenance_of(name: str, path: Path) -> Provenance:
    """Provenance of the model in ``path``, a folder or file, which ``name`` was resolved to."""
    if sizes_only():
        return Provenance(name, revision_of(path), "")
    files = [path] if path.is_file() else weight_files(path)
    if not files:
        raise InputError(f"{name!r}: the folder {path} holds no weights ({', '.join(WEIGHTS)})")
    for file in files:
        _require_content(name, file)
    return Provenance(name, revision_of(path), fingerprint(files))


def _require_content(name: str, file: Path) -> None:
    """Raise InputError for a ``file`` of weights of the model ``name`` that is empty, or what git-lfs left for it."""
    with file.open("rb") as stream:
        head = stream.read(len(_LFS))
    if not head:
        raise InputError(f"{name!r}: {file} is empty; download it again")
    if head == _LFS:
        raise InputError(f"{name!r}: {file} is a pointer of git-lfs and no weights; fetch them with: git lfs pull")


def settings(identity: Provenance) -> str:
    """Hash of the configuration files beside a model's weights (sizes, preprocessing); "" for a single file."""
    folder = Path(identity.source).expanduser()
    if identity.source.startswith((EMBEDDED, MODELS)) or folder.is_dir():
        return fingerprint(resolve_folder(identity.source).glob("*.json"))
    if identity.revision is None:
        return ""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    name = identity.source.removeprefix(HUB)
    snapshot = snapshot_download(name, revision=identity.revision, local_files_only=True)
    return fingerprint(Path(snapshot).glob("*.json"))


def read_json(file: Path) -> dict[str, object]:
    """The JSON object in ``file``; InputError names the file when it is missing or malformed."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object")
    return cast(dict[str, object], value)
