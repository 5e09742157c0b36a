"""Keyword arguments of a Predictor's calls, and the decoding that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict

from mmprefix.generation.options import GenerateOptions


class CallOptions(TypedDict, total=False):
    """Keyword arguments of every call on inputs.

    ``prompt`` (one for all, or one an input) stands before the text; by default the one trained with. ``context`` is
    what a model reads beside its input, such as a transcript. ``batch_size``: inputs at once, by default 16.
    ``user`` (one for all, or one an input) is whom a model that was trained with users writes for, and ``history`` that
    user's earlier texts (a list, or a list of lists, one an input), in place of those of ``Predictor.users``.
    ``allow_urls``: inputs may be addresses (http, https), which are then downloaded.
    """

    prompt: str | Sequence[str] | None
    context: str | Sequence[str] | None
    user: str | Sequence[str | None] | None
    history: Sequence[str] | Sequence[Sequence[str]] | None
    batch_size: int
    allow_urls: bool


class GenerateOverrides(CallOptions, total=False):
    """Keyword arguments of a call that writes: decoding other than the model's own (see ``GenerateOptions``).

    ``num_beams`` above 1 searches with beams. A ``seed``, ``temperature`` or ``top_p`` asks for sampling; beside beams
    a ``temperature`` changes what they add up. ``must_hold`` searches as this library does where a model's own search
    is ClipCap's. ``agreement``: weight of what neighbours add to a text's score (default 3; 0: they do not choose).
    """

    num_beams: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    no_repeat_ngram_size: int | None
    length_penalty: float | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    start_with: str | None
    must_hold: Sequence[str] | None
    avoid: Sequence[str] | None
    agreement: float | None


_ANY_SEARCH = (
    "max_new_tokens", "min_new_tokens", "no_repeat_ngram_size", "length_penalty", "start_with", "must_hold", "avoid"
)  # fmt: skip


def refuse_unknown(options: CallOptions, allowed: type[CallOptions]) -> None:
    """Raise TypeError for an unknown name: Python itself does not hold a call to the names of a TypedDict."""
    for name in options.keys() - allowed.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {name!r}; there are {', '.join(allowed.__annotations__)}")


def decoding(own: GenerateOptions, num_return: int, overrides: GenerateOverrides) -> GenerateOptions:
    """A model's ``own`` options with those of a call; what belongs to another way of searching gives way to them."""
    refuse_unknown(overrides, GenerateOverrides)
    beams, temperature = overrides.get("num_beams"), overrides.get("temperature")
    drawn = {name: value for name in ("seed", "top_p") if (value := overrides.get(name)) is not None}
    samples = bool(drawn) or (temperature is not None and (beams is None or beams == 1))
    if beams is None and not samples and not own.sample and num_return > own.num_beams:
        beams = num_return
    changes: dict[str, Any] = {"num_return": num_return}
    changes |= {name: value for name in _ANY_SEARCH if (value := overrides.get(name)) is not None}
    if samples:
        changes |= {"sample": True, "num_beams": 1 if beams is None else beams, "ranking": "default", **drawn}
    elif beams is not None:
        changes |= {"sample": False, "top_p": 1.0, "seed": None, "num_beams": beams}
        changes |= {"temperature": 1.0} if own.sample or beams == 1 else {}
        changes |= {"ranking": "default"} if beams == 1 else {}
    if changes.get("must_hold"):
        changes["ranking"] = "default"
    changes |= {} if temperature is None else {"temperature": temperature}
    changes = {name: value for name, value in changes.items() if getattr(own, name) != value}
    return replace(own, **changes) if changes else own
