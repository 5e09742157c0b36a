"""Predictor.understand and the verb: each question on its own against the decoder, and what the shell makes of it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch

import mmprefix
from mmprefix import InputError, Predictor, Waveform
from mmprefix.cli import understand
from mmprefix.cli.model_inputs import InputRow
from mmprefix.data.manifest import InputRef
from mmprefix.saved_model import ModelSettings, Understanding
from mmprefix.slu.questions import build_questions
from mmprefix.slu.schema import Schema, portable, read_schema
from mmprefix.types import Media
from tiny import slu_system as tiny_slu_system
from tiny.captioning_system import quietly, run
from tiny.shell import Shell
from tiny.slu_system import OPTIONS, SCHEMA, Orders, write
from tiny.speech_system import RATE

pytestmark = quietly
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Orders:
    return tiny_slu_system.build(tmp_path_factory.mktemp("orders"), taught=True)


@pytest.fixture(scope="module")
def schema(orders: Orders) -> Schema:
    return read_schema(orders.place("home.yaml"))


@pytest.fixture(scope="module")
def hears(orders: Orders) -> Predictor:
    return Predictor(orders.hears(), ModelSettings(OPTIONS))


@pytest.fixture(scope="module")
def reads(orders: Orders) -> Predictor:
    return Predictor(orders.reads(), ModelSettings(OPTIONS))


@pytest.fixture(scope="module")
def modular(orders: Orders) -> Predictor:
    return Predictor(orders.reads(transcribes=True), ModelSettings(OPTIONS))


@pytest.fixture(scope="module")
def saved(orders: Orders, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model directories: a Whisper that is asked, a GPT-2 that reads, one with a transcriber."""
    folder = tmp_path_factory.mktemp("saved")
    settings = ModelSettings(task=Understanding(portable(orders.place("home.yaml"))))
    models = {"hears": orders.hears(), "reads": orders.reads(), "modular": orders.reads(transcribes=True)}
    return {kind: orders.save(folder / kind, model, settings) for kind, model in models.items()}


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """The same intents and slots, scores up to a rounding."""
    meanings = [[{"intent": one["intent"], "slots": one["slots"]} for one in some] for some in (found, wanted)]
    assert meanings[0] == meanings[1]
    for mine, other in zip(found, wanted, strict=True):
        for kind in ("intent", "slots"):
            assert mine["scores"][kind] == pytest.approx(other["scores"][kind], abs=TOLERANCE)


# ------------------------------------------------------------------------------------------------- one and many inputs


def test_one_file_gives_a_meaning_and_a_list_gives_a_list(orders: Orders, hears: Predictor, schema: Schema) -> None:
    files = orders.sounds[:5]
    found = hears.understand(files, schema=schema)
    assert isinstance(found, list)
    meant = [{"intent": row["intent"], "slots": row["slots"]} for row in orders.rows[:5]]
    assert [{"intent": one["intent"], "slots": one["slots"]} for one in found] == meant  # what it was taught
    one = hears.understand(files[2], schema=schema)
    assert isinstance(one, dict)
    assert set(one) == {"intent", "slots", "scores"}
    same([one], [found[2]])
    same(hears.understand(files[::-1], schema=schema), found[::-1])
    same(hears.understand([files[3]], schema=schema), [found[3]])
    same([hears.understand({"audio": files[1]}, schema=schema)], [found[1]])
    for framing in ("choice", "yesno"):
        for model, inputs, told in (
            (hears, orders.sounds, None),
            (modular_of(orders), orders.sounds, None),
            (Predictor(orders.reads(), ModelSettings(OPTIONS)), None, [row["transcript"] for row in orders.rows]),
        ):
            given: dict[str, Any] = {"schema": schema, "framing": framing}
            many = model.understand(inputs, context=told, batch_size=4, **given)
            alone = [
                model.understand(None if inputs is None else inputs[n], context=told and told[n], **given)
                for n in range(12)
            ]
            same(many, alone)


def modular_of(orders: Orders) -> Predictor:
    return Predictor(orders.reads(transcribes=True), ModelSettings(OPTIONS))


def test_a_schema_is_a_file_a_shipped_name_an_object_or_what_was_saved(
    orders: Orders, hears: Predictor, schema: Schema, saved: dict[str, Path], tmp_path: Path
) -> None:
    file = orders.sounds[0]
    wanted = hears.understand(file, schema=schema)
    same([hears.understand(file, schema=orders.place("home.yaml"))], [wanted])
    same([hears.understand(file, schema=Path(orders.place("home.yaml")))], [wanted])
    assert hears.understand(file, schema="digits")["intent"] in {str(digit) for digit in range(10)}
    moved = Path(shutil.copytree(saved["hears"], tmp_path / "moved"))
    again = mmprefix.load(moved, device="cpu")
    same([again.understand(file)], [wanted])
    again.save(tmp_path / "again")  # and it is kept when it is saved once more
    same([mmprefix.load(tmp_path / "again", device="cpu").understand(file)], [wanted])
    known = portable("slurp")
    assert known == portable("slurp.yaml") == "slurp"
    assert read_schema(portable(orders.place("home.yaml"))) == schema


def test_a_schema_of_ones_own_is_saved_with_the_model(orders: Orders, tmp_path: Path) -> None:
    """By a training from the shell: the file may go."""
    (tmp_path / "mine.yaml").write_text(SCHEMA)
    config = orders.config("reads", schema=str(tmp_path / "mine.yaml"), framing="yesno")
    recipe = orders.recipe(config, tmp_path)
    assert run("fit", recipe, trainer__max_steps=1, save_to=tmp_path / "model") == 0
    (tmp_path / "mine.yaml").unlink()
    model = mmprefix.load(tmp_path / "model", device="cpu")
    assert str(tmp_path / "mine.yaml") not in (tmp_path / "model" / "mmprefix.yaml").read_text()
    assert cast(Understanding, model.settings.task).framing == "yesno"
    found = model.understand(context="the dog runs")
    assert set(found["scores"]["intent"]) == {"light_on", "light_off", "ask"}
    assert all(odds == pytest.approx(odds) for odds in found["scores"]["intent"].values())


# --------------------------------------------------------------------------------------------------- answers, scores


def state(model: Predictor, file: str) -> Any:
    encoder = model.model.encoder("audio")
    values = encoder.preprocess(file, 0.0, None)[None]
    batch = mmprefix.types.Batch({"audio": Media(values, torch.tensor([values.shape[1]]))}, [""], [[]], [""], ["0"])
    return model.model.prefill(batch)


@torch.no_grad()
def test_answers_are_those_of_each_question_alone(orders: Orders, hears: Predictor, schema: Schema) -> None:
    """The intent is the likeliest of all, a closed slot the likeliest of its values, a free one what is written."""
    decoder = hears.model.decoder
    chosen = set()
    for file in orders.sounds[:6]:
        start = state(hears, file)
        intent, room, thing = build_questions(schema)
        found = hears.understand(file, schema=schema)
        scores = found["scores"]
        answers = [label.answer for label in schema.intents.values()]
        total = torch.tensor(decoder.score(start, [""], [answers], [[intent.text] * 3])[0]).log_softmax(0)
        assert list(scores["intent"].values()) == pytest.approx(total.tolist(), abs=TOLERANCE)
        assert found["intent"] == list(schema.intents)[int(total.argmax())]
        assert math.fsum(map(math.exp, scores["intent"].values())) == pytest.approx(1, abs=1e-5)

        total = torch.tensor(decoder.score(start, [""], [["hall", "roof", "none"]], [[room.text] * 3])[0]).log_softmax(
            0
        )
        likeliest = ["hall", "roof", "none"][int(total.argmax())]
        assert scores["slots"]["room"] == pytest.approx(float(total.max()), abs=TOLERANCE)
        takes = found["intent"] != "ask"
        assert found["slots"].get("room") == (likeliest if takes and likeliest != "none" else None)

        (written,) = decoder.generate(start, [""], OPTIONS, [thing.text])
        assert scores["slots"]["thing"] == pytest.approx(written[0].score, abs=TOLERANCE)
        text = found["slots"].get("thing", "")
        assert (text if isinstance(text, str) else ", ".join(text)) == ", ".join(
            part.strip() for part in written[0].text.split(", ") if part.strip() not in ("", "none")
        )
        chosen |= {found["intent"], likeliest}
    assert {"light_on", "light_off", "ask", "hall", "roof", "none"} <= chosen


@torch.no_grad()
def test_yes_or_no_is_asked_of_each_intent(orders: Orders, hears: Predictor, schema: Schema) -> None:
    decoder = hears.model.decoder
    for file in orders.sounds[:4]:
        start = state(hears, file)
        found = hears.understand(file, schema=schema, framing="yesno")
        odds = {}
        for label in schema.intents.values():
            yes, no = decoder.score(start, [""], [["yes", "no"]], [[label.questions[0]] * 2])[0]
            odds[label.name] = yes - no
        assert found["scores"]["intent"] == pytest.approx(odds, abs=TOLERANCE)
        assert found["intent"] == max(odds, key=lambda name: odds[name])
        assert found["scores"]["slots"] == pytest.approx(
            hears.understand(file, schema=schema)["scores"]["slots"], abs=TOLERANCE
        )


def test_a_text_alone_is_asked_about(orders: Orders, reads: Predictor, schema: Schema) -> None:
    texts = [row["transcript"] for row in orders.rows]
    found = reads.understand(context=texts, schema=schema)
    assert len({json.dumps(one["scores"]) for one in found}) == 12
    same([reads.understand(context=texts[4], schema=schema)], [found[4]])
    same(reads.understand(context=texts[4:5], schema=schema), [found[4]])
    same(reads.understand([{}, {}], context=texts[:2], schema=schema), found[:2])


def test_what_is_heard_is_written_down_and_asked_about(orders: Orders, modular: Predictor, schema: Schema) -> None:
    """Of a sound its transcript; where a context is given beside a sound, that."""
    heard = modular.model.transcriber
    assert heard is not None
    values = [heard.preprocess(file, 0.0, None)[None] for file in orders.sounds]
    said = [heard(Media(value, torch.tensor([value.shape[1]])))[0].text for value in values]
    assert said == [tiny_slu_system.spoken(row) for row in orders.rows]  # what it was taught
    found = modular.understand(orders.sounds, schema=schema)
    same(found, modular.understand(context=said, schema=schema))
    told = modular.understand(orders.sounds[:3], context=["", "the dog runs", ""], schema=schema)
    same(told, [found[0], modular.understand(context="the dog runs", schema=schema), found[2]])
    same([modular.understand({"audio": orders.sounds[5]}, schema=schema)], [found[5]])
    rate, clip = RATE, soundfile.read(orders.sounds[6])[0]
    same([modular.understand(Waveform(clip, rate), schema=schema)], [found[6]])


def test_a_part_of_a_file_is_what_is_heard(
    orders: Orders, hears: Predictor, modular: Predictor, schema: Schema
) -> None:
    file = orders.sounds[10]
    clip = soundfile.read(file)[0][round(0.1 * RATE) : round(0.3 * RATE)]
    for model in (hears, modular):
        same(
            [model.understand(InputRef(file, 0.1, 0.3), schema=schema)],
            [model.understand(Waveform(clip, RATE), schema=schema)],
        )


# ------------------------------------------------------------------------------------------------------- plain words


def test_what_cannot_be_understood_is_refused_in_plain_words(
    orders: Orders, hears: Predictor, reads: Predictor, modular: Predictor, schema: Schema
) -> None:
    file = orders.sounds[0]
    cases: list[tuple[Predictor, tuple[Any, ...], dict[str, Any], str]] = [
        (hears, (file,), {}, "schema: this model was trained without one; give a file or the name of a shipped"),
        (hears, (file,), {"schema": "slrup"}, "schema slrup: no such file; shipped schemas: barista"),
        (hears, (file,), {"schema": schema, "framing": "maybe"}, "framing 'maybe': use one of choice, yesno"),
        (hears, (file,), {"schema": schema, "context": "on"}, "context: this model was trained without one"),
        (hears, (), {"schema": schema}, "no input given; give a file, a list of files, or a context"),
        (hears, ([],), {"schema": schema}, "no input given"),
        (
            hears,
            ({},),
            {"schema": schema},
            "no branch for input (none given); this model reads a sound (branch 'audio')",
        ),
        (hears, ("none.wav",), {"schema": schema}, "none.wav: no such file"),
        (
            hears,
            ([0.5, 1.0],),
            {"schema": schema},
            "is a row of numbers, but this model reads a sound (branch 'audio')",
        ),
        (reads, (file,), {"schema": schema}, "0.wav: this model reads no files, only a context"),
        (reads, ({"audio": file},), {"schema": schema}, "no branch for input audio; this model reads"),
        (reads, (), {"schema": schema, "context": ["on", ""]}, "input 2: has neither a file nor a context"),
        (reads, ([{}],), {"schema": schema, "context": ["a", "b"]}, "context: 2 contexts for 1 inputs"),
        (modular, ({},), {"schema": schema}, "input 1: has neither a file nor a context"),
    ]
    for model, inputs, options, message in cases:
        with pytest.raises(InputError) as error:
            model.understand(*inputs, **options)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- the verb


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_files_are_understood_in_the_shell(
    orders: Orders, saved: dict[str, Path], hears: Predictor, schema: Schema, shell: Shell
) -> None:
    files = orders.sounds[:3]
    wanted = hears.understand(files, schema=schema)
    code, out, _ = shell("understand", saved["hears"], *files, "--json", "--device", "cpu", "--batch-size", "2")
    assert code == 0
    lines = rows_of(out)
    assert [line["file"] for line in lines] == files
    same(lines, wanted)
    code, out, _ = shell("understand", saved["hears"], *files, "--device", "cpu")
    for line, file, one in zip(out.splitlines(), files, wanted, strict=True):
        slots = [f"{k}={v if isinstance(v, str) else ', '.join(v)}" for k, v in one["slots"].items()]
        assert line == f"{file}: {one['intent']}({'; '.join(slots)})"
    broken = {"intent": None, "slots": {"room": "a\nb", "thing": ["c", "d\r\n"]}}
    assert understand._plain(InputRow("x", {}, "", {}), broken) == "x: (no intent)(room=a b; thing=c, d )"
    code, out, _ = shell("understand", saved["hears"], files[0], "--device", "cpu", "--schema", "digits", "--json")
    assert set(rows_of(out)[0]["scores"]["intent"]) == {str(digit) for digit in range(10)}
    code, out, _ = shell("understand", saved["hears"], files[0], "--device", "cpu", "--framing", "yesno", "--json")
    same(rows_of(out), [hears.understand(files[0], schema=schema, framing="yesno")])


def test_texts_are_understood_in_the_shell(
    orders: Orders, saved: dict[str, Path], reads: Predictor, schema: Schema, shell: Shell
) -> None:
    code, out, _ = shell("understand", saved["reads"], "--context", "the dog runs", "--json", "--device", "cpu")
    assert code == 0
    (line,) = rows_of(out)
    assert line["file"] == "text"
    same([line], [reads.understand(context="the dog runs", schema=schema)])
    # rows that have sounds beside their texts are read all the same, and so are rows of text alone
    rows = [row for row in orders.rows if row["split"] == "val"]
    wanted = reads.understand(context=[(row["asr"] or [row["transcript"]])[0] for row in rows], schema=schema)
    options = ("--split", "val", "--context-field", "asr,transcript", "--json", "--device", "cpu")
    for name in ("manifest.jsonl", "texts.jsonl"):
        code, out, err = shell("understand", saved["reads"], "--manifest", orders.place(name), *options)
        assert code == 0, err
        assert [line["id"] for line in rows_of(out)] == [row["id"] for row in rows]
        same(rows_of(out), wanted)


@pytest.mark.parametrize("kind", ["hears", "reads", "modular"])
def test_a_manifest_is_understood_and_evaluated(
    orders: Orders, saved: dict[str, Path], kind: str, shell: Shell, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "understood.jsonl"
    text = ("--context-field", "transcript") if kind == "reads" else ()
    manifest = orders.place("manifest.jsonl")
    code, said, err = shell("understand", saved[kind], "--manifest", manifest, "--out", out, "--device", "cpu", *text)
    assert code == 0, err
    assert said == f"wrote 12 lines: {out}\n"
    assert [file.name for file in out.parent.iterdir()] == ["understood.jsonl"]
    lines = rows_of(out.read_text())
    for line, row in zip(lines, orders.rows, strict=True):
        assert (line["id"], line["reference"]) == (row["id"], {"intent": row["intent"], "slots": row["slots"]})
    model = mmprefix.load(saved[kind], device="cpu")
    if kind == "reads":
        wanted = model.understand(context=[row["transcript"] for row in orders.rows])
    else:
        wanted = model.understand(orders.sounds)
    same(lines, wanted)
    code, figures, _ = shell("evaluate", out, "--task", "slu", "--json")
    assert code == 0
    scores = json.loads(figures)
    right = [line["intent"] == line["reference"]["intent"] for line in lines]
    assert scores["scores"]["intent_accuracy"] == pytest.approx(np.mean(right))
    assert (scores["scores"]["intent_accuracy"] > 0.8) == (kind == "hears")
    code, with_gold, _ = shell("evaluate", out, "--task", "slu", "--json", "--gold", manifest)
    assert json.loads(with_gold)["scores"] == scores["scores"]


def test_a_part_of_a_file_and_a_table_as_manifests(
    orders: Orders, saved: dict[str, Path], hears: Predictor, schema: Schema, shell: Shell, tmp_path: Path
) -> None:
    table = tmp_path / "m.csv"
    table.write_text(f'id,audio,start,end,intent,slots\na,{orders.sounds[10]},0.1,0.3,ask,"{{""thing"": ""dog""}}"\n')
    code, out, err = shell("understand", saved["hears"], "--manifest", table, "--json", "--device", "cpu")
    assert code == 0, err
    (line,) = rows_of(out)
    same([line], [hears.understand(InputRef(orders.sounds[10], 0.1, 0.3), schema=schema)])
    assert line["reference"] == {"intent": "ask", "slots": {"thing": "dog"}}


def test_what_is_wrong_is_said_in_one_line(
    orders: Orders, saved: dict[str, Path], shell: Shell, tmp_path: Path
) -> None:
    manifest, file = orders.place("manifest.jsonl"), orders.sounds[0]
    silent = write(tmp_path / "silent.jsonl", [{"id": "x", "transcript": "on"}])
    odd = write(tmp_path / "odd.jsonl", [{"id": "x", "audio": file, "slots": 3}])
    gone = write(tmp_path / "gone.jsonl", [{"id": "x", "audio": "none.wav"}])
    cases: list[tuple[str, tuple[Any, ...], str]] = [
        ("hears", (), "no input given; give files, or --manifest FILE"),
        ("hears", (file, "--manifest", manifest), "cannot be combined with a file; give one of them"),
        ("hears", (file, "--split", "val"), "--split applies to --manifest FILE, which is missing"),
        ("hears", (file, "--context-field", "asr"), "--context-field applies to --manifest FILE"),
        ("hears", ("none.wav",), "none.wav: no such file"),
        ("hears", ("--manifest", "none.jsonl"), "none.jsonl: the manifest cannot be read: no such file"),
        ("hears", ("--manifest", manifest, "--split", "test"), "no row has split = test"),
        ("hears", ("--manifest", silent), "row 'x' has none of audio"),
        ("reads", ("--manifest", silent), "row 'x' has none of text; --context-field names the column of its text"),
        ("reads", ("--manifest", silent, "--context-field", "asr"), "--context-field asr: no row of"),
        ("hears", ("--manifest", manifest, "--context-field", "asr"), "--context-field: this model reads no context"),
        ("hears", (file, "--context", "on"), "--context: this model reads no context; leave it out"),
        ("reads", (file,), "0.wav: this model reads no files, only a context"),
        ("hears", ("--manifest", odd), "row 'x': slots: must be an object or a list of [type, value], found 3"),
        ("hears", (file, "--out", tmp_path), "is a folder; give a file"),
        ("hears", (file, "--schema", "slrup"), "schema slrup: no such file"),
        ("hears", (file, "--framing", "maybe"), "invalid choice: 'maybe'"),
        ("nothing", (file,), "nothing"),
    ]
    for kind, words, message in cases:
        assert message in shell.refuses("understand", saved.get(kind, tmp_path / "nothing"), *words, "--device", "cpu")
    assert shell.refuses("understand", saved["hears"], "--manifest", gone) == (
        f"{gone}:1: audio: {tmp_path / 'none.wav'}: no such file"
    )
    twice = write(tmp_path / "twice.jsonl", [{"id": "x", "audio": "none.wav"}, {"id": "y"}])
    code, _, err = shell("understand", saved["hears"], "--manifest", twice)
    assert (code, err.count("\n")) == (2, 3)
    assert err.startswith(f"mmprefix: {twice}: 2 bad rows\n{twice}:1: audio: ")
    code, _, err = shell("understand", saved["hears"], file, "--out", f"{manifest}/x.jsonl", "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)


def test_a_context_that_nobody_asked_for_does_not_stop_a_model_that_reads_none(
    orders: Orders, saved: dict[str, Path], hears: Predictor, schema: Schema, shell: Shell, tmp_path: Path
) -> None:
    file = write(tmp_path / "m.jsonl", [{"id": "x", "audio": orders.sounds[2], "context": "likes dogs", "image": None}])
    code, out, err = shell("understand", saved["hears"], "--manifest", file, "--json", "--device", "cpu")
    assert code == 0, err
    same(rows_of(out), [hears.understand(orders.sounds[2], schema=schema)])
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
