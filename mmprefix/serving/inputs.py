"""Inputs of requests → values in memory for a Predictor: bytes, texts, numbers. No text of a client becomes a path."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmprefix.errors import InputError, require_text
from mmprefix.inference.inputs import assign_to_branches
from mmprefix.media.kinds import KINDS, kind_of
from mmprefix.media.source import Texts, is_url
from mmprefix.serving.calls import ServedModel
from mmprefix.serving.faults import RequestError
from mmprefix.serving.security.public_urls import fetch_public
from mmprefix.trust.limits import require_below

_DATA = re.compile(r"data:[\w.+/-]*(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class InputReader:
    """Reads inputs of requests for ``model``; ``allow_urls``: public addresses are fetched, for ``seconds`` at most."""

    model: ServedModel
    allow_urls: bool = False
    seconds: float = 20.0

    def read(self, value: str | dict[str, Any]) -> Any:
        """Value in memory of one input as a request's JSON has it. Raises InputError, RequestError for a bad one."""
        if isinstance(value, str):
            return self.content(value)
        kinds = self.model.predictor.kinds
        if not value or not value.keys() <= kinds.keys():
            raise InputError(f"inputs: this model reads {', '.join(kinds) or 'no files'}; name one or more of these")
        return {name: self._of_branch(name, kinds[name], item) for name, item in value.items()}

    def content(self, text: str) -> bytes:
        """Bytes of a file as base64, as a data: address, or at an http(s) address where these are allowed."""
        if is_url(text):
            if not self.allow_urls:
                raise RequestError(400, "this service fetches no addresses (--allow-urls); send the file", code="url")
            return fetch_public(text, self.seconds)
        head = _DATA.match(text[:500])
        if head is None and text[:5].lower() == "data:":
            raise InputError("a data: address must be in base64, as data:image/png;base64,...")
        return decoded(text[head.end() :] if head else text)

    def _of_branch(self, name: str, kind: str, item: Any) -> Any:
        lists = KINDS[kind].lists
        if lists == "texts":
            texts = [item] if isinstance(item, str) else item
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"inputs: {name} is a text, or a list of texts")
            for text in texts:
                require_text(f"inputs: {name}", text)
            return Texts(tuple(texts))
        if isinstance(item, str):
            return self.content(item)
        if lists == "numbers" and item and all(isinstance(number, int | float) for number in item):
            return tuple(float(number) for number in item)
        raise InputError(f"inputs: {name} is {KINDS[kind].noun}; give it in base64")


def decoded(text: str) -> bytes:
    """Bytes of base64 ``text``, of either alphabet; white space and missing padding do no harm."""
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        content = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the input is neither base64, a data: address nor an address") from None
    if not content:
        raise InputError("the input is empty; give a file's bytes in base64")
    return content


def checked(model: ServedModel, value: Any) -> tuple[Any, tuple[tuple[str, int], ...]]:
    """``value`` by branch, and its shape: branches and, of what has time, the power of two of its seconds.

    Reads headers alone. Raises InputError for what the model does not read, empty files, and too long ones.
    """
    if isinstance(value, bytes):
        if not value:
            raise InputError("the file is empty")
        require_below("bytes", len(value), "the given bytes")
    predictor = model.predictor
    sources = assign_to_branches(value, predictor.kinds)
    return sources, tuple((name, _length(source, predictor.kinds[name])) for name, source in sorted(sources.items()))


def _length(source: Any, kind: str) -> int:
    if not KINDS[kind].has_time:
        return 0
    seconds = KINDS[kind].inspect(source, 0.0, None, False).seconds or 0.0
    require_below("seconds", seconds, "the given bytes")
    return max(1, math.ceil(math.log2(max(seconds, 1e-3))))


def kinds_of(values: Sequence[bytes]) -> list[str]:
    """Kind of each file by its first bytes; what does not tell is taken for a sound."""
    return [kind_of(value) or "audio" for value in values]
