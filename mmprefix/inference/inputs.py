"""What a caller hands to a Predictor, sorted to the branches of the model that read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from mmprefix.data.manifest import InputRef
from mmprefix.errors import InputError
from mmprefix.media.files import missing, open_source
from mmprefix.media.source import Source, Waveform, name_of

if TYPE_CHECKING:
    from mmprefix.model import PrefixLM

InputSource = Source | InputRef  # a file or a value in memory, or a part of a file
Input = InputSource | dict[str, InputSource]  # one of those, or several by branch name

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"}
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_CALLED = {"image": "a picture", "audio": "a sound", "signals": "a row of numbers"}


def as_list(files: Any) -> tuple[list[Input], bool]:
    """The inputs as a list, and whether they were given as one; InputError for an empty list."""
    if not isinstance(files, list | tuple) or isinstance(files, Waveform) or _numbers(files):
        return [cast(Input, files)], False
    if not files:
        raise InputError("no input given; give a file, or a list of files")
    return list(cast("list[Input]", files)), True


def assign_to_branches(value: Input, kinds: Mapping[str, str]) -> dict[str, InputSource]:
    """One input by the name of the branch that reads it; ``kinds`` says what each branch reads (image, audio).

    Raises InputError that names an input of another kind, or a branch that the model does not have.
    """
    if isinstance(value, dict):
        named = {name: _row(source) for name, source in cast(dict[str, Any], value).items()}
        if not named or not named.keys() <= kinds.keys():
            wrong = ", ".join(str(name) for name in named if name not in kinds) or "(none given)"
            raise InputError(f"no branch for input {wrong}; this model reads {_have(kinds)}")
        for name, source in named.items():
            _refuse(source, kind_of(source), {name: kinds[name]})
        return named
    one = cast(InputSource, _row(value))
    kind = kind_of(one)
    _refuse(one, kind, kinds)
    likely = kind or "audio"  # containers of sound are many, pictures are soon recognised
    fitting = [name for name, reads in kinds.items() if reads == likely or len(kinds) == 1]
    if len(fitting) != 1:
        raise InputError(f"{_name(one)}: this model reads {_have(kinds)}; give a dictionary by branch name")
    return {fitting[0]: one}


def input_kinds(model: PrefixLM) -> dict[str, str]:
    """Kind of input (image, audio, signals) by branch name; "audio" too where a model transcribes."""
    kinds: dict[str, str] = {name: model.encoder(name).input_kind for name in model.encoders}
    return kinds | ({} if model.transcriber is None else {"audio": "audio"})


def source_and_span(value: InputSource) -> tuple[Source, float, float | None]:
    """What an encoder's ``preprocess`` takes: a source, and the seconds from which and to which it is read."""
    return (value.source, value.start, value.end) if isinstance(value, InputRef) else (value, 0.0, None)


def kind_of(value: InputSource) -> str | None:
    """Whether a source is a picture ("image") or a sound ("audio"), by its type, its name, or its first bytes.

    None where these do not tell. Raises InputError for a file that is missing and a value of another type.
    """
    if isinstance(value, InputRef):
        return kind_of(value.source)
    if isinstance(value, Waveform):
        return "audio"
    if _numbers(value):
        return "signals"
    if isinstance(value, Image.Image):
        return "image"
    if isinstance(value, bytes):
        return "image" if value.startswith(_STARTS) or value[8:12] == b"WEBP" else None
    if not isinstance(value, str | Path):
        raise InputError(
            f"an input of type {type(value).__name__}: give a file, bytes, a PIL image, "
            "or mmprefix.Waveform(values, rate)"
        )
    if reason := missing(value):
        raise InputError(reason)
    suffix = Path(str(value)).suffix.lower()
    if suffix in (".json", ".npy"):
        return "signals"
    if suffix in _PICTURES or suffix in _SOUNDS:
        return "image" if suffix in _PICTURES else "audio"
    with open_source(value) as stream:
        return kind_of(stream.read(16))


def _row(value: Any) -> Any:
    """``value``, a list of numbers as the tuple that encoders take."""
    return tuple(value) if isinstance(value, list) and _numbers(value) else value


def _numbers(value: Any) -> bool:
    """Whether ``value`` is a row of numbers, which is one input, not several."""
    if not isinstance(value, list | tuple) or isinstance(value, Waveform) or not value:
        return False
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in cast("list[Any]", value))


def _refuse(value: InputSource, kind: str | None, kinds: Mapping[str, str]) -> None:
    if not kinds:
        raise InputError(f"{_name(value)}: this model reads no files, only a context")
    if kind is not None and kind not in kinds.values():
        raise InputError(f"{_name(value)}: is {_CALLED[kind]}, but what reads it here is {_have(kinds)}")


def _name(value: InputSource) -> str:
    return name_of(source_and_span(value)[0])


def _have(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"the branch {name!r} for {_CALLED.get(kind, kind)}" for name, kind in kinds.items())
