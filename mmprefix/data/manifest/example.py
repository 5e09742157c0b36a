"""Example: one good row of a manifest, or several that are one, and the files that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmprefix.data.manifest.faults import RowFault
from mmprefix.media.source import FrameSequence, Source, Texts


@dataclass(frozen=True)
class InputRef:
    """A file, or a part of it from ``start`` to ``end`` seconds (None: to its end)."""

    path: str  # of several pictures the first, of numbers and texts ""
    start: float = 0.0
    end: float | None = None
    numbers: tuple[float, ...] | None = None  # instead of a file
    pictures: tuple[str, ...] | None = None  # paths of the frames of a video, in order
    texts: tuple[str, ...] | None = None  # instead of a file

    @property
    def source(self) -> Source:
        """Input of an encoder's ``preprocess``: the file's path, the frames of a video, the numbers or texts."""
        if self.pictures is not None:
            return FrameSequence(self.pictures)
        if self.texts is not None:
            return Texts(self.texts)
        return self.path if self.numbers is None else self.numbers


@dataclass(frozen=True)
class Example:
    """Good row of a manifest. ``prompt`` is None where the row has none; ``captions`` may be empty."""

    id: str
    inputs: Mapping[str, InputRef]
    captions: tuple[str, ...] = ()
    prompt: str | None = None
    context: str = ""
    contexts: tuple[str, ...] = ()  # further texts, of which training may draw the context
    label: str | None = None
    user: str | None = None
    split: str | None = None
    file: str = ""
    line: int = 0  # the first one, where the row has several
    lines: tuple[int, ...] = ()  # of each caption, where the captions of an input have a row each
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """Files of the row, and last its line in the manifest."""
        return [*(ref.path for ref in self.inputs.values() if ref.path), f"{self.file}:{self.line}"]

    def fault(self, message: str) -> RowFault:
        """Fault of this row with this ``message``."""
        path = next((path for path in self.sources[:-1] if path in message), "")
        return RowFault(self.file, self.line, message, path)

    @property
    def rows(self) -> int:
        """Number of rows of the manifest that this example is made of."""
        return max(1, len(set(self.lines)))
