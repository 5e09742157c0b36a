"""Captions that do not fit: each named by its line, left out or cut; few texts are counted, and those in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mmprefix.data import long_captions
from mmprefix.data.long_captions import fit_captions
from mmprefix.data.manifest import Example, InputRef
from mmprefix.prompt_template import PromptTemplate


class WordRoom:
    """Room of a decoder whose tokens are letters: the text's own, and one for its end."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.batches: list[int] = []
        self.single = 0
        self.longest: Mapping[str, InputRef] = {}

    def measure(self, longest: Mapping[str, InputRef]) -> None:
        self.longest = longest

    def left(self, inputs: Mapping[str, InputRef], texts: tuple[str, str], *, exact: bool = False) -> int:
        prefix = sum(10 if exact and ref.path == "short" else 20 for ref in inputs.values())
        return self.limit - prefix - sum(map(len, texts))

    def count(self, texts: list[str]) -> list[int]:
        self.batches.append(len(texts))
        return [len(text) + 1 for text in texts]

    def length(self, texts: tuple[str, str], text: str) -> int:
        self.single += 1
        return len(text) + 1

    def shorten(self, texts: tuple[str, str], text: str, most: int) -> str:
        return text[: max(0, most - 1)]


def row(number: int, *captions: str, path: str = "long", **more: Any) -> Example:
    example = Example(str(number), {"image": InputRef(path)}, captions, file="m.csv", line=number)
    return replace(example, **more)


def test_a_long_caption_is_named_by_its_own_line() -> None:
    rows = [row(2, "a" * 79), row(3, "b", "c" * 80, "d", lines=(3, 7, 9)), row(4, "e" * 90, path="short")]
    kept, faults = fit_captions(rows, {}, WordRoom(100))
    assert [example.id for example in kept] == ["2"]
    rest = "of the decoder's 100 positions are left for it after prefix and prompt"
    assert [(fault.line, fault.message.split(" (")[0]) for fault in faults] == [
        (7, f"id '3': caption 2 has 81 tokens, and 80 {rest}"),
        (4, f"id '4': its caption has 91 tokens, and 90 {rest}"),
    ]
    assert "data.long_captions skip leaves it out, cut shortens it" in faults[0].message
    assert fit_captions(rows[:1], {}, WordRoom(100)) == (rows[:1], [])
    assert [len(fit_captions([row(2, "a" * 89, path="short")], {}, WordRoom(100))[n]) for n in (0, 1)] == [1, 0]


def test_skip_and_cut() -> None:
    rows = [row(2, "one", "c" * 80, "three", lines=(2, 3, 4)), row(5, "d" * 200), row(6, "fine")]
    kept, faults = fit_captions(rows, {}, WordRoom(100), mode="skip")
    assert (kept, faults) == ([row(2, "one", "three", lines=(2, 4)), rows[2]], [])
    kept, faults = fit_captions(rows, {}, WordRoom(100), mode="cut")
    assert ([example.captions for example in kept], faults) == (
        [("one", "c" * 79, "three"), ("d" * 79,), ("fine",)],
        [],
    )
    assert kept[0].lines == (2, 3, 4)
    (only,), faults = fit_captions([row(2, "fine"), row(3, "x", prompt="p" * 80)], {}, WordRoom(100), mode="cut")
    assert (only.id, [fault.line for fault in faults]) == ("2", [3])  # no room for a word


def test_prompt_and_every_context_take_room() -> None:
    text = "a" * 60

    def count(usual: str = "", **more: Any) -> int:
        return len(fit_captions([row(2, text, **more)], {}, WordRoom(100), prompt=usual)[1])

    assert count() == count("p" * 19) == count("p" * 50, prompt="") == 0
    assert count("p" * 20) == count(prompt="p" * 20) == 1
    assert count(context="c", contexts=("c" * 20,)) == 1


def test_the_longest_input_of_each_branch_is_measured() -> None:
    room = WordRoom(100)
    refs = [InputRef(name) for name in "abc"]
    rows = [Example(str(n), {"audio": ref}, ("x",)) for n, ref in enumerate(refs)]
    fit_captions(rows, {("audio", ref): seconds for ref, seconds in zip(refs, (1.0, 3.0, 2.0), strict=True)}, room)
    assert room.longest == {"audio": refs[1]}


def test_many_captions_are_counted_in_large_batches() -> None:
    texts = [f"a man number {number} walks along a street with a dog" for number in range(1000)]
    rows = [row(n, *texts[n % 200 * 5 : n % 200 * 5 + 5]) for n in range(20_000)]
    plain, narrow = WordRoom(1024), WordRoom(80)
    assert len(fit_captions(rows, {}, plain)[0]) == 20_000
    assert plain.batches == []  # none is long enough to be counted
    assert len(fit_captions(rows, {}, narrow)[0]) == 20_000
    assert set(narrow.batches[:-1]) <= {long_captions._BATCH}
    assert sum(narrow.batches) == 100_000


@pytest.mark.parametrize("text", ["é" * 10, "ﷺ" * 10])
def test_letters_beyond_ascii_are_counted(text: str) -> None:
    room = WordRoom(200)
    fit_captions([row(2, text)], {}, room)
    assert room.batches == [1]  # one of these may be many tokens


def test_a_caption_has_to_fit_behind_the_longest_earlier_texts() -> None:
    wording = PromptTemplate(context="{context}", history="{history}\n", history_texts=2)
    texts = InputRef("long", texts=("a" * 20, "bb", "c" * 30))
    example = Example("1", {"history": texts}, ("d" * 20,), context="p", file="m.jsonl", line=1)
    room = 20 + 20 + 1 + 30 + 1 + len("p") + 21  # the reference counts as 20 here
    for limit, fits in ((room, True), (room - 1, False)):
        kept, faults = fit_captions([example], {}, WordRoom(limit), wording=wording)
        assert (len(kept), len(faults)) == (int(fits), int(not fits))
    assert not fit_captions([example], {}, WordRoom(room - 52))[1]
