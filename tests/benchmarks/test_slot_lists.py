"""Lists of slots from training rows, in a schema that is read, asks about them alone and answers with them alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.studies.slot_lists import main
from mmprefix.slu.annotation import Annotation
from mmprefix.slu.questions import Answer, build_questions, parse_answers, sample_question_answers
from mmprefix.slu.schema import read_schema

ROWS = [
    {"id": "0", "split": "train", "intent": "alarm_set", "slots": [["time", "nine"]]},
    {"id": "1", "split": "train", "intent": "alarm_set", "slots": [["date", "today"], ["time", "ten"]]},
    {"id": "2", "split": "train", "intent": "play_music", "slots": [["artist_name", "nina"]]},
    {"id": "3", "split": "test", "intent": "play_music", "slots": [["song_name", "help"]]},
]


def test_a_schema_lists_what_training_rows_have(tmp_path: Path) -> None:
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "runs" / "schema.yaml"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    main(["slurp_tts", str(manifest), "--out", str(out)])
    schema, shipped = read_schema(out), read_schema("slurp_tts")
    assert set(schema.slots_of("alarm_set")) == {"time", "date"}
    assert set(schema.slots_of("play_music")) == {"artist_name"}
    assert schema.slots == shipped.slots
    assert build_questions(schema) == build_questions(shipped)
    asked = sample_question_answers(schema, Annotation("alarm_set", {"time": ("nine",)}), "choice", None, absent=9.0)
    assert [question.label for question, _ in asked] == [None, "date", "time"]
    intent, *slots = build_questions(schema)
    answers = [Answer(intent, schema.intents["alarm_set"].answer, 0.0, None)]
    answers += [Answer(question, "nine", -1.0, None) for question in slots]
    assert parse_answers(schema, answers)["slots"] == {"time": "nine", "date": "nine"}
