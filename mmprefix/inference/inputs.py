"""Inputs of a Predictor, assigned to the branches of the model that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from mmprefix.data.manifest import InputRef
from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS, is_numbers, kind_of
from mmprefix.media.source import FrameSequence, Source, Texts, Waveform, is_array, is_url, name_of

if TYPE_CHECKING:
    from mmprefix.model import PrefixLM

# A file or a value in memory, a part of a file, or a sound as libraries give it: (values, rate).
InputSource: TypeAlias = "Source | InputRef | tuple[Any, float] | tuple[float, Any]"
Input: TypeAlias = "InputSource | dict[str, InputSource]"  # one of those, or several by branch name


def as_list(files: Any) -> tuple[list[Input], bool]:
    """The inputs as a list, and whether ``files`` was a list; InputError for an empty list."""
    single = isinstance(files, Waveform) or is_numbers(cast(object, files)) or _values_and_rate(files) is not None
    if single or not isinstance(files, list | tuple):
        return [cast(Input, files)], False
    if not files:
        raise InputError("no input given; give a file, or a list of files")
    return list(cast("list[Input]", files)), True


def assign_to_branches(value: Input, kinds: Mapping[str, str]) -> dict[str, InputSource]:
    """One input by the name of the branch that reads it; ``kinds`` is the kind that each branch reads.

    A video goes to a branch of sounds where none reads videos. A list of files in the place of one video is its frames.
    A sound may also be (values, rate), as soundfile, librosa and torchaudio give it, (rate, values), as scipy does, and
    either as ``datasets`` has it in its rows: {"array", "sampling_rate"}, {"bytes", "path"}, or an AudioDecoder.
    A text is given by branch name. Raises InputError that names an input of another kind, or a branch that the model
    does not have.
    """
    value = cast(Input, _plain(value))
    if isinstance(value, dict):
        named = cast(dict[str, Any], value)
        if not named or not named.keys() <= kinds.keys():
            wrong = ", ".join(str(name) for name in named if name not in kinds) or "(none given)"
            raise InputError(f"no branch for input {wrong}; this model reads {_branches(kinds)}")
        sources = {name: _as_source(item, kinds[name]) for name, item in named.items()}
        for name, source in sources.items():
            _kind_among(source, {name: kinds[name]})
        return sources
    source = cast(InputSource, _as_source(value))
    if set(kinds.values()) == {"text"} and not isinstance(source, InputRef | Texts):
        raise InputError(f"{_name(source)}: this model reads {_branches(kinds)}; give a dictionary by branch name")
    kind = _kind_among(source, kinds) or "audio"  # formats of sound are many, the other kinds are soon recognised
    fitting = [name for name, reads in kinds.items() if reads == kind or len(kinds) == 1]
    if len(fitting) != 1:
        raise InputError(f"{_name(source)}: this model reads {_branches(kinds)}; give a dictionary by branch name")
    return {fitting[0]: source}


def with_texts(value: Input, kinds: Mapping[str, str]) -> Input:
    """One input in which strings for branches of texts are ``Texts``: neither paths nor addresses."""
    if not isinstance(value, dict):
        return value
    named = cast("dict[str, Any]", value)
    return {name: _as_source(item, kinds[name]) if _reads_text(kinds, name) else item for name, item in named.items()}


def _reads_text(kinds: Mapping[str, str], name: str) -> bool:
    return name in kinds and KINDS[kinds[name]].lists == "texts"


def urls_in(value: object) -> list[str]:
    """Addresses of one input: itself, or among the values of a dictionary by branch name."""
    values = list(cast("dict[str, object]", value).values()) if isinstance(value, dict) else [value]
    return [item for item in values if is_url(item)]


def require_urls_allowed(value: object, allowed: bool) -> None:
    """Raise InputError for an input with an address where a call allows none."""
    if not allowed and (urls := urls_in(value)):
        raise InputError(f"{urls[0]}: is an address, and nothing is downloaded unless allow_urls=True (--allow-urls)")


def input_kinds(model: PrefixLM) -> dict[str, str]:
    """Kind of input (image, audio, signals, text) by branch name; "audio" too where a model transcribes."""
    kinds: dict[str, str] = {name: model.encoder(name).input_kind for name in model.encoders}
    return kinds | ({} if model.transcriber is None else {"audio": "audio"})


def source_and_span(value: InputSource) -> tuple[Source, float, float | None]:
    """Arguments of an encoder's ``preprocess``: a source, and the seconds from which and to which it is read."""
    return (value.source, value.start, value.end) if isinstance(value, InputRef) else (value, 0.0, None)


def _as_source(value: Any, kind: str | None = None) -> Any:
    """``value``; a list of numbers as the tuple, a list of pictures as the sequence that encoders take, a text so."""
    if kind is not None and KINDS[kind].lists == "texts":
        return _as_texts(value)
    value = _plain(value)
    if not isinstance(value, list):
        return value
    items = cast("list[Any]", value)
    if is_numbers(items):
        return tuple(items)
    return FrameSequence(items) if kind is not None and KINDS[kind].lists == "files" else items


def _as_texts(value: object) -> object:
    """A string, or a list of strings, as ``Texts``; anything else unchanged."""
    if not isinstance(value, list):
        return Texts((value,)) if isinstance(value, str) else value
    items = cast("list[object]", value)
    texts = [text for text in items if isinstance(text, str)]
    return Texts(tuple(texts)) if len(texts) == len(items) else items


def _plain(value: Any) -> Any:
    """``value``; sounds and pictures in the forms of other libraries as ``Waveform``, bytes or path."""
    if isinstance(value, dict):
        row = cast("dict[str, Any]", value)
        if {"array", "sampling_rate"} <= row.keys():
            return Waveform(row["array"], row["sampling_rate"])
        if row.keys() == {"bytes", "path"}:
            return row["path"] if row["bytes"] is None else row["bytes"]
        return row
    if callable(getattr(value, "get_all_samples", None)):  # the decoder of torchcodec, which ``datasets`` gives
        samples = value.get_all_samples()
        return Waveform(samples.data, samples.sample_rate)
    pair = _values_and_rate(value)
    return value if pair is None else pair


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float)


def _values_and_rate(value: Any) -> Waveform | None:
    """(values, rate) or (rate, values) as a ``Waveform``; None for anything else, and for a pair of numbers."""
    if not isinstance(value, tuple) or isinstance(value, Waveform) or len(cast("tuple[Any, ...]", value)) != 2:
        return None
    first, second = cast("tuple[Any, Any]", value)
    for values, rate in ((first, second), (second, first)):
        if _is_rate(rate) and (is_array(values) or is_numbers(values)):
            return Waveform(values, rate)
    return None


def _kind_among(value: InputSource, kinds: Mapping[str, str]) -> str | None:
    """The kind of ``value`` as a model reads it, None where it does not tell; InputError where no branch reads it."""
    if not kinds:
        raise InputError(f"{_name(value)}: this model reads no files, only a context")
    kind = kind_of(source_and_span(value)[0])
    if kind is None or kind in kinds.values():
        return kind
    other = KINDS[kind].read_as
    if other is None or other not in kinds.values():
        raise InputError(f"{_name(value)}: is {KINDS[kind].noun}, but this model reads {_branches(kinds)}")
    return other


def _name(value: InputSource) -> str:
    return name_of(source_and_span(value)[0])


def _branches(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{KINDS[kind].noun} (branch {name!r})" for name, kind in kinds.items())
