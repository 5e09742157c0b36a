"""SLU-F1 against SLURP's scorer; error rates against jiwer; missing, foreign, unknown and bad records."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jiwer
import pytest

from benchmarks import slurp_score
from mmprefix.errors import InputError
from mmprefix.metrics import cer, slu, wer
from mmprefix.metrics.edit_distance import char_distance, levenshtein, word_distance
from tiny.recorded import PARITY, needs_parity

RUNS = ("slurp_pred_gold_hermit.jsonl", "slurp_pred_google_sfid.jsonl", "slurp_pred_multi_hermit.jsonl")
TABLES = {
    "Scenario": "scenario",
    "Action": "action",
    "Intent (scen_act)": "intent",
    "Entities": "span",
    "Entities (distance word)": "word",
    "Entities (distance char)": "char",
    "Slu f1": "slu",
}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _record(file: str, *slots: tuple[str, str], scenario: str = "play", action: str = "music") -> dict[str, Any]:
    entities = [{"type": kind, "filler": filler} for kind, filler in slots]
    return {"file": file, "scenario": scenario, "action": action, "entities": entities}


# ------------------------------------------------------------------------------------------------- SLURP's own scorer


@needs_parity
@pytest.mark.parametrize("file", RUNS)
def test_equals_slurps_scorer(file: str) -> None:
    """Micro and macro average, and every column of every label; no other labels."""
    recorded = json.loads((PARITY / "slurp_scores.json").read_text())
    run = next(run for run in recorded["runs"] if run["prediction_file"] == file)
    scores = slu(_lines(PARITY / file), _lines(PARITY / recorded["gold"]), per_label=True)
    for name, ours in TABLES.items():
        micro, macro = (run[average]["tables"][name] for average in ("micro", "macro"))
        assert list(scores["micro"][ours].values()) == pytest.approx(micro["OVERALL"], abs=1e-9)
        assert list(scores["macro"][ours].values()) == pytest.approx(macro["OVERALL"][:3], abs=1e-9)
        assert scores["tables"][ours].keys() == micro.keys() - {"OVERALL"}
        for label, row in scores["tables"][ours].items():
            assert tuple(row) == tuple(recorded["columns"])
            assert list(row.values()) == pytest.approx(micro[label], abs=1e-9), (name, label)
        assert [scores[f"{ours}_{figure}"] for figure in ("precision", "recall", "f1")] == pytest.approx(
            micro["OVERALL"][:3], abs=1e-9
        )
    assert scores["matched_by"] == run["match_by"]
    assert (scores["missing"], scores["gold"]) == (run["micro"]["not_predicted"], run["micro"]["gold_examples"])
    assert scores["foreign"] == run["keys_without_gold_here"]
    assert scores["scored"] == scores["gold"] - scores["missing"]


@needs_parity
def test_both_forms_of_a_record_score_the_same() -> None:
    """SLURP's records rewritten in our format, matched by the gold's slurp_id as id."""
    gold, theirs = _lines(PARITY / "slurp_gold.jsonl"), _lines(PARITY / RUNS[0])
    ours = []
    for record in theirs:
        slots: dict[str, list[str]] = {}
        for entity in record["entities"]:
            slots.setdefault(entity["type"], []).append(entity["filler"])
        name = f"{record['scenario']}_{record['action']}"
        ours.append({"id": record["slurp_id"], "intent": name, "slots": slots})
    want, scores = slu(theirs, gold, per_label=True), slu(ours, gold, per_label=True)
    for name, rows in want["tables"].items():
        for label, row in rows.items():
            assert scores["tables"][name][label] == pytest.approx(row), (name, label)
    assert scores["left_out"] == []


@needs_parity
def test_the_benchmark_scores_as_many_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    result = slurp_score.main(["--recordings", "300", "--repeat", "1"])
    assert result["scored"] == 300
    assert "| slu " in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- rules one by one


def test_nearest_of_the_type_the_first_of_equals_and_removed() -> None:
    gold = [_record("1", ("song", "a b"), ("song", "c d"), ("artist", "x"))]
    scores = slu([_record("1", ("song", "e f"), ("song", "c d"), ("radio", "x"))], gold, per_label=True)
    # "e f" is as far from both and takes "a b", so that "c d" is left; radio is in no gold, artist is not predicted
    assert scores["tables"]["word"]["song"] == {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3} | {
        "tp": 2,
        "fp": 1,
        "fn": 1,
    }
    assert scores["tables"]["word"]["radio"]["fp"] == scores["tables"]["word"]["artist"]["fn"] == 1
    assert scores["micro"]["span"] == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3} | _counts(1, 2, 2)
    )
    assert scores["tables"]["char"]["song"]["fp"] == pytest.approx(2 / 3)
    assert scores["tables"]["slu"]["song"]["fn"] == pytest.approx(1 + 2 / 3)
    assert scores["unknown_slot_types"] == {"radio": 1}


def _counts(tp: float, fp: float, fn: float) -> dict[str, float]:
    return {"tp": tp, "fp": fp, "fn": fn}


def test_a_word_distance_above_one_is_added_as_it_is() -> None:
    scores = slu([_record("1", ("time", "at seven in the morning"))], [_record("1", ("time", "seven"))], per_label=True)
    assert scores["tables"]["word"]["time"]["fp"] == scores["tables"]["word"]["time"]["fn"] == 4
    assert scores["word_precision"] == pytest.approx(1 / 5)


def test_gold_fillers_become_lower_case_and_predicted_ones_do_not() -> None:
    tokens = [{"surface": word} for word in ("Play", "Bob", "Dylan")]
    gold = {"slurp_id": 7, "scenario": "play", "action": "music", "tokens": tokens}
    gold |= {"entities": [{"type": "artist", "span": [1, 2]}], "recordings": [{"file": "1"}, {"file": "2"}]}
    scores = slu([_record("1", ("artist", "bob dylan")), _record("2", ("artist", "Bob Dylan"))], [gold])
    assert (scores["gold"], scores["span_f1"]) == (2, 0.5)
    assert slu([_record("2", ("artist", "Bob Dylan"))], [gold], ignore_case=True)["span_f1"] == 1
    ours = {"id": "1", "intent": "play_music", "slots": {"artist": "Bob Dylan"}}
    assert slu([ours], [ours])["span_f1"] == 1  # of ours the case counts, on both sides
    assert slu([ours], [ours | {"slots": {"artist": "bob dylan"}}])["span_f1"] == 0


def test_missing_and_foreign_are_counted_and_not_scored_unless_asked_for() -> None:
    gold = [_record("1", ("song", "a")), _record("2", ("song", "b"))]
    predictions = [_record("1", ("song", "a")), _record("3", ("noise", "b"))]
    scores = slu(predictions, gold)
    assert {name: scores[name] for name in ("gold", "scored", "missing", "foreign")} == {
        "gold": 2,
        "scored": 1,
        "missing": 1,
        "foreign": 1,
    }
    assert scores["slu_f1"] == scores["intent_f1"] == scores["frame_accuracy"] == 1
    assert scores["unknown_slot_types"] == {}  # what is not scored is foreign, not unknown
    scores = slu(predictions, gold, count_missing=True)
    assert (scores["scored"], scores["missing"]) == (2, 1)
    assert (scores["intent_precision"], scores["intent_recall"], scores["span_recall"]) == (1, 0.5, 0.5)
    assert scores["intent_accuracy"] == scores["slot_accuracy"] == scores["frame_accuracy"] == 0.5


def test_accuracies_count_none_as_a_value() -> None:
    gold = [
        {"id": 1, "intent": "order", "slots": {"size": "small", "milk": "oat"}},
        {"id": 2, "intent": "order", "slots": {"size": "large"}},
        {"id": 3, "intent": "stop", "slots": []},
        {"id": 4, "intent": "order", "slots": [["milk", "oat"], ["milk", "soy"]]},
    ]
    predictions = [
        {"id": 1, "intent": "order", "slots": {"size": "small", "milk": None}},  # milk is missing
        {"id": 2, "intent": None, "slots": {"size": "large"}},
        {"id": 3, "intent": "stop", "slots": {"size": "small"}},  # there is no size
        {"id": 4, "intent": "order", "slots": {"milk": ["soy", "oat"]}},
    ]
    scores = slu(predictions, gold)
    assert scores["per_slot_accuracy"] == {"milk": 0.75, "size": 0.75}
    assert (scores["slot_accuracy"], scores["intent_accuracy"], scores["frame_accuracy"]) == (0.75, 0.75, 0.25)
    assert scores["intent_f1"] == 0.75
    assert scores["left_out"] == ["scenario", "action"]
    assert not any(name.startswith(("scenario", "action")) for name in scores)


def test_intents_without_slots_and_slots_without_intents() -> None:
    intents = [{"id": 1, "intent": "yes"}, {"id": 2, "intent": "no"}]
    scores = slu([{"id": 1, "intent": "yes"}, {"id": 2, "intent": "yes", "slots": {}}], intents)
    assert scores["intent_accuracy"] == scores["frame_accuracy"] == 0.5
    slots = [{"id": 1, "slots": {"size": "small"}}, {"id": 2, "slots": {"size": 12}}]
    scores = slu([{"id": 1, "slots": {"size": "small"}}, {"id": 2, "intent": "x", "slots": {"size": "13"}}], slots)
    assert scores["span_f1"] == scores["slot_accuracy"] == scores["frame_accuracy"] == 0.5
    assert scores["left_out"] == ["scenario", "action", "intent"]
    assert "intent_accuracy" not in scores
    assert slu([{"id": 1, "slots": {}}, {"id": 2, "intent": "no"}], intents)["intent_precision"] == 1


def test_scenario_and_action_of_an_intent() -> None:
    """The gold gives them if it has that intent; else the word before "_" is the scenario."""
    gold = [
        {"id": 1, "intent": "podcasts", "scenario": "play", "action": "podcasts", "slots": {}},
        {"id": 2, "intent": "play_music", "scenario": "play", "action": "music", "slots": {}},
        {"id": 3, "intent": "podcasts", "scenario": "lists", "action": "podcasts", "slots": {}},
    ]
    names = ("podcasts", "podcasts", "podcasts")
    scores = slu([{"id": i + 1, "intent": name, "slots": {}} for i, name in enumerate(names)], gold, per_label=True)
    assert scores["intent_accuracy"] == pytest.approx(2 / 3)
    assert scores["scenario_f1"] == 1  # "play" of the first row, and its own where the intent is right
    assert scores["action_f1"] == pytest.approx(2 / 3)
    scores = slu([{"id": 1, "intent": "play_radio_now", "slots": {}}], gold, per_label=True)
    assert scores["scenario_f1"] == 1
    assert scores["tables"]["action"]["radio_now"]["fp"] == 1


def test_an_intent_is_scenario_and_action_where_the_prediction_has_these() -> None:
    gold = [{"id": 1, "intent": "music", "scenario": "play", "action": "music", "slots": {}}]
    theirs = {"id": 1, "scenario": "play", "action": "music", "entities": []}
    assert slu([theirs], gold)["intent_f1"] == 1
    assert slu([{"id": 1, "intent": "music", "slots": {}}], gold)["intent_f1"] == 1
    assert slu([{"id": 1, "intent": "play_music", "slots": {}}], gold)["intent_f1"] == 0
    # SLURP's gold has a field of that name too, which its scorer does not read
    assert slu([theirs], [theirs | {"intent": "music"}])["intent_f1"] == 1


def test_records_are_matched_by_what_all_have() -> None:
    gold = [_record("a.wav") | {"slurp_id": 12}, _record("b.wav") | {"slurp_id": 13}]
    assert slu([_record("b.wav") | {"slurp_id": "12"}], gold)["matched_by"] == "file"
    by_sentence = [{"slurp_id": "12", "scenario": "play", "action": "music", "entities": []}]
    assert slu(by_sentence, gold)["matched_by"] == "slurp_id"
    for name, kind in (("a.wav", "file"), ("13", "slurp_id")):
        scores = slu([{"id": name, "intent": "play_music", "slots": {}}], gold)
        assert (scores["matched_by"], scores["scored"], scores["missing"]) == (kind, 1, 1)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [_record("1")], "no predictions"),
        ([_record("1")], [], "no references"),
        ({"1": _record("1")}, [_record("1")], "predictions must be a list of records, not dict"),
        ([_record("1"), "play"], [_record("1")], 'prediction 1: a record must be an object, not "play"'),
        ([_record("1"), _record("1")], [_record("1")], "prediction 1: file '1' occurs in prediction 0 already"),
        ([_record("1")], [_record("2"), _record("2")], "reference 1: file '2' occurs in reference 0 already"),
        (
            [_record("1")],
            [_record("2")],
            "file '1' of prediction 0 and all other predictions have no gold; reference 0 has",
        ),
        (
            [{"slurp_id": 1, "intent": "a", "slots": {}}],
            [_record("1")],
            "no key to match by: slurp_id in all predictions",
        ),
        ([{"intent": "a", "slots": {}}], [_record("1")], "prediction 0: no id, no file and no slurp_id"),
        ([{"id": 1.5, "intent": "a", "slots": {}}], [_record("1")], "prediction 0: id must be a string or a whole"),
        ([{"id": 1, "text": "a"}], [_record("1")], "prediction 0: a record needs intent or slots, or SLURP's"),
        ([{"id": 1, "intent": ["a"], "slots": {}}], [_record("1")], "prediction 0: intent must be a string or null"),
        ([{"id": 1, "intent": "a", "slots": "b"}], [_record("1")], "prediction 0: slots must be a list"),
        ([{"id": 1, "intent": "a", "slots": ["b"]}], [_record("1")], "prediction 0: slots must be an object of type"),
        ([{"id": 1, "intent": "a", "slots": {"b": {}}}], [_record("1")], 'slot "b": a value must be a string, not {}'),
        (
            [{"id": 1, "intent": "a", "slots": {"b": True}}],
            [_record("1")],
            'slot "b": a value must be a string, not true',
        ),
        (
            [{"id": 1, "scenario": "a", "entities": []}],
            [_record("1")],
            "prediction 0: scenario alone is half an intent",
        ),
        ([_record("1")], [_record("1"), {"file": "2", "slots": {}}], "reference 1: no intent, but other records"),
        ([{"id": 1, "entities": []}], [_record("1")], "prediction 0: entities, but no scenario and action"),
        ([_record("1") | {"entities": {}}], [_record("1")], "prediction 0: entities must be a list"),
        ([_record("1") | {"entities": [{"type": "b"}]}], [_record("1")], "an entity of type 'b' has no filler"),
        ([_record("1") | {"entities": [{"filler": "b"}]}], [_record("1")], "an entity must be an object with type"),
        (
            [_record("1")],
            [_record("1") | {"entities": [{"type": "b", "span": [-1]}], "tokens": [{"surface": "x"}]}],
            "reference 0: span [-1] must hold indices of tokens",
        ),
        (
            [_record("1")],
            [{**_record("1"), "file": None, "recordings": ["1"]}],
            "reference 0: each recording must be",
        ),
    ],
)
def test_bad_records_are_named(predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        slu(predictions, references)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------- distances and rates


def _levenshtein_by_table(a: str | list[str], b: str | list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, last + (x != y))
    return row[-1]


def test_the_distance_is_levenshteins() -> None:
    rng = random.Random(0)
    for most, letters, cases in ((8, "ab", 3000), (90, "abcdefgh", 200)):
        for _ in range(cases):
            a, b = ("".join(rng.choices(letters, k=rng.randint(0, most))) for _ in range(2))
            assert levenshtein(a, b) == _levenshtein_by_table(a, b), (a, b)
            assert levenshtein(a.split("a"), b.split("a")) == _levenshtein_by_table(a.split("a"), b.split("a"))


def test_distances_of_two_fillers() -> None:
    assert word_distance("seven  am", "seven am") == 0
    assert word_distance("", "seven am") == 1
    assert word_distance("a b c", "") == 3
    assert char_distance("", "") == 0
    assert char_distance("abc", "abcd") == char_distance("abcd", "abc") == 0.25


def test_rates_equal_jiwers() -> None:
    rng = random.Random(1)
    words = ["play", "plays", "the", "radio", "ra", "dio", "now", "Now,"]
    for _ in range(60):
        texts = [
            [" ".join(rng.choices(words, k=rng.randint(low, 12))) for _ in range(rng.randint(1, 8))] for low in (0, 0)
        ]
        size = min(map(len, texts))
        predictions, references = texts[0][:size], [text or "play" for text in texts[1][:size]]
        assert wer(predictions, references) == pytest.approx(jiwer.wer(references, predictions), abs=1e-12)
        assert cer(predictions, references) == pytest.approx(jiwer.cer(references, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references", "words", "characters"),
    [
        (["a b"], [""], 2, 3),  # nothing but insertions
        ([""], [""], 0, 0),
        (["a b", "c"], ["", "c"], 2, 3),
        ([""], ["a b"], 1, 1),
        ([" a b "], ["a  b"], 0, 0.25),
    ],
)
def test_rates_with_empty_texts(predictions: list, references: list, words: float, characters: float) -> None:
    assert wer(predictions, references) == jiwer.wer(references, predictions) == words
    assert cer(predictions, references) == jiwer.cer(references, predictions) == characters


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "nothing to score"),
        (["a"], ["a", "b"], "1 predictions but 2 references"),
        ("a", ["a"], "predictions is one string"),
        (["a", None], ["a", "b"], "item 1 of predictions is NoneType, not a string"),
        (["a"], [3], "item 0 of references is int"),
    ],
)
def test_texts_that_have_no_rate(predictions: Any, references: Any, message: str) -> None:
    for rate in (wer, cer):
        with pytest.raises(InputError) as error:
            rate(predictions, references)
        assert message in str(error.value)
