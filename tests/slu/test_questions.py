"""Questions of a schema, their sampling in training, and the way back from answers to intent and slots."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from mmprefix.errors import InputError
from mmprefix.slu.annotation import join_values, schema_errors, split_values
from mmprefix.slu.questions import (
    Annotation,
    Answer,
    Framing,
    Question,
    build_questions,
    parse_answers,
    read_annotation,
    sample_question_answers,
    to_slurp,
)
from mmprefix.slu.schema import Label, Schema, read_schema

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FRAMINGS: tuple[Framing, ...] = get_args(Framing)


def label(name: str, *questions: str, values: tuple[str, ...] = (), slots: tuple[str, ...] | None = None) -> Label:
    questions = questions or (f"{name}?", f"{name}, say?")
    return Label(name, name, f"do {name}", questions, values=values, slots=slots, scenario="home", action=name)


HOME = Schema(
    name="home",
    intent_questions=("what?", "what now?"),
    intents={name: label(name) for name in ("heat", "light", "music")},
    slots={"date": label("date"), "size": label("size", values=("small", "large")), "room": label("room")},
)
DARK = Annotation("light", {"room": ("attic",), "size": ("large",)})


def answered(pairs: list[tuple[Question, str]]) -> list[Answer]:
    """Answers without scores."""
    return [Answer(question, text, 0.0, None) for question, text in pairs]


def annotation_of(understood: dict[str, Any]) -> Annotation:
    slots = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in understood["slots"].items()}
    return Annotation(understood["intent"], slots)


# ----------------------------------------------------------------------------------------------------------- questions


def test_a_schema_gives_a_question_for_each_label() -> None:
    first, date, size, room = build_questions(HOME)
    assert first == Question("intent", None, "what?", ("do heat", "do light", "do music"))
    assert date == Question("slot", "date", "date?", None)
    assert size == Question("slot", "size", "size?", ("small", "large", "none"))
    assert room.choices is None
    questions = build_questions(HOME, "yesno")
    assert questions[0] == Question("yesno", "heat", "heat?", ("yes", "no"))
    assert [question.label for question in questions] == ["heat", "light", "music", "date", "size", "room"]


def test_no_question_about_the_only_intent() -> None:
    assert [question.kind for question in build_questions(HOME.only(["heat"]))] == ["slot"] * 3
    assert [question.kind for question in build_questions(HOME.only(["heat"]), "yesno")] == ["yesno", *["slot"] * 3]
    assert parse_answers(HOME.only(["heat"]), [])["intent"] == "heat"
    assert parse_answers(HOME, [])["intent"] is None


def test_training_asks_the_questions_of_use() -> None:
    for framing in FRAMINGS:
        assert [question for question, _ in sample_question_answers(HOME, DARK, framing, None)] == build_questions(
            HOME, framing
        )


def test_true_answers() -> None:
    answers = {question.label: answer for question, answer in sample_question_answers(HOME, DARK, "choice", None)}
    assert answers == {None: "do light", "date": "none", "size": "large", "room": "attic"}
    answers = {question.label: answer for question, answer in sample_question_answers(HOME, DARK, "yesno", None)}
    assert (answers["heat"], answers["light"], answers["music"]) == ("no", "yes", "no")
    two = sample_question_answers(HOME, Annotation("heat", {"date": ("today", "friday")}), "choice", None)
    assert two[1][1] == "today, friday"


def test_phrasings_and_absent_slots_are_drawn() -> None:
    rng = np.random.default_rng(0)
    gold = Annotation("light", {"room": ("attic",)})
    drawn = [sample_question_answers(HOME, gold, "choice", rng) for _ in range(400)]
    assert {len(pairs) for pairs in drawn} == {3}  # the intent, the room, and one that is absent
    texts = Counter(question.text for pairs in drawn for question, _ in pairs)
    assert texts["what?"] + texts["what now?"] == 400
    assert 150 < texts["what?"] < 250
    assert 60 < texts["size, say?"] < 140
    absent = Counter(question.label for pairs in drawn for question, answer in pairs if answer == "none")
    assert set(absent) == {"date", "size"}
    assert 150 < absent["date"] < 250


@pytest.mark.parametrize(("absent", "expected"), [(0.0, 0.0), (0.5, 1.0), (0.75, 1.5), (1.0, 2.0), (9.0, 3.0)])
def test_number_of_absent_slots(absent: float, expected: float) -> None:
    rng = np.random.default_rng(1)
    wide = Schema("wide", ("what?",), {}, {name: label(name) for name in "abcde"})
    gold = Annotation(None, {"a": ("x",), "b": ("y",)})
    counts = [
        sum(answer == "none" for _, answer in sample_question_answers(wide, gold, "choice", rng, absent=absent))
        for _ in range(500)
    ]
    assert np.mean(counts) == pytest.approx(expected, abs=0.1)
    none = [len(sample_question_answers(wide, Annotation(None, {}), "choice", rng)) for _ in range(20)]
    assert set(none) == {1}  # an utterance without slots is asked about one


@pytest.mark.parametrize(("no", "expected"), [(0.0, 0.0), (1.0, 1.0), (1.5, 1.5), (9.0, 2.0)])
def test_number_of_other_intents(no: float, expected: float) -> None:
    rng = np.random.default_rng(2)
    drawn = [
        [a for q, a in sample_question_answers(HOME, DARK, "yesno", rng, no=no) if q.kind == "yesno"]
        for _ in range(500)
    ]
    assert all(answers.count("yes") == 1 for answers in drawn)
    assert np.mean([answers.count("no") for answers in drawn]) == pytest.approx(expected, abs=0.1)


def test_held_out_labels_are_never_drawn() -> None:
    for framing in FRAMINGS:
        for rng in (None, np.random.default_rng(3)):
            pairs = [
                pair
                for _ in range(50)
                for pair in sample_question_answers(HOME, DARK, framing, rng, held_out=("music", "room"))
            ]
            texts = {text for question, answer in pairs for text in (answer, *(question.choices or ()))}
            assert not texts & {"do music", "attic"}
            assert not {question.label for question, _ in pairs} & {"music", "room"}
    hidden = sample_question_answers(HOME, DARK, "choice", None, held_out=["light", "date"])
    assert [question.label for question, _ in hidden] == ["size", "room"]  # no question about its own intent
    hidden = sample_question_answers(HOME, DARK, "yesno", None, held_out=["light", *HOME.slots])
    assert [answer for _, answer in hidden] == ["no", "no"]
    assert (
        sample_question_answers(HOME, DARK, "choice", None, held_out=["heat", "music", *HOME.slots]) == []
    )  # one intent is no choice
    with pytest.raises(InputError, match=r"held_out: schema home has no 'rooms'; did you mean 'room'\?"):
        sample_question_answers(HOME, DARK, "choice", None, held_out=["rooms"])


def test_no_question_about_an_unknown_intent() -> None:
    gold = Annotation(None, DARK.slots)
    for framing in FRAMINGS:
        assert {question.kind for question, _ in sample_question_answers(HOME, gold, framing, None)} == {"slot"}


def test_sampling_refuses_labels_and_framings_that_do_not_exist() -> None:
    with pytest.raises(InputError, match=r"intent 'lihgt' is not in schema home; did you mean 'light'\?"):
        sample_question_answers(HOME, Annotation("lihgt", {}), "choice", None)
    with pytest.raises(InputError, match="framing 'choose': use one of choice, yesno"):
        sample_question_answers(HOME, DARK, "choose", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="framing 'choose'"):
        build_questions(HOME, "choose")  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------------------- answers


def test_answers_to_choices() -> None:
    first, date, size, room = build_questions(HOME)
    logs = {"do heat": -3.0, "do light": -0.1, "do music": -4.0}
    sizes = {"small": -2.0, "large": -0.2, "none": -5.0}
    answers = [
        Answer(first, "do light", -0.1, logs),
        Answer(date, " None.", -0.3, None),
        Answer(size, "large", -0.2, sizes),
        Answer(room, "attic, hall", -1.5, None),
    ]
    assert parse_answers(HOME, answers) == {
        "intent": "light",
        "slots": {"size": "large", "room": ["attic", "hall"]},
        "scores": {
            "intent": {"heat": -3.0, "light": -0.1, "music": -4.0},
            "slots": {"date": -0.3, "size": -0.2, "room": -1.5},
        },
    }


def test_generated_answers_count_where_they_fit_the_schema() -> None:
    first, date, size, room = build_questions(HOME)
    answers = [Answer(first, "Do light.", -1, None), Answer(size, "LARGE", -2, None), Answer(room, "", -3, None)]
    result = parse_answers(HOME, answers)
    assert (result["intent"], result["slots"]) == ("light", {"size": "large"})
    assert result["scores"]["intent"] == {"light": -1.0}
    answers = [Answer(first, "dance", -1, None), Answer(size, "huge", -2, None), Answer(date, "monday, none", -3, None)]
    result = parse_answers(HOME, answers)
    assert (result["intent"], result["slots"], result["scores"]["intent"]) == (None, {"date": "monday"}, {})


def test_answers_of_yes_and_no() -> None:
    questions = build_questions(HOME.only(slots=[]), "yesno")
    logs = [{"yes": -2.0, "no": -0.5}, {"yes": -1.0, "no": -1.5}, {"yes": -0.1, "no": -0.2}]
    answers = [
        Answer(q, max(row, key=lambda word: row[word]), 0.0, row) for q, row in zip(questions, logs, strict=True)
    ]
    result = parse_answers(HOME, answers)
    assert result["intent"] == "light"  # the highest log odds, though music's yes is the likeliest
    assert result["scores"]["intent"] == pytest.approx({"heat": -1.5, "light": 0.5, "music": 0.1})
    without = [
        Answer(q, text, score, None)
        for q, text, score in zip(questions, ("no", "Yes.", "yes"), (0, -2, -1), strict=True)
    ]
    assert parse_answers(HOME, without)["intent"] == "music"
    assert parse_answers(HOME, [Answer(q, "no", 0.0, None) for q in questions])["intent"] is None


def test_an_intent_has_only_its_slots() -> None:
    intents = {"heat": label("heat", slots=("room",)), "music": label("music")}
    schema = Schema("home", ("what?",), intents, HOME.slots)
    for name, slots in (("heat", {"room": "attic"}), ("music", {"date": "today", "room": "attic"})):
        answers = [
            Answer(q, {None: f"do {name}", "date": "today", "room": "attic"}.get(q.label, ""), 0.0, None)
            for q in build_questions(schema)
        ]
        assert parse_answers(schema, answers)["slots"] == slots
    assert schema_errors(schema, Annotation("music", {"date": ("today",)})) == []
    assert schema_errors(schema, Annotation("heat", {"date": ("today",)})) == [
        "slot 'date': intent 'heat' has no such slot; choose from room"
    ]


def test_slurps_records() -> None:
    slurp = read_schema("slurp")
    understood = {"intent": "iot_hue_lightdim", "slots": {"house_place": "Den", "device_type": ["Lamp", "bulb"]}}
    entities = [{"type": "house_place", "filler": "den"}]
    entities += [{"type": "device_type", "filler": "lamp"}, {"type": "device_type", "filler": "bulb"}]
    record = {"scenario": "iot", "action": "hue_lightdim", "entities": entities}
    assert to_slurp(understood, slurp, "audio-1.flac") == {"file": "audio-1.flac", **record}
    assert to_slurp(understood, slurp, "stts-1688-en-us_f2") == {"slurp_id": "stts-1688-en-us_f2", **record}
    assert to_slurp(understood, slurp, 17) == {"slurp_id": 17, **record}
    nothing = {"slurp_id": "7", "scenario": "", "action": "", "entities": []}
    assert to_slurp({"intent": None, "slots": {}}, slurp, "7") == nothing
    with pytest.raises(InputError, match=r"schema digits: intent '3' has no scenario and no action; .*split_intents"):
        to_slurp({"intent": "3", "slots": {}}, read_schema("digits"), "7")


# --------------------------------------------------------------------------------------------------- annotations


def test_gold_of_a_row() -> None:
    both = Annotation("set", {"date": ("today", "friday"), "size": ("8",)})
    assert read_annotation({"intent": "set", "slots": {"date": [" today ", "friday"], "size": 8, "room": None}}) == both
    assert read_annotation({"intent": "set", "slots": [["date", "today"], ["size", "8"], ["date", "friday"]]}) == both
    assert (
        read_annotation({"intent": "set", "slots": '{"date": ["today", "friday"], "size": "8"}'}) == both
    )  # as in a table
    assert read_annotation({}) == Annotation(None, {})
    assert read_annotation({"label": 0}, "label") == Annotation("0", {})
    fluent = {"action": "change language", "object": "Korean", "location": "none"}
    assert read_annotation(fluent, "action+object+location").intent == "change language_Korean_none"
    assert read_annotation({"action": "set"}, "scenario+action").intent is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"intent": ["a"]}, r'intent: must be a text or a number, found \["a"\]'),
        ({"slots": 5}, r"slots: must be an object or a list of \[type, value\], found 5"),
        ({"slots": "size=8"}, 'slots: a text must be JSON, found "size=8"'),
        ({"slots": ["date"]}, r'slots: each must be \[type, value\], found "date"'),
        ({"slots": [["date", "a", "b"]]}, r'each must be \[type, value\], found \["date", "a", "b"\]'),
        ({"slots": {"date": True}}, r"slots\.date: must be a text, found true"),
        ({"slots": {"date": {"a": 1}}}, r'slots\.date: must be a text, found {"a": 1}'),
        ({"slots": {"date": " "}}, r"slots\.date: '' holds no words; leave the slot out"),
    ],
)
def test_rows_with_other_content_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_annotation(row)


def test_annotations_that_do_not_fit_the_schema() -> None:
    gold = Annotation("lite", {"rom": ("attic",), "size": ("Large", "small"), "date": ("None",)})
    assert schema_errors(HOME, gold) == [
        "intent 'lite' is not in schema home; did you mean 'light'?",
        "slot 'rom' is not in schema home; did you mean 'room'?",
        "slot 'size': 'Large' is not among its values; did you mean 'large'?",
        "slot 'date': 'None' means that it is absent; leave it out",
    ]
    assert schema_errors(HOME.only(slots=[]), Annotation("heat", gold.slots)) == []
    assert schema_errors(HOME.only(intents=[]), Annotation("lite", DARK.slots)) == []


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(
    ("folder", "schema", "field", "rows"),
    [
        ("barista", "barista", "intent", 498),
        ("slurp_tts", "slurp_tts", "intent", 600),
        ("slurp_tts", "slurp", "intent", 600),
        ("slurp", "slurp", "scenario+action", 4431),
        ("fsdd", "digits", "label", 2000),
        ("speech_commands_mini", "speech_commands", "label", 257),
    ],
)
def test_every_row_of_the_data_comes_back(folder: str, schema: str, field: str, rows: int, framing: Framing) -> None:
    file = DATA / folder / "manifest.jsonl"
    if not file.exists():
        pytest.skip(f"../shared/data/{folder} is not here")
    schema_of_data = read_schema(schema)
    with file.open(encoding="utf-8") as lines:
        golds = [read_annotation(json.loads(line), field) for line in lines]
    assert len(golds) == rows
    assert not [value for gold in golds for values in gold.slots.values() for value in values if ", " in value]
    for gold in golds:
        assert gold.intent is not None
        pairs = sample_question_answers(schema_of_data, gold, framing, None)
        assert annotation_of(parse_answers(schema_of_data, answered(pairs))) == gold


WORDS = ("a", "Mr. B", "none left", "no", "x, y", ",", "yes.", "ten  past", "é", "1.5", "?", "none of it")


def random_schema(rng: np.random.Generator) -> Schema:
    texts = iter(rng.permutation(1000).astype(str))
    closed = [str(word) for word in rng.permutation([word for word in WORDS if ", " not in word])]

    def random_label(values: tuple[str, ...] = ()) -> Label:
        name = next(texts)
        return Label(name, name, f"to {name}", tuple(f"{name} {i}?" for i in range(rng.integers(1, 4))), values=values)

    intents = [random_label() for _ in range(rng.integers(0, 5))]
    slots = [random_label(tuple(closed[: rng.integers(0, 6)])) for _ in range(rng.integers(1, 7))]
    ways = tuple(f"what {i}?" for i in range(rng.integers(1, 4)))
    return Schema("any", ways, {i.name: i for i in intents}, {slot.name: slot for slot in slots})


def random_gold(rng: np.random.Generator, schema: Schema) -> Annotation:
    slots = {}
    for slot in schema.slots.values():
        values = slot.values or tuple(word for word in WORDS if ", " not in word)
        if rng.random() < 0.5:
            slots[slot.name] = tuple(str(value) for value in rng.choice(values, rng.integers(1, 4)))
    return Annotation(str(rng.choice(list(schema.intents))) if schema.intents else None, slots)


@pytest.mark.parametrize("seed", range(60))
def test_any_annotation_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    schema = random_schema(rng)
    for framing in FRAMINGS:
        for _ in range(10):
            gold = random_gold(rng, schema)
            assert schema_errors(schema, gold) == []
            whole = parse_answers(schema, answered(sample_question_answers(schema, gold, framing, None)))
            assert annotation_of(whole) == gold
            drawn = sample_question_answers(schema, gold, framing, rng)
            assert annotation_of(parse_answers(schema, answered(drawn))) == gold  # slots present are always asked about
            names = list(rng.permutation([*schema.intents, *schema.slots]))
            held_out = [str(name) for name in names[: rng.integers(0, len(names))]]
            seen = sample_question_answers(schema, gold, framing, rng, held_out=held_out)
            assert not {question.label for question, _ in seen} & set(held_out)
            slots = parse_answers(schema, answered([pair for pair in seen if pair[0].kind == "slot"]))["slots"]
            assert set(slots) == set(gold.slots) - set(held_out)
            texts = [question.text for question, _ in drawn]
            assert len(set(texts)) == len(texts)
            hidden = {schema.intents[name].answer for name in held_out if name in schema.intents}
            for question, answer in seen:
                assert question.kind == "slot" or answer in (question.choices or ())
                assert question.kind != "intent" or not hidden & set(question.choices or ())


def test_values_are_split_as_they_were_joined() -> None:
    words = [word for word in WORDS if ", " not in word]
    rng = np.random.default_rng(4)
    for _ in range(300):
        values = tuple(str(word) for word in rng.choice(words, rng.integers(1, 5)))
        assert split_values(join_values(values)) == values
    assert split_values(join_values(["x, y"])) == ("x", "y")  # the limit: such a value reads as two
