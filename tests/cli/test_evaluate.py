"""`mmprefix evaluate`, each of its tasks: printed figures, and error messages about bad files."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmprefix.cli.evaluate import add_arguments, run
from mmprefix.cli.evaluation.caption import read_predictions
from mmprefix.errors import InputError
from mmprefix.metrics import caption, detection, slu
from mmprefix.metrics.caption import NAMES
from mmprefix.metrics.sentence_encoder import SentenceEncoder
from mmprefix.training.report import Report, ValidationRow
from tiny.bert import save_bert
from tiny.recorded import PARITY, needs_parity

ROWS = [
    {"id": "a", "prediction": "A dog barks.", "references": ["a dog barks", "the dog is barking"], "file": "a.wav"},
    {"id": 2, "prediction": "rain falls on a roof", "references": ["Rain falls."]},
    {"id": "c", "prediction": "", "references": ["a bell rings"]},
]


def _file(folder: Path, *lines: object, name: str = "predictions.jsonl") -> Path:
    path = folder / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def _run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


def test_a_table_of_all_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_file(tmp_path, ROWS[0], "", ROWS[1], ROWS[2])) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = caption([row["prediction"] for row in ROWS], [row["references"] for row in ROWS])
    assert rows[:2] == [["tokenizer", "ptb"], ["items", "3"]]
    assert rows[2:] == [[name, f"{expected[name]:.4f}"] for name in NAMES]


def test_json_in_full_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_file(tmp_path, *ROWS), "--json", "--tokenize", "none", "--metrics", "cider_d, exact_match") == 0
    expected = caption([row["prediction"] for row in ROWS], [row["references"] for row in ROWS], "none")
    assert json.loads(capsys.readouterr().out) == {
        "task": "caption",
        "tokenizer": "none",
        "items": 3,
        "scores": {"cider_d": expected["cider_d"], "exact_match": expected["exact_match"]},
        "not_available": {},
    }


def test_unavailable_metrics_are_reported_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = _file(tmp_path, *ROWS)
    assert _run(path, "--metrics", "bleu_1,meteor,fense") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("bleu_1 ")
    assert lines[3].split(maxsplit=1)[1].startswith("meteor is not available: ")
    assert lines[4].split(maxsplit=1)[1].startswith("fense is not available: ")
    assert _run(path, "--metrics", "bleu_1,fense", "--fense-sentences", "nowhere", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["scores"]) == ["bleu_1"]
    assert "fluency detector" in report["not_available"]["fense"]


def test_extra_metrics_are_printed_with_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_bert(tmp_path / "sentences", 1)
    options = ["--metrics", "sbert_sim,bleu_1", "--fense-sentences", folder, "--json"]
    assert _run(_file(tmp_path, *ROWS), *options) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert list(scores) == ["sbert_sim", "bleu_1"]
    assert 0 < scores["sbert_sim"] < 1


def test_the_sentence_encoder_is_named_like_any_frozen_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bert(tmp_path / "sentences", 1)
    capsys.readouterr()  # the progress of writing it
    path = _file(tmp_path, *ROWS)
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path))
    assert _run(path, "--metrics", "sbert_sim", "--sentence-encoder", "models:sentences") == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="'models:others': no such folder"):
        _run(path, "--metrics", "sbert_sim", "--sentence-encoder", "models:others")
    assert _run(path, "--metrics", "sbert_sim", "--sentence-encoder", str(tmp_path / "others")) == 1
    assert capsys.readouterr().out.splitlines()[2].endswith("others does not exist")
    assert _run(path, "--metrics", "sbert_sim") == 1
    assert "name the folders of its models (--sentence-encoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", ', ":2: not JSON ("),
        pytest.param('{"id": ' + "9" * 5000 + "}", ":2: not JSON (", id="digits"),
        pytest.param("[" * 100_000, ":2: not JSON (", id="depth"),
        (r'{"id": "x", "prediction": "\ud83d", "references": ["a"]}', r":2: '\ud83d' holds bytes"),
        ("[1]", ":2: a line must be an object"),
        ({"id": "x", "references": ["a"]}, ":2: no prediction; a line needs"),
        ({"prediction": "a"}, ":2: no id and no references; a line needs"),
        ({"id": None, "prediction": "a", "references": ["a"]}, ":2: id must be a string"),
        ({"id": "x", "prediction": None, "references": ["a"]}, ":2: prediction must be a string, not null"),
        ({"id": "x", "prediction": "a", "references": "a"}, ":2: references must be a list of strings"),
        ({"id": "x", "prediction": "a", "references": ["a", 1]}, ":2: references must be a list of strings"),
        ({"id": "x", "prediction": "a", "references": []}, ":2: no references for id 'x'"),
        ({"id": "a", "prediction": "a", "references": ["a"]}, ":2: id 'a' is already used in line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = _file(tmp_path, ROWS[0], line)
    with pytest.raises(InputError) as error:
        _run(path)
    assert str(error.value).startswith(str(path) + message)
    assert "\n" not in str(error.value)


def test_what_a_validation_writes_is_scored_as_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two kinds of input may share an id there, as in manifests of sounds and of pictures; a line twice is refused."""
    encoder = save_bert(tmp_path / "sentences", 1)
    kinds = {"audio": ("a dog barks", ["A dog barks.", "a barking dog"]), "image": ("", ["rain on a roof"])}
    rows = [ValidationRow("1", kind, f"1.{kind}", *texts, 1.0, 2.0, 3) for kind, texts in kinds.items()]
    report = Report(rows, encoder=SentenceEncoder(encoder))
    report.write(SimpleNamespace(log_dir=tmp_path, is_global_zero=True, global_step=7, loggers=[]), "val")
    file, metrics = tmp_path / "captions" / "val-step7.jsonl", ("cider_d", "sbert_sim")
    assert _run(file, "--json", "--metrics", ",".join(metrics), "--sentence-encoder", encoder) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores == pytest.approx({name: report.figures()[name] for name in metrics})
    file.write_text(file.read_text(encoding="utf-8") * 2, encoding="utf-8")
    with pytest.raises(InputError, match=r"val-step7\.jsonl:3: id '1' is already used in line 1"):
        _run(file)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.jsonl: No such file"):
        _run(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="Is a directory"):
        _run(tmp_path)
    with pytest.raises(InputError, match="no predictions"):
        _run(_file(tmp_path, "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(InputError, match="not UTF-8 text"):
        _run(tmp_path / "latin.jsonl")


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n")
    assert read_predictions(tmp_path / "p.jsonl").ids == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gold", "gold.jsonl"], "--gold belongs to --task slu; here --task is caption"),
        (["--task", "slu", "--det", "a.png"], "--det belongs to --task detection; here --task is slu"),
        (["--task", "detection", "--tokenize", "none"], "--tokenize belongs to --task caption; here"),
        (["--task", "detection", "--count-missing"], "--count-missing belongs to --task slu; here"),
        (["--task", "slu", "--split", "test"], "--split test applies to --gold FILE, which is missing"),
        (["--task", "slu", "--intent-field", "label"], "--intent-field label applies to --gold FILE"),
        (["--task", "detection", "--det", "a.jpg"], "--det a.jpg: end the name in .png, .svg or .pdf"),
        (["--metrics", "bleu_1,cidre"], "--metrics cidre: no such metric; choose from bleu_1"),
        (["--metrics", ","], "--metrics ,: no such metric"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        _run(_file(tmp_path, *ROWS), *options)
    assert str(error.value).startswith(message)


# --------------------------------------------------------------------------------------------------------- --task slu

ORDERS = [
    {"id": "a", "intent": "order", "slots": {"size": "small", "milk": ["oat", "soy"]}},
    {"id": "b", "intent": "order", "slots": {"size": "Large", "straw": "yes"}},
    {"id": "c", "intent": "stop", "slots": {}},
]
MEANT = [
    {"id": "a", "intent": "order", "slots": [["milk", "oat"], ["milk", "soy"], ["size", "tall"]], "split": "test"},
    {"id": "b", "intent": "stop", "slots": {"size": "large"}, "split": "test"},
    {"id": "c", "intent": "stop", "slots": {}, "split": "train"},
    {"id": "d", "intent": "stop", "slots": {}, "split": "test"},
]


def _slu(folder: Path, *options: str, predictions: list = ORDERS, gold: list = MEANT) -> int:
    files = _file(folder, *predictions), _file(folder, *gold, name="gold.jsonl")
    return _run(files[0], "--task", "slu", "--gold", files[1], *options)


def _printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Printed table by its first column."""
    lines = capsys.readouterr().out.splitlines()
    return {name: value.strip() for name, _, value in (line.partition("  ") for line in lines)}


def test_slu_prints_all_figures_and_what_is_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _slu(tmp_path) == 0
    printed, expected = _printed(capsys), slu(ORDERS, MEANT)
    assert printed["scored"] == "3 of 4, matched by id"
    assert printed["missing"] == "1 without a prediction, not scored; --count-missing scores them"
    assert printed["foreign"] == "0"
    assert printed["unknown slot types"] == "straw 1 (not in the gold: false positives)"
    assert printed["left out"] == "scenario and action: not in all of the gold"
    assert printed["measure"].split() == ["precision", "recall", "f1"]
    for name in ("intent", "span", "word", "char", "slu"):
        assert printed[name].split() == [f"{expected[f'{name}_{figure}']:.4f}" for figure in printed["measure"].split()]
    assert (printed["intent_accuracy"], printed["slot milk"], printed["slot size"]) == ("0.6667", "1.0000", "0.3333")
    assert (printed["slot_accuracy"], printed["frame_accuracy"]) == ("0.6667", "0.3333")


def test_slu_options_choose_what_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _slu(tmp_path, "--split", "test", "--count-missing", "--ignore-case") == 0
    printed = _printed(capsys)
    assert printed["scored"] == "3 of 3, matched by id"
    assert printed["missing"] == "1 without a prediction, scored as empty predictions"
    assert printed["foreign"] == "1 without gold, ignored"
    assert printed["slot size"] == "0.6667"
    assert _slu(tmp_path, "--per-label") == 0
    printed = _printed(capsys)
    assert printed["order"].split() == ["0.5000", "1.0000", "0.6667", "1.0000", "1.0000", "0.0000"]
    assert printed["(macro)"].split() == [
        f"{value:.4f}" for value in slu(ORDERS, MEANT, per_label=True)["macro"]["slu"].values()
    ]


def test_slu_in_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _slu(tmp_path, "--json", "--per-label") == 0
    report, expected = json.loads(capsys.readouterr().out), slu(ORDERS, MEANT, per_label=True)
    assert (report["task"], report["items"]) == ("slu", 3)
    assert report["scores"] == {name: value for name, value in expected.items() if isinstance(value, float)}
    assert {"intent_f1", "slu_precision", "slot_accuracy", "frame_accuracy"} <= report["scores"].keys()
    rest = expected.keys() - report["scores"].keys()
    assert {name: report[name] for name in rest} == {name: expected[name] for name in rest}
    assert {"gold", "missing", "foreign", "unknown_slot_types", "left_out", "tables", "macro"} <= rest


def test_slu_reads_the_reference_in_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{**ORDERS[0], "scores": {"intent": -0.1}, "reference": MEANT[0]}, {**ORDERS[2], "reference": ORDERS[2]}]
    assert _run(_file(tmp_path, *lines), "--task", "slu", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["scored"], report["missing"], report["foreign"]) == (2, 0, 0)
    assert report["scores"]["span_f1"] == pytest.approx(2 / 3)


def test_slu_takes_the_intent_from_another_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest of labels, or of parts of an intent: no slots on either side, so no figures of slots."""
    predictions = [{"id": "x", "intent": "on_lamp"}, {"id": "y", "intent": "off_lamp"}]
    gold = [{"id": "x", "do": "on", "what": "lamp"}, {"id": "y", "do": "off", "what": "tv", "intent": "off_lamp"}]
    assert _slu(tmp_path, "--intent-field", "do+what", predictions=predictions, gold=gold) == 0
    printed = _printed(capsys)
    assert (printed["intent_accuracy"], printed["intent"].split()[-1]) == ("0.5000", "0.5000")
    assert "slu" not in printed
    with pytest.raises(InputError, match=r"gold.jsonl:1: --intent-field do\+how: no text in 'how'"):
        _slu(tmp_path, "--intent-field", "do+how", predictions=predictions, gold=gold)


@needs_parity
def test_slu_reads_slurps_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = PARITY / "slurp_pred_google_sfid.jsonl", PARITY / "slurp_gold.jsonl"
    assert _run(files[0], "--task", "slu", "--gold", files[1]) == 0
    printed = _printed(capsys)
    assert printed["scored"] == "11001 of 11619, matched by file"
    assert printed["missing"].startswith("618 ")
    assert printed["unknown slot types"].startswith("sport_type 1 ")
    assert printed["scenario"].split() == ["0.7870", "0.7870", "0.7870"]  # as its scorer prints it
    assert printed["slu"].split() == ["0.7141", "0.5779", "0.6388"]
    assert "left out" not in printed
    assert "slot_accuracy" not in printed


@pytest.mark.parametrize(
    ("line", "gold", "message"),
    [
        (ORDERS[0], MEANT, "predictions.jsonl:2: id 'a' occurs in {}/predictions.jsonl:1 already"),
        (ORDERS[1], [MEANT[0], MEANT[0]], "gold.jsonl:2: id 'a' occurs in {}/gold.jsonl:1 already"),
        ('{"id": ', MEANT, "predictions.jsonl:2: not JSON ("),
        ({"id": "b", "text": "stop"}, MEANT, "predictions.jsonl:2: a record needs intent or slots"),
        ({"intent": "stop"}, MEANT, "predictions.jsonl:2: no id, no file and no slurp_id"),
        (ORDERS[1], [MEANT[0], {"id": "b", "slots": 3}], "gold.jsonl:2: slots must be a list, not 3"),
        (ORDERS[1], [{"id": "z", "intent": "stop"}], "predictions.jsonl:1 and all other predictions have no gold"),
        (ORDERS[1], [{"file": "z", "intent": "stop"}], "no key to match by: id in all predictions, file in all of"),
        (ORDERS[1], [""], "gold.jsonl: no records"),
    ],
)
def test_a_bad_line_of_slu_is_named(tmp_path: Path, line: Any, gold: list, message: str) -> None:
    with pytest.raises(InputError) as error:
        _slu(tmp_path, predictions=[ORDERS[0], line], gold=gold)
    assert message.format(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files_that_slu_cannot_read(tmp_path: Path) -> None:
    path = _file(tmp_path, ORDERS[0] | {"reference": {"intent": 3}})
    with pytest.raises(InputError, match=r"predictions.jsonl:1: reference: intent must be a string or null, not 3"):
        _run(path, "--task", "slu")
    with pytest.raises(InputError, match=r"predictions.jsonl:1: no reference .* or give --gold FILE"):
        _run(_file(tmp_path, ORDERS[0]), "--task", "slu")
    with pytest.raises(InputError, match=r"none.jsonl: No such file"):
        _run(path, "--task", "slu", "--gold", tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"gold.jsonl: no row with --split val"):
        _slu(tmp_path, "--split", "val")
    with pytest.raises(InputError, match="no predictions"):
        _run(_file(tmp_path, ""), "--task", "slu")


# --------------------------------------------------------------------------------------------------- --task detection

SCORES = [0.9, 0.2, 0.7, 0.4]


def _trials(folder: Path, *labels: object, scores: list = SCORES) -> Path:
    return _file(
        folder,
        *({"id": n, "score": s, "label": label} for n, (s, label) in enumerate(zip(scores, labels, strict=False))),
    )


def test_detection_prints_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = detection(SCORES, [1, 0, 0, 1])
    for labels in ([True, False, False, True], [1, 0, 0, 1]):
        assert _run(_trials(tmp_path, *labels), "--task", "detection") == 0
        rows = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert (rows.pop("items"), rows.pop("targets"), rows.pop("nontargets")) == ("4", "2", "2")
        assert rows == {name: f"{expected[name]:.4f}" for name in ("eer", "threshold", "auc")}


def test_detection_by_two_words_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _trials(tmp_path, "to me", "no", "no", "to me")
    assert _run(path, "--task", "detection", "--positive", "to me", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["items"], report["targets"], report["nontargets"]) == ("detection", 4, 2, 2)
    expected = detection(SCORES, [1, 0, 0, 1])
    assert report["scores"] == {name: expected[name] for name in ("eer", "threshold", "auc")}


def test_detection_draws_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curve.png"
    assert _run(_trials(tmp_path, 1, 0, 0, 1), "--task", "detection", "--det", picture) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "eer" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"none.curve.pdf: could not be written \(No such file"):
        _run(_trials(tmp_path, 1, 0, 0, 1), "--task", "detection", "--det", tmp_path / "none" / "curve.pdf")


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["yes", "no"], [], ":1: label 'yes': which word is the target? Give --positive WORD"),
        (["yes", "no"], ["--positive", "Yes"], "--positive Yes: no such label in {}; its labels: 'yes' and 'no'"),
        (["yes", "no", "on"], ["--positive", "yes"], ":3: label 'on' is a third word beside 'yes' and 'no'"),
        (["yes", "yes"], ["--positive", "yes"], ': all 2 labels are "yes"; both kinds are needed'),
        ([1, 1, True], [], ": all 3 labels are true; both kinds are needed"),
        ([1, 0, "no"], [], ": label 'no' ({}:3) beside labels that are true or false, 1 or 0"),
        ([1, 0], ["--positive", "yes"], ": --positive yes beside labels that are true or false"),
        ([1, 2], [], ":2: label must be true or false, 1 or 0, or a word, not 2"),
        ([1, None], [], ":2: label must be true or false, 1 or 0, or a word, not null"),
    ],
)
def test_unclear_labels_of_targets_are_refused(tmp_path: Path, labels: list, options: list, message: str) -> None:
    path = _trials(tmp_path, *labels)
    with pytest.raises(InputError) as error:
        _run(path, "--task", "detection", *options)
    assert message.format(path) in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 3, "score": NaN, "label": 1}', ":2: score must be a finite number, not NaN"),
        ({"id": 3, "score": "1", "label": 1}, ':2: score must be a finite number, not "1"'),
        ({"id": 3, "score": True, "label": 1}, ":2: score must be a finite number, not true"),
        ({"id": 3, "label": 1}, ":2: no score; a line needs id, score and label"),
        ("3", ":2: no id and no score and no label; a line needs"),
        ({"id": None, "score": 1, "label": 1}, ":2: id must be a string or a whole number, not null"),
        ({"id": 1, "score": 1, "label": 1}, ":2: id '1' is already used in line 1"),
    ],
)
def test_a_bad_line_of_detection_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = _file(tmp_path, {"id": "1", "score": 0.5, "label": 0}, line)
    with pytest.raises(InputError) as error:
        _run(path, "--task", "detection")
    assert str(error.value).startswith(f"{path}{message}")


def test_the_shell_prints_one_line_and_loads_no_torch(tmp_path: Path) -> None:
    """Exit code 2 for a bad file, 0 for a good one; neither task needs torch."""
    code = (
        "import sys; from mmprefix.cli.main import main\n"
        "code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    )

    def shell(*words: object) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-c", code, "evaluate", *words)
        return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)

    done = shell(_trials(tmp_path, 1, 0, 0, 1), "--task", "detection", "--det", tmp_path / "curve.svg")
    assert (done.returncode, done.stderr) == (0, "")
    done = shell(_trials(tmp_path, 1, 1), "--task", "detection")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"mmprefix: {tmp_path}")
    files = _file(tmp_path, *ORDERS), _file(tmp_path, *MEANT, name="gold.jsonl")
    assert shell(files[0], "--task", "slu", "--gold", files[1]).returncode == 0
