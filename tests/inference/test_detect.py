"""Detection: Predictor.choose and detect with every subset of the inputs, the verb, metrics of a validation."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix import InputError, Predictor
from mmprefix.metrics import detection
from mmprefix.saved_model import Detection, ModelSettings
from mmprefix.types import Batch
from tiny import slu_system as tiny_slu_system
from tiny.captioning_system import error_message, metric_values, quietly, report_rows, run
from tiny.logs import collect_warnings
from tiny.shell import Shell
from tiny.slu_system import OPTIONS, SluSystem, write_manifest
from tiny.speech_system import recipe_part

pytestmark = quietly
TOLERANCE = 1e-4
ANSWERS = ("true", "false")


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def model(orders: SluSystem) -> Predictor:
    return Predictor(orders.detection_model(), ModelSettings(OPTIONS, task=Detection(ANSWERS)))


@pytest.fixture(scope="module")
def saved(orders: SluSystem, model: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return orders.save(tmp_path_factory.mktemp("saved") / "m", model.model, model.settings)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def inputs(orders: SluSystem, *names: str) -> list[dict[str, Any]]:
    """Files and numbers of each row among the inputs ``names``."""
    kept = [name for name in names if name != "text"]
    return [{k: orders.path(v) if k == "audio" else v for k, v in row.items() if k in kept} for row in orders.rows]


def contexts(orders: SluSystem) -> list[str]:
    """Transcript of each row."""
    return [row["transcript"] for row in orders.rows]


# ------------------------------------------------------------------------------------------------------- in Python


SUBSETS = [names for size in (1, 2, 3) for names in combinations(("audio", "signals", "text"), size)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@torch.no_grad()
def test_any_subset_of_the_inputs(orders: SluSystem, model: Predictor, names: tuple[str, ...]) -> None:
    """Log odds are the difference of the two words' scores; a batch equals its rows."""
    rows, texts = inputs(orders, *names), contexts(orders) if "text" in names else None
    odds_of_rows = model.detect(None if names == ("text",) else rows, context=texts, batch_size=5)
    assert len({round(odds, 5) for odds in odds_of_rows}) == 12
    for n in (0, 5, 11):
        text = None if texts is None else texts[n]
        (alone,) = model.detect(None if names == ("text",) else rows[n], context=text)
        assert odds_of_rows[n] == pytest.approx(alone, abs=TOLERANCE)
        media = {name: model.model.encoder(name) for name in model.model.encoders if name in names}
        sources = {name: tuple(value) if name == "signals" else value for name, value in rows[n].items()}
        values = {name: encoder.preprocess(sources[name], 0.0, None) for name, encoder in media.items()}
        batch = Batch(
            {k: mmprefix.types.Media(v[None], torch.tensor([len(v)])) for k, v in values.items()},
            [""], [[]], [text or ""], ["0"],
        )  # fmt: skip
        prompts = model.model.prompts(batch)
        ((yes, no),) = model.model.decoder.score(model.model.prefill(batch), prompts, [list(ANSWERS)])
        assert odds_of_rows[n] == pytest.approx(yes - no, abs=TOLERANCE)


def test_rows_may_have_different_inputs_in_one_call(orders: SluSystem, model: Predictor) -> None:
    full, transcripts = inputs(orders, "audio", "signals"), contexts(orders)
    mixed: list[Any] = [full[0], full[1]["audio"], {"signals": full[2]["signals"]}, {}, full[4]["signals"], full[5]]
    texts = ["", transcripts[1], "", transcripts[3], transcripts[4], transcripts[5]]
    together = model.detect(mixed, context=texts, batch_size=2)
    alone = [
        model.detect(None if row == {} else row, context=text or None)[0]
        for row, text in zip(mixed, texts, strict=True)
    ]
    assert together == pytest.approx(alone, abs=TOLERANCE)
    assert len({round(odds, 4) for odds in together}) == 6


def test_choices_have_normalised_log_probabilities(orders: SluSystem, model: Predictor) -> None:
    words = ["true", "false", "some rain", "a"]
    files = inputs(orders, "audio")[:4]
    log_probs = model.choose(files, words, context="the cat runs")
    assert [list(row) for row in log_probs] == [words] * 4
    scores = model.score([file for file in files for _ in words], words * 4, context="the cat runs")
    for n, row in enumerate(log_probs):
        assert math.fsum(map(math.exp, row.values())) == pytest.approx(1, abs=1e-5)
        expected = torch.tensor(scores[4 * n : 4 * n + 4]).log_softmax(0).tolist()
        assert list(row.values()) == pytest.approx(expected, abs=TOLERANCE)
    (odds,) = model.detect(files[0], answers=("some rain", "a"), context="the cat runs")
    assert odds == pytest.approx(log_probs[0]["some rain"] - log_probs[0]["a"], abs=TOLERANCE)
    assert model.choose(None, words[:2], context="the cat runs")[0].keys() == {"true", "false"}


def test_answers_are_saved_with_the_model(orders: SluSystem, model: Predictor, saved: Path, tmp_path: Path) -> None:
    files = inputs(orders, "audio", "signals")
    expected = model.detect(files)
    again = mmprefix.load(saved, device="cpu")
    assert again.detect(files) == pytest.approx(expected, abs=TOLERANCE)
    again.save(tmp_path / "again")
    assert mmprefix.load(tmp_path / "again", device="cpu").detect(files) == pytest.approx(expected, abs=TOLERANCE)
    (turned,) = again.detect(files[0], answers=(ANSWERS[1], ANSWERS[0]))
    assert turned == pytest.approx(-expected[0], abs=TOLERANCE)


def test_impossible_calls_are_refused(orders: SluSystem, model: Predictor) -> None:
    audio = orders.sounds[0]
    bare = Predictor(model.model, ModelSettings(OPTIONS))
    hears = Predictor(orders.whisper_model(), ModelSettings(OPTIONS))
    with pytest.raises(InputError, match=r"answers: this model has none of its own; give two words"):
        bare.detect(audio)
    with pytest.raises(InputError, match=r"choices \['true'\]: give two or more"):
        model.choose(audio, ["true"])
    with pytest.raises(InputError, match=r"choices \['true'\]: give two or more"):
        model.choose(audio, "true")  # no list of letters
    with pytest.raises(InputError, match="choices: two have the same tokens in this decoder"):
        model.choose(audio, ["true", "true"])
    with pytest.raises(InputError, match="no input given; give a file, a list of files, or a context"):
        model.detect()
    with pytest.raises(InputError, match="input 2: has neither a file nor a context"):
        model.detect([audio, {}])
    with pytest.raises(InputError, match=r"the given numbers: holds 2 numbers, expected 4"):
        model.detect({"signals": (0.5, 1.0)})
    with pytest.raises(InputError, match=r"no branch for input text; this model reads a sound \(branch 'audio'\)"):
        model.detect({"text": "on"})
    with pytest.raises(InputError, match="context: this model was trained without one"):
        hears.choose(audio, ["yes", "no"], context="on")


# ---------------------------------------------------------------------------------------------------------- the verb


def rows_of(text: str) -> list[dict[str, Any]]:
    """Objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_files_are_detected_on_the_command_line(orders: SluSystem, model: Predictor, saved: Path, shell: Shell) -> None:
    files = orders.sounds[:3]
    code, out, err = shell("detect", saved, *files, "--json", "--device", "cpu")
    assert code == 0, err
    assert [line["file"] for line in rows_of(out)] == files
    expected = model.detect(files)
    assert [line["score"] for line in rows_of(out)] == pytest.approx(expected, abs=TOLERANCE)
    code, out, _ = shell("detect", saved, *files, "--device", "cpu")
    assert out == "".join(f"{file}: {odds:+.3f}\n" for file, odds in zip(files, expected, strict=True))
    code, out, _ = shell("detect", saved, "--context", "a dog", "--json", "--device", "cpu", "--answers", "a, the")
    (line,) = rows_of(out)
    assert line["file"] == "text"
    assert line["score"] == pytest.approx(model.detect(context="a dog", answers=("a", "the"))[0], abs=TOLERANCE)


@pytest.mark.parametrize("names", [None, "audio", "signals", "text", "audio,text"])
def test_a_manifest_is_detected_and_evaluated(
    orders: SluSystem, model: Predictor, saved: Path, names: str | None, shell: Shell, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    words = ("--manifest", orders.path("manifest.jsonl"), "--label-field", "wake", "--out", out, "--device", "cpu")
    chosen = () if names is None else ("--inputs", names)
    code, output, err = shell("detect", saved, *words, *chosen, "--context-field", "transcript")
    assert (code, output) == (0, f"wrote 12 lines: {out}\n"), err
    kept = ["audio", "signals", "text"] if names is None else names.split(",")
    files = None if kept == ["text"] else inputs(orders, *kept)
    expected = model.detect(files, context=contexts(orders) if "text" in kept else None)
    lines = rows_of(out.read_text())
    assert [line["score"] for line in lines] == pytest.approx(expected, abs=TOLERANCE)
    assert [(line["id"], line["label"]) for line in lines] == [(row["id"], row["wake"]) for row in orders.rows]
    code, figures, _ = shell("evaluate", out, "--task", "detection", "--json")
    assert code == 0
    report = json.loads(figures)
    assert (report["targets"], report["nontargets"]) == (6, 6)
    metrics = detection([line["score"] for line in lines], [row["wake"] for row in orders.rows])
    assert report["scores"] == {name: metrics[name] for name in ("eer", "threshold", "auc")}


def test_one_split_with_words_for_labels(orders: SluSystem, saved: Path, shell: Shell, tmp_path: Path) -> None:
    rows = [{**row, "audio": orders.path(row["audio"])} for row in orders.rows]
    rows = [{**row, "label": "directed" if row["wake"] else "not"} for row in rows]
    rows[0] |= {"signals": None, "split": "val"}  # a row may lack an input that others have
    file, out = write_manifest(tmp_path / "m.jsonl", rows), tmp_path / "scores.jsonl"
    code, _, err = shell("detect", saved, "--manifest", file, "--split", "val", "--out", out, "--device", "cpu")
    assert code == 0, err
    assert [line["id"] for line in rows_of(out.read_text())] == ["o0", "o8", "o9", "o10", "o11"]
    code, output, _ = shell("evaluate", out, "--task", "detection", "--positive", "directed")
    assert code == 0
    assert "targets     3" in output


def test_wrong_arguments_give_one_line(orders: SluSystem, saved: Path, shell: Shell, tmp_path: Path) -> None:
    manifest, file = orders.path("manifest.jsonl"), orders.sounds[0]
    bare = orders.save(tmp_path / "bare", orders.whisper_model())
    texts = orders.path("texts.jsonl")
    cases: list[tuple[Path, tuple[Any, ...], str]] = [
        (saved, (), "no input given; give files, or --manifest FILE"),
        (saved, (file, "--manifest", manifest), "cannot be combined with a file; give one of them"),
        (saved, (file, "--inputs", "audio"), "--inputs applies to --manifest FILE, which is missing"),
        (saved, ("--manifest", manifest, "--inputs", "audo"), "--inputs audo: this model does not read 'audo'"),
        (bare, ("--manifest", manifest, "--inputs", "text"), "this model does not read 'text'; it reads audio"),
        (saved, ("--manifest", manifest, "--inputs", "text"), "row 'o0' has none of text; --context-field names"),
        (saved, ("--manifest", texts, "--inputs", "audio"), "row 'o0' has none of audio"),
        (saved, (file, "--answers", "yes"), "--answers yes: give two words separated by a comma"),
        (saved, (file, "--answers", "yes,yes"), "--answers yes,yes: give two words"),
        (saved, (file, "--answers", "yes,"), "--answers yes,: give two words"),
        (bare, (file,), "answers: this model has none of its own; give two words"),
        (saved, ("none.wav",), "none.wav: no such file"),
        (tmp_path / "nothing", (file,), "nothing"),
    ]
    for directory, words, message in cases:
        assert message in shell.refuses("detect", directory, *words, "--device", "cpu")


def test_rows_that_cannot_be_read_do_not_end_the_others(
    orders: SluSystem, model: Predictor, saved: Path, shell: Shell, tmp_path: Path
) -> None:
    rows = [{**row, "audio": orders.path(row["audio"])} for row in orders.rows[:3]]
    rows[1]["audio"] = str(tmp_path / "none.wav")
    file, out = write_manifest(tmp_path / "m.jsonl", rows), tmp_path / "scores.csv"
    code, message, err = shell("detect", saved, file, "--inputs", "audio", "--out", out, "--device", "cpu")
    assert (code, message) == (3, f"wrote 2 lines: {out}\n"), err
    assert f"{file}:2: audio: {tmp_path / 'none.wav'}: no such file" in err
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert [line[0] for line in lines] == ["id", rows[0]["id"], rows[2]["id"]]
    expected = model.detect([rows[0]["audio"], rows[2]["audio"]])
    assert [line[1] for line in lines] == ["file", rows[0]["audio"], rows[2]["audio"]]
    assert [float(line[2]) for line in lines[1:]] == pytest.approx(expected, abs=TOLERANCE)


# ------------------------------------------------------------------------------------------------------- in training


def detection_recipe(orders: SluSystem, **data: Any) -> dict[str, Any]:
    """Recipe of a detector that is trained on ``wake`` of each row; ``data`` are options of PairData."""
    config = orders.config("text")
    whisper = recipe_part("encoders.whisper.Whisper", model=orders.path("whisper"))
    sizes = {"length": 2, "hidden": 8}
    branches = {
        "audio": {"encoder": whisper, "mapper": recipe_part("mappers.mlp.MLP", **sizes)},
        "signals": {
            "encoder": recipe_part("encoders.signals.Signals"),
            "mapper": recipe_part("mappers.minmax.MinMax", mapper=recipe_part("mappers.mlp.MLP", **sizes)),
        },
    }
    config["model"] |= {"branches": branches, "answers": list(ANSWERS), "modality_dropout": 0.3}
    options = {"root": str(orders.folder), "target": "wake", "context": ["asr", "transcript"], "batch_size": 4}
    config["data"] = recipe_part("data.PairData", **{**options, **data})
    return config


def test_a_validation_measures_the_log_odds(orders: SluSystem, tmp_path: Path, capfd: Any) -> None:
    recipe = orders.recipe(detection_recipe(orders), tmp_path)
    assert run("fit", recipe, save_to=tmp_path / "model") == 0
    rows = report_rows(tmp_path, "val")
    by_id = {row["id"]: row for row in orders.rows}
    assert {row["id"]: row["references"] for row in rows} == {
        name: [str(by_id[name]["wake"]).lower()] for name in ("o8", "o9", "o10", "o11")
    }
    metrics = detection([row["log_odds"] for row in rows], [row["references"] == ["true"] for row in rows])
    for name in ("eer", "auc", "threshold"):
        assert metric_values(tmp_path, f"val/{name}")[-1] == pytest.approx(metrics[name], abs=1e-6)
    assert "eer" in capfd.readouterr().err
    assert {row["group"] for row in rows} == {"audio+signals+text"}
    # The saved model alone gives the same rows the same log odds.
    model = mmprefix.load(tmp_path / "model", device="cpu")
    assert model.settings.task == Detection(ANSWERS)
    named = [by_id[row["id"]] for row in rows]
    files = [{"audio": orders.path(row["audio"]), "signals": row["signals"]} for row in named]
    texts = [(row["asr"] or [row["transcript"]])[0] for row in named]
    assert model.detect(files, context=texts) == pytest.approx([row["log_odds"] for row in rows], abs=1e-3)
    card = (tmp_path / "model" / "README.md").read_text()
    for name in ("eer", "auc", "threshold"):
        assert f"| {name} | {metrics[name]:.4f} |" in card


def test_metrics_are_also_reported_for_each_kind_of_input(orders: SluSystem, tmp_path: Path) -> None:
    """Rows with and without a text: batches and groups are of one kind of input."""
    rows = [{**row, "audio": orders.path(row["audio"]), "asr": [], "transcript": None} for row in orders.rows]
    for n in (8, 9):
        rows[n]["asr"] = ["a dog"]
    for n in (10, 11):
        del rows[n]["signals"]
    file = write_manifest(tmp_path / "m.jsonl", rows)
    recipe = orders.recipe(
        detection_recipe(orders, root=None, train=str(file), val=str(file), where={"split": "val"}), tmp_path
    )
    assert run("fit", recipe, trainer__max_epochs=1) == 0
    groups = {row["id"]: row["group"] for row in report_rows(tmp_path, "val")}
    assert groups == {"o8": "audio+signals+text", "o9": "audio+signals+text", "o10": "audio", "o11": "audio"}
    for group in set(groups.values()):
        assert len(metric_values(tmp_path, f"val/{group}/eer")) == 1
    assert len(metric_values(tmp_path, "val/eer")) == 1


def test_a_warning_tells_that_no_reference_is_an_answer(orders: SluSystem, tmp_path: Path) -> None:
    config = detection_recipe(orders)
    config["model"]["answers"] = ["yes", "no"]
    with collect_warnings() as warnings:
        assert run("fit", orders.recipe(config, tmp_path), trainer__max_epochs=1) == 0
    assert "No eer and auc: 0 of 4 references are 'yes'; they need both kinds." in warnings


def test_a_missing_target_is_a_bad_row(orders: SluSystem, tmp_path: Path, capfd: Any) -> None:
    rows = [{**row, "audio": orders.path(row["audio"])} for row in orders.rows]
    del rows[1]["wake"]
    file = write_manifest(tmp_path / "m.jsonl", rows)
    recipe = orders.recipe(detection_recipe(orders, root=None, train=str(file)), tmp_path)
    message = error_message("fit", recipe, capfd)
    assert message.startswith("1 bad row (data.on_bad skip would leave them out)")
    assert run("fit", recipe, data__init_args__on_bad="skip", trainer__max_epochs=1) == 0
    assert (
        run("predict", recipe, ckpt_path="last", data__init_args__predict=str(file)) == 0
    )  # prediction needs no target
    lines = rows_of((tmp_path / "predictions.jsonl").read_text())
    assert [(line["id"], line["references"]) for line in lines][:3] == [("o0", ["true"]), ("o1", []), ("o2", ["true"])]
