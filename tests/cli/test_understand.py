"""``Predictor.understand`` against the decoder's own methods, and ``mmprefix understand``."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import mmprefix
from mmprefix import InputError, Predictor, Waveform
from mmprefix.cli import understand
from mmprefix.cli.inference.row_file import StandardOutput
from mmprefix.cli.inference.rows import InputRow
from mmprefix.data.manifest import InputRef
from mmprefix.kv_cache.state import State
from mmprefix.saved_model import ModelSettings, Understanding
from mmprefix.slu.questions import build_questions
from mmprefix.slu.schema import Schema, portable, read_schema
from mmprefix.types import Media
from tiny import slu_system as tiny_slu_system
from tiny.captioning_system import quietly, run
from tiny.shell import Shell
from tiny.slu_system import OPTIONS, SCHEMA, SluSystem, write_manifest
from tiny.speech_system import RATE

pytestmark = quietly
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("system"), trained=True)


@pytest.fixture(scope="module")
def schema(system: SluSystem) -> Schema:
    return read_schema(system.path("home.yaml"))


@pytest.fixture(scope="module")
def whisper_model(system: SluSystem) -> Predictor:
    return Predictor(system.whisper_model(), ModelSettings(OPTIONS))


@pytest.fixture(scope="module")
def text_model(system: SluSystem) -> Predictor:
    return Predictor(system.text_model(), ModelSettings(OPTIONS))


@pytest.fixture(scope="module")
def transcribing_model(system: SluSystem) -> Predictor:
    return Predictor(system.text_model(transcribes=True), ModelSettings(OPTIONS))


@pytest.fixture(scope="module")
def saved(system: SluSystem, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models: Whisper, GPT-2, and GPT-2 behind a transcriber."""
    folder = tmp_path_factory.mktemp("saved")
    settings = ModelSettings(task=Understanding(portable(system.path("home.yaml"))))
    models = {
        "whisper": system.whisper_model(),
        "text": system.text_model(),
        "transcribing": system.text_model(transcribes=True),
    }
    return {kind: system.save(folder / kind, model, settings) for kind, model in models.items()}


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def meaning(record: Mapping[str, Any]) -> dict[str, Any]:
    """Intent and slots of a result or of a manifest's row."""
    return {"intent": record["intent"], "slots": record["slots"]}


def assert_same(results: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> None:
    """Equal intents and slots, scores within ``TOLERANCE``."""
    assert list(map(meaning, results)) == list(map(meaning, expected))
    for result, other in zip(results, expected, strict=True):
        for kind in ("intent", "slots"):
            assert result["scores"][kind] == pytest.approx(other["scores"][kind], abs=TOLERANCE)


# ------------------------------------------------------------------------------------------------------------ inputs


def test_a_file_gives_a_result_and_a_list_gives_a_list(
    system: SluSystem, whisper_model: Predictor, text_model: Predictor, transcribing_model: Predictor, schema: Schema
) -> None:
    files = system.sounds[:5]
    results = whisper_model.understand(files, schema=schema)
    assert isinstance(results, list)
    assert list(map(meaning, results)) == list(map(meaning, system.rows[:5]))  # as it was trained
    result = whisper_model.understand(files[2], schema=schema)
    assert isinstance(result, dict)
    assert set(result) == {"intent", "slots", "scores"}
    assert_same([result], [results[2]])
    assert_same(whisper_model.understand(files[::-1], schema=schema), results[::-1])
    assert_same(whisper_model.understand([files[3]], schema=schema), [results[3]])
    assert_same([whisper_model.understand({"audio": files[1]}, schema=schema)], [results[1]])
    for framing in ("choice", "yesno"):
        for model, inputs, texts in (
            (whisper_model, system.sounds, None),
            (transcribing_model, system.sounds, None),
            (text_model, None, [row["transcript"] for row in system.rows]),
        ):
            options: dict[str, Any] = {"schema": schema, "framing": framing}
            together = model.understand(inputs, context=texts, batch_size=4, **options)
            alone = [
                model.understand(None if inputs is None else inputs[n], context=texts and texts[n], **options)
                for n in range(12)
            ]
            assert_same(together, alone)


def test_a_schema_is_a_file_a_shipped_name_an_object_or_the_saved_one(
    system: SluSystem, whisper_model: Predictor, schema: Schema, saved: dict[str, Path], tmp_path: Path
) -> None:
    file = system.sounds[0]
    expected = whisper_model.understand(file, schema=schema)
    assert_same([whisper_model.understand(file, schema=system.path("home.yaml"))], [expected])
    assert_same([whisper_model.understand(file, schema=Path(system.path("home.yaml")))], [expected])
    assert whisper_model.understand(file, schema="digits")["intent"] in {str(digit) for digit in range(10)}
    moved = Path(shutil.copytree(saved["whisper"], tmp_path / "moved"))
    again = mmprefix.load(moved, device="cpu")
    assert_same([again.understand(file)], [expected])
    again.save(tmp_path / "again")  # saving again keeps the schema
    assert_same([mmprefix.load(tmp_path / "again", device="cpu").understand(file)], [expected])
    assert portable("slurp") == portable("slurp.yaml") == "slurp"
    assert read_schema(portable(system.path("home.yaml"))) == schema


def test_a_schema_file_is_saved_with_the_model(system: SluSystem, tmp_path: Path) -> None:
    """Saved by a training; the schema file is not needed any more."""
    (tmp_path / "mine.yaml").write_text(SCHEMA)
    config = system.config("text", schema=str(tmp_path / "mine.yaml"), framing="yesno")
    recipe = system.recipe(config, tmp_path)
    assert run("fit", recipe, trainer__max_steps=1, save_to=tmp_path / "model") == 0
    (tmp_path / "mine.yaml").unlink()
    model = mmprefix.load(tmp_path / "model", device="cpu")
    assert str(tmp_path / "mine.yaml") not in (tmp_path / "model" / "mmprefix.yaml").read_text()
    assert isinstance(model.settings.task, Understanding)
    assert model.settings.task.framing == "yesno"
    result = model.understand(context="the dog runs")
    assert set(result["scores"]["intent"]) == {"light_on", "light_off", "ask"}
    assert all(odds == pytest.approx(odds) for odds in result["scores"]["intent"].values())


# ------------------------------------------------------------------------------------------------- answers, scores


def prefill(model: Predictor, file: str) -> State:
    """Decoder state behind the prefix of ``file``."""
    encoder = model.model.encoder("audio")
    values = encoder.preprocess(file, 0.0, None)[None]
    batch = mmprefix.types.Batch({"audio": Media(values, torch.tensor([values.shape[1]]))}, [""], [[]], [""], ["0"])
    return model.model.prefill(batch)


@torch.no_grad()
def test_answers_equal_those_of_each_question_alone(
    system: SluSystem, whisper_model: Predictor, schema: Schema
) -> None:
    """Intent: the likeliest answer; slot with values: the likeliest of them; other slot: the generated text."""
    decoder = whisper_model.model.decoder
    chosen = set()
    for file in system.sounds[:6]:
        start = prefill(whisper_model, file)
        intent, room, thing = build_questions(schema)
        result = whisper_model.understand(file, schema=schema)
        scores = result["scores"]
        answers = [label.answer for label in schema.intents.values()]
        logs = torch.tensor(decoder.score(start, [""], [answers], [[intent.text] * 3])[0]).log_softmax(0)
        assert list(scores["intent"].values()) == pytest.approx(logs.tolist(), abs=TOLERANCE)
        assert result["intent"] == list(schema.intents)[int(logs.argmax())]
        assert math.fsum(map(math.exp, scores["intent"].values())) == pytest.approx(1, abs=1e-5)

        values = ["hall", "roof", "none"]
        logs = torch.tensor(decoder.score(start, [""], [values], [[room.text] * 3])[0]).log_softmax(0)
        likeliest = values[int(logs.argmax())]
        assert scores["slots"]["room"] == pytest.approx(float(logs.max()), abs=TOLERANCE)
        has_room = result["intent"] != "ask"
        assert result["slots"].get("room") == (likeliest if has_room and likeliest != "none" else None)

        (generated,) = decoder.generate(start, [""], OPTIONS, [thing.text])
        assert scores["slots"]["thing"] == pytest.approx(generated[0].score, abs=TOLERANCE)
        text = result["slots"].get("thing", "")
        assert (text if isinstance(text, str) else ", ".join(text)) == ", ".join(
            part.strip() for part in generated[0].text.split(", ") if part.strip() not in ("", "none")
        )
        chosen |= {result["intent"], likeliest}
    assert {"light_on", "light_off", "ask", "hall", "roof", "none"} <= chosen


@torch.no_grad()
def test_yesno_asks_about_each_intent(system: SluSystem, whisper_model: Predictor, schema: Schema) -> None:
    decoder = whisper_model.model.decoder
    for file in system.sounds[:4]:
        start = prefill(whisper_model, file)
        result = whisper_model.understand(file, schema=schema, framing="yesno")
        odds = {}
        for label in schema.intents.values():
            yes, no = decoder.score(start, [""], [["yes", "no"]], [[label.questions[0]] * 2])[0]
            odds[label.name] = yes - no
        assert result["scores"]["intent"] == pytest.approx(odds, abs=TOLERANCE)
        assert result["intent"] == max(odds, key=lambda name: odds[name])
        assert result["scores"]["slots"] == pytest.approx(
            whisper_model.understand(file, schema=schema)["scores"]["slots"], abs=TOLERANCE
        )


def test_questions_about_a_text_alone(system: SluSystem, text_model: Predictor, schema: Schema) -> None:
    texts = [row["transcript"] for row in system.rows]
    results = text_model.understand(context=texts, schema=schema)
    assert len({json.dumps(result["scores"]) for result in results}) == 12
    assert_same([text_model.understand(context=texts[4], schema=schema)], [results[4]])
    assert_same(text_model.understand(context=texts[4:5], schema=schema), [results[4]])
    assert_same(text_model.understand([{}, {}], context=texts[:2], schema=schema), results[:2])


def test_questions_about_the_transcript_of_a_sound(
    system: SluSystem, transcribing_model: Predictor, schema: Schema
) -> None:
    """The context of a sound is its transcript, unless a context is given."""
    transcriber = transcribing_model.model.transcriber
    assert transcriber is not None
    values = [transcriber.preprocess(file, 0.0, None)[None] for file in system.sounds]
    transcripts = [transcriber(Media(value, torch.tensor([value.shape[1]])))[0].text for value in values]
    assert transcripts == [tiny_slu_system.expected_transcript(row) for row in system.rows]  # as it was trained
    results = transcribing_model.understand(system.sounds, schema=schema)
    assert_same(results, transcribing_model.understand(context=transcripts, schema=schema))
    mixed = transcribing_model.understand(system.sounds[:3], context=["", "the dog runs", ""], schema=schema)
    assert_same(mixed, [results[0], transcribing_model.understand(context="the dog runs", schema=schema), results[2]])
    assert_same([transcribing_model.understand({"audio": system.sounds[5]}, schema=schema)], [results[5]])
    rate, clip = RATE, soundfile.read(system.sounds[6])[0]
    assert_same([transcribing_model.understand(Waveform(clip, rate), schema=schema)], [results[6]])


def test_start_and_end_cut_the_file(
    system: SluSystem, whisper_model: Predictor, transcribing_model: Predictor, schema: Schema
) -> None:
    file = system.sounds[10]
    clip = soundfile.read(file)[0][round(0.1 * RATE) : round(0.3 * RATE)]
    for model in (whisper_model, transcribing_model):
        assert_same(
            [model.understand(InputRef(file, 0.1, 0.3), schema=schema)],
            [model.understand(Waveform(clip, RATE), schema=schema)],
        )


# ---------------------------------------------------------------------------------------------------- error messages


def test_wrong_inputs_and_options_are_refused_in_one_line(
    system: SluSystem, whisper_model: Predictor, text_model: Predictor, transcribing_model: Predictor, schema: Schema
) -> None:
    file = system.sounds[0]
    cases: list[tuple[Predictor, tuple[Any, ...], dict[str, Any], str]] = [
        (
            whisper_model,
            (file,),
            {},
            "schema: this model was trained without one; give a file or the name of a shipped",
        ),
        (whisper_model, (file,), {"schema": "slrup"}, "schema slrup: no such file; shipped schemas: barista"),
        (whisper_model, (file,), {"schema": schema, "framing": "maybe"}, "framing 'maybe': use one of choice, yesno"),
        (whisper_model, (file,), {"schema": schema, "context": "on"}, "context: this model was trained without one"),
        (whisper_model, (), {"schema": schema}, "no input given; give a file, a list of files, or a context"),
        (whisper_model, ([],), {"schema": schema}, "no input given"),
        (
            whisper_model,
            ({},),
            {"schema": schema},
            "no branch for input (none given); this model reads a sound (branch 'audio')",
        ),
        (whisper_model, ("none.wav",), {"schema": schema}, "none.wav: no such file"),
        (
            whisper_model,
            ([0.5, 1.0],),
            {"schema": schema},
            "is a row of numbers, but this model reads a sound (branch 'audio')",
        ),
        (text_model, (file,), {"schema": schema}, "0.wav: this model reads no files, only a context"),
        (text_model, ({"audio": file},), {"schema": schema}, "no branch for input audio; this model reads"),
        (text_model, (), {"schema": schema, "context": ["on", ""]}, "input 2: has neither a file nor a context"),
        (text_model, ([{}],), {"schema": schema, "context": ["a", "b"]}, "context: 2 contexts for 1 inputs"),
        (transcribing_model, ({},), {"schema": schema}, "input 1: has neither a file nor a context"),
    ]
    for model, inputs, options, message in cases:
        with pytest.raises(InputError) as error:
            model.understand(*inputs, **options)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- shell


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_answer_of_several_lines_is_printed_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    row = InputRow("x", {}, "", {})
    broken = {"intent": None, "slots": {"room": "a\nb", "thing": ["c", "d\r\n"]}}
    StandardOutput(None).write({"file": "x.wav"}, understand._texts(row, broken))
    assert capsys.readouterr().out == "x.wav: (no intent)(room=a b; thing=c, d )\n"


def test_files_are_understood_in_the_shell(
    system: SluSystem, saved: dict[str, Path], whisper_model: Predictor, schema: Schema, shell: Shell
) -> None:
    files = system.sounds[:3]
    expected = whisper_model.understand(files, schema=schema)
    code, out, _ = shell("understand", saved["whisper"], *files, "--json", "--device", "cpu", "--batch-size", "2")
    assert code == 0
    lines = rows_of(out)
    assert [line["file"] for line in lines] == files
    assert_same(lines, expected)
    code, out, _ = shell("understand", saved["whisper"], *files, "--device", "cpu")
    for line, file, result in zip(out.splitlines(), files, expected, strict=True):
        slots = [f"{k}={v if isinstance(v, str) else ', '.join(v)}" for k, v in result["slots"].items()]
        assert line == f"{file}: {result['intent']}({'; '.join(slots)})"
    code, out, _ = shell("understand", saved["whisper"], files[0], "--device", "cpu", "--schema", "digits", "--json")
    assert set(rows_of(out)[0]["scores"]["intent"]) == {str(digit) for digit in range(10)}
    code, out, _ = shell("understand", saved["whisper"], files[0], "--device", "cpu", "--framing", "yesno", "--json")
    assert_same(rows_of(out), [whisper_model.understand(files[0], schema=schema, framing="yesno")])


def test_texts_are_understood_in_the_shell(
    system: SluSystem, saved: dict[str, Path], text_model: Predictor, schema: Schema, shell: Shell
) -> None:
    code, out, _ = shell("understand", saved["text"], "--context", "the dog runs", "--json", "--device", "cpu")
    assert code == 0
    (line,) = rows_of(out)
    assert line["file"] == "text"
    assert_same([line], [text_model.understand(context="the dog runs", schema=schema)])
    # rows with sounds beside their texts, and rows of text alone
    rows = [row for row in system.rows if row["split"] == "val"]
    expected = text_model.understand(context=[(row["asr"] or [row["transcript"]])[0] for row in rows], schema=schema)
    options = ("--split", "val", "--context-field", "asr,transcript", "--json", "--device", "cpu")
    for name in ("manifest.jsonl", "texts.jsonl"):
        code, out, err = shell("understand", saved["text"], "--manifest", system.path(name), *options)
        assert code == 0, err
        assert [line["id"] for line in rows_of(out)] == [row["id"] for row in rows]
        assert_same(rows_of(out), expected)


@pytest.mark.parametrize("kind", ["whisper", "text", "transcribing"])
def test_a_manifest_is_understood_and_evaluated(
    system: SluSystem, saved: dict[str, Path], kind: str, shell: Shell, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "understood.jsonl"
    text = ("--context-field", "transcript") if kind == "text" else ()
    manifest = system.path("manifest.jsonl")
    code, message, err = shell(
        "understand", saved[kind], "--manifest", manifest, "--out", out, "--device", "cpu", *text
    )
    assert code == 0, err
    assert message == f"wrote 12 lines: {out}\n"
    assert {file.name for file in out.parent.iterdir()} == {"understood.jsonl", ".understood.jsonl.options.json"}
    lines = rows_of(out.read_text())
    for line, row in zip(lines, system.rows, strict=True):
        assert (line["id"], line["reference"]) == (row["id"], {"intent": row["intent"], "slots": row["slots"]})
    model = mmprefix.load(saved[kind], device="cpu")
    if kind == "text":
        expected = model.understand(context=[row["transcript"] for row in system.rows])
    else:
        expected = model.understand(system.sounds)
    assert_same(lines, expected)
    code, figures, _ = shell("evaluate", out, "--task", "slu", "--json")
    assert code == 0
    scores = json.loads(figures)
    correct = [line["intent"] == line["reference"]["intent"] for line in lines]
    assert scores["scores"]["intent_accuracy"] == pytest.approx(np.mean(correct))
    assert (scores["scores"]["intent_accuracy"] > 0.8) == (kind == "whisper")
    code, with_gold, _ = shell("evaluate", out, "--task", "slu", "--json", "--gold", manifest)
    assert json.loads(with_gold)["scores"] == scores["scores"]


def test_a_part_of_a_file_and_a_table_as_manifests(
    system: SluSystem, saved: dict[str, Path], whisper_model: Predictor, schema: Schema, shell: Shell, tmp_path: Path
) -> None:
    table = tmp_path / "m.csv"
    table.write_text(f'id,audio,start,end,intent,slots\na,{system.sounds[10]},0.1,0.3,ask,"{{""thing"": ""dog""}}"\n')
    code, out, err = shell("understand", saved["whisper"], "--manifest", table, "--json", "--device", "cpu")
    assert code == 0, err
    (line,) = rows_of(out)
    assert_same([line], [whisper_model.understand(InputRef(system.sounds[10], 0.1, 0.3), schema=schema)])
    assert line["reference"] == {"intent": "ask", "slots": {"thing": "dog"}}


def test_each_error_is_one_line(system: SluSystem, saved: dict[str, Path], shell: Shell, tmp_path: Path) -> None:
    manifest, file = system.path("manifest.jsonl"), system.sounds[0]
    silent = write_manifest(tmp_path / "silent.jsonl", [{"id": "x", "transcript": "on"}])
    odd = write_manifest(tmp_path / "odd.jsonl", [{"id": "x", "audio": file, "slots": 3}])
    gone = write_manifest(tmp_path / "gone.jsonl", [{"id": "x", "audio": "none.wav"}])
    cases: list[tuple[str, tuple[Any, ...], str]] = [
        ("whisper", (), "no input given; give files, or --manifest FILE"),
        ("whisper", (file, "--manifest", manifest), "cannot be combined with a file; give one of them"),
        ("whisper", (file, "--split", "val"), "--split applies to --manifest FILE, which is missing"),
        ("whisper", (file, "--context-field", "asr"), "--context-field applies to --manifest FILE"),
        ("whisper", ("none.wav",), "none.wav: no such file"),
        ("whisper", ("--manifest", "none.jsonl"), "none.jsonl: the manifest cannot be read: no such file"),
        ("whisper", ("--manifest", manifest, "--split", "test"), "no row has split = test"),
        ("whisper", ("--manifest", silent), "row 'x' has none of audio"),
        ("text", ("--manifest", silent), "row 'x' has none of text; --context-field names the column of its text"),
        ("text", ("--manifest", silent, "--context-field", "asr"), "--context-field asr: no row of"),
        ("whisper", ("--manifest", manifest, "--context-field", "asr"), "--context-field: this model reads no context"),
        ("whisper", (file, "--context", "on"), "--context: this model reads no context; leave it out"),
        ("text", (file,), "0.wav: this model reads no files, only a context"),
        ("whisper", ("--manifest", odd), "row 'x': slots: must be an object or a list of [type, value], found 3"),
        ("whisper", (file, "--out", tmp_path), "is a folder; give a file"),
        ("whisper", (file, "--schema", "slrup"), "schema slrup: no such file"),
        ("whisper", (file, "--framing", "maybe"), "invalid choice: 'maybe'"),
        ("nothing", (file,), "nothing"),
    ]
    for kind, words, message in cases:
        assert message in shell.refuses("understand", saved.get(kind, tmp_path / "nothing"), *words, "--device", "cpu")
    assert shell.refuses("understand", saved["whisper"], "--manifest", gone) == (
        f"{gone}:1: audio: {tmp_path / 'none.wav'}: no such file"
    )
    twice = write_manifest(tmp_path / "twice.jsonl", [{"id": "x", "audio": "none.wav"}, {"id": "y"}])
    code, _, err = shell("understand", saved["whisper"], "--manifest", twice)
    assert (code, err.count("\n")) == (2, 3)
    assert err.startswith(f"mmprefix: {twice}: 2 bad rows\n{twice}:1: audio: ")
    code, _, err = shell("understand", saved["whisper"], file, "--out", f"{manifest}/x.jsonl", "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)


def test_a_manifest_s_context_is_ignored_by_a_model_that_reads_none(
    system: SluSystem, saved: dict[str, Path], whisper_model: Predictor, schema: Schema, shell: Shell, tmp_path: Path
) -> None:
    file = write_manifest(
        tmp_path / "m.jsonl", [{"id": "x", "audio": system.sounds[2], "context": "likes dogs", "image": None}]
    )
    code, out, err = shell("understand", saved["whisper"], "--manifest", file, "--json", "--device", "cpu")
    assert code == 0, err
    assert_same(rows_of(out), [whisper_model.understand(system.sounds[2], schema=schema)])
    assert "reference" not in rows_of(out)[0]


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, argparse, importlib\n"
        "names = 'understand detect transcribe check_data evaluate import_checkpoint caption'\n"
        "for name in names.split():\n"
        "    module = importlib.import_module(f'mmprefix.cli.{name}')\n"
        "    parser = argparse.ArgumentParser()\n"
        "    getattr(module, 'add_arguments', print)(parser)\n"
        "sys.exit(', '.join({'torch', 'transformers', 'lightning'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
