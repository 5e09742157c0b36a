"""Coverage of a schema by rows: faults with their line, counts against plain counting, and the printed lines."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from mmprefix.data.manifest import Example
from mmprefix.slu.coverage import lines, schema_coverage
from mmprefix.slu.schema import Label, Schema


def label(name: str, values: tuple[str, ...] = (), slots: tuple[str, ...] | None = None) -> Label:
    return Label(name, name, f"to {name}", (f"{name}?",), values=values, slots=slots)


HOME = Schema(
    name="home",
    intent_questions=("what?",),
    intents={"heat": label("heat"), "light": label("light"), "ask": label("ask", slots=("thing",))},
    slots={"room": label("room", values=("hall", "roof")), "thing": label("thing"), "day": label("day")},
)
NO_SLOTS = HOME.only(slots=[])
NO_INTENTS = HOME.only(intents=[])


def rows(*fields: dict[str, Any]) -> list[Example]:
    return [Example(str(n), {}, file="m.jsonl", line=n, extra=extra) for n, extra in enumerate(fields, 1)]


def figures(*fields: dict[str, Any], schema: Schema = HOME, intent_field: str = "intent") -> dict[str, Any]:
    """Figures of rows that all fit the schema."""
    faults, result = schema_coverage(rows(*fields), schema, intent_field)
    assert faults == []
    return result


# ------------------------------------------------------------------------------------------------------------ faults


def test_every_row_that_does_not_fit_is_a_fault_with_its_line() -> None:
    faults, result = schema_coverage(
        rows(
            {"intent": "heat", "slots": {"room": "hall"}},
            {"intent": "cool"},
            {"intent": "light", "slots": {"rom": "hall", "room": "attic"}},
            {"slots": {"thing": "dog"}},
            {"intent": "ask", "slots": {"room": "hall"}},
            {"intent": ["ask"]},
            {"intent": "ask", "slots": "no json"},
            {"intent": "ask", "slots": {"thing": "none"}},
        ),
        HOME,
    )
    assert [(fault.file, fault.line) for fault in faults] == [("m.jsonl", line) for line in range(2, 9)]
    assert [fault.message for fault in faults] == [
        "intent 'cool' is not in schema home; choose from heat, light, ask",
        "slot 'rom' is not in schema home; did you mean 'room'?; "
        "slot 'room': 'attic' is not among its values; choose from hall, roof",
        "no intent in the field 'intent' (--intent-field names another)",
        "slot 'room': intent 'ask' has no such slot; choose from thing",
        'intent: must be a text or a number, found ["ask"]',
        'slots: a text must be JSON, found "no json"',
        "slot 'thing': 'none' means that it is absent; leave it out",
    ]
    assert result["intents"] == {"heat": 1, "light": 0, "ask": 0}  # a row at fault counts nowhere
    assert result["slots"] == {"room": 1, "thing": 0, "day": 0}
    assert (result["free"], result["in_transcript"], result["not_in_transcript"]) == (0, 0, 0)


def test_an_intent_is_needed_only_where_the_schema_has_intents() -> None:
    faults, _ = schema_coverage(rows({"slots": {"thing": "dog"}}), NO_INTENTS)
    assert faults == []
    faults, _ = schema_coverage(rows({"intent": "heat", "slots": {"attic": "x"}}), NO_SLOTS)
    assert faults == []  # a schema without slots asks about none
    faults, _ = schema_coverage(rows({"deed": "heat"}), HOME, "deed+way")
    assert [fault.message for fault in faults] == ["no intent in the field 'deed+way' (--intent-field names another)"]


def test_the_intent_may_stand_in_other_fields() -> None:
    parts = Schema("parts", ("?",), {"a_b": label("a_b"), "3_b": label("3_b")}, {})
    result = figures({"x": "a", "y": "b"}, {"x": 3, "y": "b"}, {"x": "a", "y": "b"}, schema=parts, intent_field="x+y")
    assert result["intents"] == {"a_b": 2, "3_b": 1}
    example = Example("1", {}, label="heat")  # a known column of a manifest, not one of the others
    faults, result = schema_coverage([example], NO_SLOTS, "label")
    assert (faults, result["intents"]["heat"]) == ([], 1)


# ----------------------------------------------------------------------------------------------------------- figures


def test_figures_equal_plain_counting() -> None:
    rng = np.random.default_rng(0)
    words = ["dog", "a Cat", "red, blue", "bell"]
    fields: list[dict[str, Any]] = []
    for n in range(60):
        slots: dict[str, list[str]] = {}
        for name, choices in (("room", ["hall", "roof"]), ("thing", words), ("day", words)):
            if rng.random() < 0.5:
                slots[name] = [str(word) for word in rng.choice(choices, rng.integers(1, 3))]
        texts: dict[str, Any] = {} if n % 5 == 0 else {"transcript": " and ".join(rng.permutation(words)[:2])}
        fields.append({"intent": ("heat", "light")[int(rng.integers(2))], "slots": slots, **texts})
    result = figures(*fields)
    assert result["name"] == "home"
    assert result["intents"] == {"ask": 0, **Counter(row["intent"] for row in fields)}
    assert result["slots"] == Counter(name for row in fields for name in row["slots"])
    free = [
        (row.get("transcript"), value)
        for row in fields
        for name in ("thing", "day")
        for value in row["slots"].get(name, [])
    ]
    assert result["free"] == len(free)
    spoken = [value.lower() in text.lower() for text, value in free if text is not None]
    assert 0 < result["in_transcript"] == spoken.count(True)
    assert 0 < result["not_in_transcript"] == spoken.count(False)
    assert len(spoken) < result["free"]  # values of rows without a transcript count in neither
    assert 0 < result["with_separator"] == sum(", " in value for _, value in free)


def test_labels_come_by_their_count_and_all_of_them() -> None:
    result = figures({"intent": "light"}, {"intent": "light"}, {"intent": "ask", "slots": {"thing": "x"}})
    assert list(result["intents"].items()) == [("light", 2), ("ask", 1), ("heat", 0)]
    assert list(result["slots"].items()) == [("thing", 1), ("room", 0), ("day", 0)]


def test_a_value_occurs_whatever_its_case_and_spaces() -> None:
    def spoken(value: str, transcript: Any) -> list[int]:
        result = figures({"intent": "heat", "slots": {"thing": value}, "transcript": transcript})
        return [result["in_transcript"], result["not_in_transcript"]]

    assert spoken("Red  DOG.", "a red dog ran") == [1, 0]
    assert spoken("dog", "A\nDOG.") == [1, 0]
    assert spoken("dog", "") == [0, 1]  # an empty transcript is one
    assert spoken("dog", None) == spoken("dog", ["dog"]) == [0, 0]


def test_values_of_a_closed_slot_are_not_looked_for() -> None:
    result = figures({"intent": "heat", "slots": {"room": "hall"}, "transcript": "warm it"})
    assert (result["free"], result["not_in_transcript"], result["with_separator"]) == (0, 0, 0)


def test_nothing_to_count() -> None:
    assert schema_coverage([], HOME)[0] == []
    result = figures()
    assert set(result["intents"].values()) == set(result["slots"].values()) == {0}
    assert result["free"] == 0


# ------------------------------------------------------------------------------------------------------------- lines


def test_printed_lines() -> None:
    fields = [
        {"intent": "light", "slots": {"thing": "dog"}, "transcript": "a cat"},
        {"intent": "light", "slots": {"thing": ["a, b", "cat"]}, "transcript": "a cat"},
    ]
    assert list(lines(figures(*fields))) == [
        "  intents   1 of 3 in schema home: light 2",
        "  slots     1 of 3 in schema home: thing 2",
        "  values    2 of 3 do not occur in their row's transcript",
        "  values    1 contain ', ', which separates several values",
    ]
    good = figures({"intent": "heat", "slots": {"thing": "cat"}, "transcript": "a cat"})
    assert list(lines(good)) == [
        "  intents   1 of 3 in schema home: heat 1",
        "  slots     1 of 3 in schema home: thing 1",
    ]
    assert list(lines(figures())) == ["  intents   0 of 3 in schema home", "  slots     0 of 3 in schema home"]
    assert list(lines(figures({"slots": {"day": "x"}}, schema=NO_INTENTS))) == [
        "  slots     1 of 3 in schema home: day 1"
    ]
    assert list(lines(figures({"intent": "heat"}, schema=NO_SLOTS))) == ["  intents   1 of 3 in schema home: heat 1"]
