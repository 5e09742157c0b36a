"""Schema files: what is filled in, what is refused and in which words, and the schemas that are shipped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmprefix.errors import InputError
from mmprefix.slu.schema import Schema, fold, read_schema
from mmprefix.trust import plain_yaml

SHARED = Path(__file__).resolve().parents[3] / "shared"
SHIPPED = {
    "barista": (1, 6),
    "digits": (10, 0),
    "fluent_speech_commands": (31, 0),
    "slurp": (60, 55),
    "slurp_tts": (12, 35),
    "snips": (7, 39),
    "speech_commands": (30, 0),
}
FULL = """
name: home
intent: {questions: ['what now?', 'and then?']}
intents:
  alarm_set: {description: wake somebody, answer: set an alarm, examples: [wake me up], questions: ['an alarm?'],
              scenario: alarm, action: set, slots: [date]}
  lightsOff:
slots:
  date: {description: a day, questions: ['which day?'], examples: [tomorrow]}
  size: {values: [small, 8, on]}
none: nothing
yes: yes
no: no
"""


def written(folder: Path, text: str, name: str = "home.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_all_options_of_a_file(tmp_path: Path) -> None:
    schema = read_schema(written(tmp_path, FULL, "other.yaml"))
    assert (schema.name, schema.none, schema.yes, schema.no) == ("home", "nothing", "yes", "no")
    assert schema.intent_questions == ("what now?", "and then?")
    alarm = schema.intents["alarm_set"]
    assert (alarm.description, alarm.answer, alarm.questions) == ("wake somebody", "set an alarm", ("an alarm?",))
    assert (alarm.examples, alarm.scenario, alarm.action, alarm.slots) == (("wake me up",), "alarm", "set", ("date",))
    assert schema.slots["date"].questions == ("which day?",)
    assert schema.slots["date"].values == ()
    assert schema.slots["size"].values == ("small", "8", "on")  # words all of them, whatever YAML thinks


def test_what_a_file_may_leave_out(tmp_path: Path) -> None:
    schema = read_schema(written(tmp_path, FULL))
    lights = schema.intents["lightsOff"]
    assert (lights.description, lights.answer) == ("lights off", "lights off")
    assert lights.questions[0] == "does the speaker want to lights off?"
    assert (lights.examples, lights.scenario, lights.action, lights.slots) == ((), None, None, None)
    assert schema.slots["size"].questions[0] == "what is mentioned as size?"
    bare = read_schema(written(tmp_path, "slots:\n  numberOfShots:\n  movie_type:\n  GPSPosition: {}\n"))
    assert [slot.description for slot in bare.slots.values()] == ["number of shots", "movie type", "gps position"]
    assert (bare.name, bare.none, bare.intents) == ("home", "none", {})
    assert bare.intent_questions[0] == "what does the speaker want?"


def test_templates_word_the_questions(tmp_path: Path) -> None:
    text = "templates: {intents: ['{description}, right?'], slots: ['{description}?', 'the {description}?']}\n"
    schema = read_schema(
        written(tmp_path, text + "intents: {a_b: {description: go}}\nslots: {c: , d: {questions: [x]}}")
    )
    assert schema.intents["a_b"].questions == ("go, right?",)
    assert schema.slots["c"].questions == ("c?", "the c?")
    assert schema.slots["d"].questions == ("x",)


def test_scenario_and_action(tmp_path: Path) -> None:
    text = "split_intents: true\nintents:\n  iot_hue_off:\n  chat: {scenario: general, action: chat}\n"
    intents = read_schema(written(tmp_path, text)).intents
    assert [(label.scenario, label.action) for label in intents.values()] == [("iot", "hue_off"), ("general", "chat")]


def test_json_is_the_same(tmp_path: Path) -> None:
    wanted = {
        "split_intents": True,
        "intents": {"a_b": None, "no_c": {"slots": ["d"]}},
        "slots": {"d": {"values": [1]}},
    }
    read = read_schema(written(tmp_path, json.dumps(wanted), "home.json"))
    text = "split_intents: true\nintents: {a_b: , no_c: {slots: [d]}}\nslots: {d: {values: [1]}}"
    assert read == read_schema(written(tmp_path, text))
    assert read.slots["d"].values == ("1",)


FAULTS = [
    ("intent: {questions: [a]}", "schema home has neither intents nor slots"),
    ("intnets: {a: }", "intnets: not known; did you mean 'intents'?"),
    ("slots: {a: {valeus: [b]}}", "slots.a.valeus: not known; did you mean 'slots.a.values'?"),
    ("slots: {a: {answer: b}}", "slots.a.answer: not known; options: description, questions, examples, values"),
    ("intents: {a: {values: [b]}}", "intents.a.values: not known; "),
    ("intents: {a: {answer: [b]}}", 'intents.a.answer: must be a text, found a list (["b"])'),
    ("intents: {a: {answer: ''}}", "intents.a.answer: is empty"),
    ("intents: {a: b}", 'intents.a: must hold options, found a text ("b")'),
    ("intents: [a, b]", 'intents: must hold options, found a list (["a", "b"])'),
    ("intents: {}", "intents: is empty; name at least one, or leave intents out"),
    ("slots: {a: {values: []}}", "slots.a.values: the list is empty; give at least one, or leave values out"),
    ("slots: {a: {values: b}}", 'slots.a.values: must be a list of texts, found a text ("b")'),
    ("slots: {a: {values: [b, [c]]}}", 'slots.a.values: must be a text, found a list (["c"])'),
    ("slots: {a: {values: [b, B.]}}", "slots.a.values: 'B.' is listed twice"),
    ("slots: {a: {values: ['b, c']}}", "slots.a.values: 'b, c' looks like several values"),
    ("slots: {a: {values: [None]}}", "slots.a.values: 'None' would mean that the slot is absent"),
    ("none: gone\nslots: {a: {values: [gone]}}", "slots.a.values: 'gone' would mean that the slot is absent"),
    (
        "intents: {a: {answer: go}, b: {answer: Go.}}",
        "intents.a and intents.b: the same answer 'Go.'; they could not be",
    ),
    ("intents: {a_b: , aB: }", "intents.a_b and intents.aB: the same answer 'a b'"),
    (
        "slots: {a: {questions: ['x?']}, b: {questions: ['x?']}}",
        "slots.a and slots.b: the same question 'x?'; one question",
    ),
    ("intent: {questions: [x]}\nslots: {a: {questions: [x]}}", "intent and slots.a: the same question 'x'"),
    ("templates: {slots: ['which?']}\nslots: {a: }", "templates.slots: 'which?' lacks {description}"),
    ("yes: No\nslots: {a: }", "yes and no: both are 'No'; they must differ"),
    ("intents: {a: {slots: [dote]}}\nslots: {date: }", "intents.a.slots: no slot 'dote'; did you mean 'date'?"),
    ("intents: {a: {scenario: b}}", "intents.a.scenario: give both scenario and action, or neither"),
    ("split_intents: true\nintents: {a: }", "intents.a: split_intents: nothing to split at; give scenario and action"),
    ("split_intents: perhaps\nintents: {a: }", "split_intents: must be true or false"),
    ("slots:\n  a:\n  b:\n  a:\n", "line 4: key 'a' is used twice"),
    ("slots:\n  ? [a]\n  : b\n", "line 2: a key must be a text"),
    ("slots:\n  a: [b\nnone: x\n", "line 3: not YAML ("),
    ("slots: {a: {questions: [which?]}}", "line 1: not YAML (expected ',' or ']', but got '?'); put it into quotes"),
    ("slots: {a: \x07}", "not YAML ("),
    ("slots: " + "[" * 5000, "nested deeper than 64 levels"),
    ("just words", 'expected options, found a text ("just words")'),
    ("", "expected options, found nothing"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(f"{file}: {message}")):
        read_schema(file)


def test_reading_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_yaml, "MAX_VALUES", 1000)
    file = written(tmp_path, "slots: [" + "a, " * 2000 + "}")  # the wrong end is never reached
    with pytest.raises(InputError, match="more than 1,000 keys and values"):
        read_schema(file)


JSON_FAULTS = [
    ('{"slots": {"a": {"values": [true]}}}', "slots.a.values: must be a text, found a truth value (true)"),
    ('{"slots": {"a": {}, "a": {}}}', "key 'a' is used twice"),
    ('{"slots":\n {"a": {}},}', "line 2: not JSON ("),
    ("[]", "expected options, found a list ([])"),
]


@pytest.mark.parametrize(("text", "message"), JSON_FAULTS)
def test_what_is_wrong_with_json_is_said(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text, "home.json")
    with pytest.raises(InputError, match=re.escape(f"{file}: {message}")):
        read_schema(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"schema slrup: no such file; shipped schemas: barista, digits"):
        read_schema("slrup")
    with pytest.raises(InputError, match=r"schema .*gone\.yaml: no such file"):
        read_schema(tmp_path / "gone.yaml")
    file = tmp_path / "latin.yaml"
    file.write_bytes("slots: {caf\xe9: }".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8 text \(byte 11\)"):
        read_schema(file)


def test_a_part_of_a_schema(tmp_path: Path) -> None:
    schema = read_schema(written(tmp_path, FULL))
    part = schema.only(intents=["alarm_set"], slots=("size",))
    assert (list(part.intents), list(part.slots)) == (["alarm_set"], ["size"])
    assert part.intents["alarm_set"].slots == ()  # its only slot is gone
    assert (part.none, part.intent_questions) == (schema.none, schema.intent_questions)
    assert schema.only() == schema
    assert schema.only(slots=[]).slots == {}
    with pytest.raises(InputError, match=r"schema home: no intent 'alarm_sett'; did you mean 'alarm_set'\?"):
        schema.only(intents=["alarm_sett"])
    with pytest.raises(InputError, match=r"schema home: no slot 'zzz'; choose from date, size"):
        schema.only(slots=["zzz"])
    with pytest.raises(InputError, match="neither intents nor slots"):
        schema.only([], [])


def test_how_answers_are_compared() -> None:
    assert {fold(text) for text in ("None", " none. ", "NONE .", "none\n")} == {"none"}
    assert fold("1.5  l") == "1.5 l"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_schemas(name: str) -> None:
    schema = read_schema(name)
    assert (schema.name, len(schema.intents), len(schema.slots)) == (name, *SHIPPED[name])
    assert read_schema(f"{name}.yaml") == schema
    for label in [*schema.intents.values(), *schema.slots.values()]:
        assert len(label.questions) >= 2  # a training varies its questions
        assert all(len(question.split()) <= 24 for question in label.questions)
    assert all(len(label.answer.split()) <= 8 for label in schema.intents.values())


def test_slurp_in_two_schemas_is_worded_alike() -> None:
    whole, part = read_schema("slurp"), read_schema("slurp_tts")
    assert whole.only(part.intents, part.slots) == Schema(**{**vars(part), "name": "slurp"})
    for name, label in whole.intents.items():
        assert f"{label.scenario}_{label.action}" == name


def test_shipped_schemas_know_the_data() -> None:
    rows = rows_of("slurp")
    schema = read_schema("slurp")
    assert {f"{row['scenario']}_{row['action']}" for row in rows} == set(schema.intents)
    assert {slot for row in rows for slot, _ in row["slots"]} == set(schema.slots)
    texts = {row["transcript"] for row in rows}
    assert not texts & {example for label in schema.intents.values() for example in label.examples}
    with (SHARED / "parity" / "slurp_gold.jsonl").open(encoding="utf-8") as lines:
        gold = [json.loads(line) for line in lines]
    assert {f"{row['scenario']}_{row['action']}" for row in gold} <= set(schema.intents)
    assert {entity["type"] for row in gold for entity in row["entities"]} <= set(schema.slots)


@pytest.mark.parametrize(("name", "folder"), [("digits", "fsdd"), ("speech_commands", "speech_commands_mini")])
def test_word_schemas_know_the_data(name: str, folder: str) -> None:
    schema = read_schema(name)
    for row in rows_of(folder):
        assert schema.intents[str(row["label"])].answer == row["transcript"]


def rows_of(name: str) -> list[dict[str, Any]]:
    file = SHARED / "data" / name / "manifest.jsonl"
    if not file.exists():
        pytest.skip(f"../shared/data/{name} is not here")
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_torch_is_not_needed() -> None:
    code = (
        "import sys; from mmprefix.slu import questions, schema; questions.build_questions(schema.read_schema('slurp'))"
    )
    code += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
