"""Faults of a manifest's rows, and the lines that report them: equal faults are counted, not repeated."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprefix.media.search import find_folder

_REPEATED = 6  # so many rows with the same fault are one line
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\d+(?:\.\d+)?")  # what equal messages may differ in


@dataclass(frozen=True)
class RowFault:
    """Fault of one line of a manifest; ``path`` is the file that the message is about, as the message has it."""

    file: str
    line: int
    message: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"

    @property
    def kind(self) -> str:
        """The message without what belongs to this row: the same for all rows with the same fault."""
        return _OWN.sub("", self.message.replace(self.path, "") if self.path else self.message)


def listing(faults: Iterable[RowFault], most: int = 20, near: str | Path | None = None) -> str:
    """One line a fault, and one for all with the same fault, at most ``most`` of them; last the number of the others.

    Where files are missing, a further line names the folder that holds them, if it is ``near`` (None: the folder of
    the manifest) or below the working directory.
    """
    groups: dict[tuple[str, str], list[RowFault]] = defaultdict(list)
    for fault in faults:
        groups[fault.file, fault.kind].append(fault)
    shown: list[list[RowFault]] = []
    for group in groups.values():
        shown += [group] if len(group) >= _REPEATED else [[fault] for fault in group]
    shown.sort(key=lambda group: (group[0].file, group[0].line))
    lines = [_line(group) for group in shown[:most]]
    if len(shown) > most:
        lines.append(f"... and {sum(map(len, shown[most:]))} more")
    return "\n".join([*lines, *_hints(groups.values(), near)])


def _line(group: Sequence[RowFault]) -> str:
    if len(group) == 1:
        return str(group[0])
    return f"{group[0]} ({len(group)} rows like this, to line {group[-1].line})"


def _hints(groups: Iterable[Sequence[RowFault]], near: str | Path | None) -> Iterable[str]:
    """A line for each manifest whose missing files lie in another folder."""
    for group in groups:
        names = sorted({fault.path for fault in group if fault.path and "no such file" in fault.message})
        folder = find_folder(names, near or Path(group[0].file).parent) if len(names) > 1 else None
        present = 0 if folder is None else sum(os.path.exists(folder / name) for name in names)
        if 2 * present >= len(names) > 1:  # one name may be anywhere by chance
            yield f"{present} of {len(names)} files exist under {folder}: --media-root {folder}"
