"""QuestionData: questions and answers of each epoch, refused rows and options, and training on them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from mmprefix.cli.main import main
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.samplers import BucketSampler
from mmprefix.errors import InputError
from mmprefix.model import PrefixLM
from mmprefix.slu.annotation import join_values, read_annotation
from mmprefix.slu.data import QuestionData
from mmprefix.slu.schema import Schema, portable, read_schema
from mmprefix.types import Batch, Media
from tiny import slu_system as tiny_slu_system
from tiny.captioning_system import error_message, metric_values, quietly, report_rows, run
from tiny.logs import collect_warnings
from tiny.readers import LoadSound
from tiny.slu_system import SluSystem, logged_steps, write_manifest

pytestmark = quietly


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("system"))


@pytest.fixture(scope="module")
def schema(system: SluSystem) -> Schema:
    return read_schema(system.path("home.yaml"))


def data(system: SluSystem, stage: str = "fit", **options: Any) -> QuestionData:
    """Data module without a Trainer, for a model with an audio branch."""
    arguments = {"root": str(system.folder), "schema": system.path("home.yaml"), "batch_size": 3, "seed": 3, **options}
    module = QuestionData(**arguments)
    module.inputs = ModelInputs({"audio": LoadSound()})
    module.setup(stage)
    return module


PairsById = dict[str, list[tuple[str, str]]]


def draw_epoch(module: QuestionData, number: int = 0) -> PairsById:
    """Questions and answers of a training epoch by row id, in their order."""
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, BucketSampler)
    loader.sampler.set_epoch(number)
    return pairs_by_id(list(loader))


def pairs_by_id(batches: list[Batch]) -> PairsById:
    """Questions and answers in ``batches`` by row id."""
    pairs: PairsById = {}
    for batch in batches:
        assert len(batch.questions) == len(batch.targets) == len(batch)
        for name, questions, targets in zip(batch.ids, batch.questions, batch.targets, strict=True):
            pairs[name] = list(zip(questions, targets, strict=True))
    return pairs


def expected_answer(schema: Schema, row: dict[str, Any], question: str) -> str:
    """True answer of a manifest's row to a question in any phrasing."""
    gold = read_annotation(row)
    if question in schema.intent_questions:
        return schema.intents[str(gold.intent)].answer
    for label in schema.intents.values():
        if question in label.questions:
            return schema.yes if label.name == gold.intent else schema.no
    (label,) = (label for label in schema.slots.values() if question in label.questions)
    return join_values(gold.slots.get(label.name, (schema.none,)))


# ----------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("framing", ["choice", "yesno"])
def test_questions_and_answers_reach_the_batch(system: SluSystem, schema: Schema, framing: str) -> None:
    module = data(system, framing=framing, absent=9.0, no=9.0)
    rows = {row["id"]: row for row in system.rows if row["split"] == "train"}
    drawn = draw_epoch(module)
    assert drawn.keys() == rows.keys()
    for name, pairs in drawn.items():
        assert pairs == [(question, expected_answer(schema, rows[name], question)) for question, _ in pairs]
        possible = schema.slots_of(rows[name]["intent"])  # an absent slot is asked about where the intent may have it
        assert len(pairs) == (1 if framing == "choice" else 3) + len(possible)
    assert {answer for pairs in drawn.values() for _, answer in pairs} >= {schema.none, "dog", "hall"}


def test_absent_0_asks_only_about_the_slots_of_the_row(system: SluSystem, schema: Schema) -> None:
    drawn = draw_epoch(data(system, absent=0.0))
    for row in system.rows:
        if row["split"] == "train":
            assert len(drawn[row["id"]]) == 1 + len(row["slots"])
    assert schema.none not in {answer for pairs in drawn.values() for _, answer in pairs}


def test_training_draws_anew_each_epoch_and_validation_does_not(system: SluSystem) -> None:
    module = data(system)
    epochs = [draw_epoch(module, number) for number in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert draw_epoch(data(system), 1) == epochs[1]  # reproducible by the seed
    assert draw_epoch(data(system, num_workers=2), 1) == epochs[1]  # and in workers
    assert draw_epoch(data(system, seed=4), 1) != epochs[1]
    first, second = (pairs_by_id(list(module.val_dataloader())) for _ in range(2))
    assert first == second == pairs_by_id(list(data(system).val_dataloader()))
    assert len(first) == 4
    phrasings = {q for number in range(6) for pairs in draw_epoch(module, number).values() for q, _ in pairs}
    assert {"what now?", "which deed?", "which thing?", "say the thing?"} <= phrasings


def test_held_out_labels_are_never_asked_about(system: SluSystem, schema: Schema) -> None:
    for framing in ("choice", "yesno"):
        module = data(system, framing=framing, held_out=["ask", "room"], absent=9.0, no=9.0)
        questions = {q for number in range(5) for pairs in draw_epoch(module, number).values() for q, _ in pairs}
        questions |= {q for pairs in pairs_by_id(list(module.val_dataloader())).values() for q, _ in pairs}
        hidden = {*schema.intents["ask"].questions, *schema.slots["room"].questions}
        assert not questions & hidden
        assert questions & set(schema.slots["thing"].questions)
        if framing == "choice":  # no question about an intent that is held out, and it is no answer
            answers = {
                answer
                for pairs in draw_epoch(module).values()
                for question, answer in pairs
                if question in schema.intent_questions
            }
            assert answers == {"on", "off"}


def test_rows_without_anything_to_ask_are_left_out(system: SluSystem, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmprefix"):
        module = data(system, absent=0.0, held_out=["ask", "light_off", "thing"])
    # rows with the intent "ask" have no room, and their intent is held out; those with "light_off" have a room
    names = [row["id"] for row in system.rows if row["split"] == "train" and row["intent"] != "ask"]
    assert [row.id for row in module.rows["train"].examples] == names
    assert len(module.rows["train"].keys) == len(names)
    assert draw_epoch(module).keys() == set(names)
    assert "2 of 8 rows left out: no question to ask about them" in caplog.text
    kept = data(system, absent=0.5, held_out=["ask", "light_off", "thing"])  # none of them may have a room
    assert len(kept.rows["train"].examples) == 6
    kept = data(system, absent=0.5, held_out=["ask", "light_off", "room"])  # an absent thing may be asked about
    assert len(kept.rows["train"].examples) == 8
    with pytest.raises(InputError, match="there is no row to train on"):
        data(system, absent=0.0, held_out=["ask", "light_off", "light_on", "thing", "room"]).train_dataloader()


def test_a_row_without_a_drawn_question_stays_in_its_batch(system: SluSystem) -> None:
    module = data(system, absent=0.3, held_out=["light_on", "light_off", "ask", "room"])
    epochs = [draw_epoch(module, number) for number in range(4)]
    assert any(not pairs for drawn in epochs for pairs in drawn.values())
    assert all(drawn.keys() == epochs[0].keys() for drawn in epochs)


@pytest.mark.parametrize("framing", ["choice", "yesno"])
def test_without_slots_intents_alone_are_asked_about(system: SluSystem, schema: Schema, framing: str) -> None:
    module = data(system, framing=framing, slots=False, absent=9.0)
    about_slots = {text for label in schema.slots.values() for text in label.questions}
    asked = {question for pairs in draw_epoch(module).values() for question, _ in pairs}
    assert asked
    assert not asked & about_slots
    saved = read_schema(module.task_settings()["schema"])
    assert (list(saved.intents), list(saved.slots)) == (list(schema.intents), [])
    assert saved.intents["ask"].questions == schema.intents["ask"].questions
    rows = [row["id"] for row in system.rows if row["split"] == "train" and row.get("intent")]
    assert sorted(draw_epoch(module)) == sorted(rows)  # slots of rows are still checked, not refused


def test_a_shipped_schema_without_slots_keeps_its_intents() -> None:
    whole, alone = read_schema("slurp_tts"), read_schema(portable("slurp_tts", slots=False))
    assert alone == whole.only(slots=[])


def test_a_transcript_is_an_additional_question(system: SluSystem) -> None:
    drawn = draw_epoch(data(system, transcribe="say it?", absent=0.0))
    for row in system.rows:
        if row["split"] == "train":
            assert drawn[row["id"]][-1] == ("say it?", row["transcript"])
    held = ["light_on", "light_off", "ask", "thing", "room"]
    alone = draw_epoch(data(system, transcribe="say it?", held_out=held))
    assert {len(pairs) for pairs in alone.values()} == {1}


# ----------------------------------------------------------------------------------------------------------- faults

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"intent": "light_onn"}, "intent 'light_onn' is not in schema home; did you mean 'light_on'?"),
    ({"slots": {"rom": "hall"}}, "slot 'rom' is not in schema home; did you mean 'room'?"),
    (
        {"intent": "light_on", "slots": {"room": "attic"}},
        "slot 'room': 'attic' is not among its values; choose from hall, roof",
    ),
    ({"slots": "dog"}, "slots: a text must be JSON"),
    ({"slots": {"thing": "none"}}, "slot 'thing': 'none' means that it is absent"),
    ({"intent": "ask", "slots": {"room": "hall"}}, "slot 'room': intent 'ask' has no such slot"),
    ({"intent": ["ask"]}, "intent: must be a text or a number"),
]


def test_rows_that_do_not_fit_the_schema_are_faults_with_their_line(system: SluSystem, tmp_path: Path) -> None:
    good = {"audio": system.sounds[0], "intent": "ask", "slots": {"thing": "dog"}}
    records = [row for wrong, _ in WRONG for row in (good, {**good, **wrong})]
    file = str(write_manifest(tmp_path / "m.jsonl", [*records, {"audio": "none.wav"}]))
    with pytest.raises(InputError) as error:
        data(system, root=None, train=file)
    first, *lines = str(error.value).splitlines()
    assert first == "8 bad rows (data.on_bad skip would leave them out)"
    for number, (line, (_, message)) in enumerate(zip(lines, WRONG, strict=False)):
        assert line.startswith(f"{file}:{2 * number + 2}: {message}")
    assert lines[-1].startswith(f"{file}:{len(records) + 1}: audio: ")  # in the order of the lines
    with collect_warnings() as warnings:
        module = data(system, root=None, train=file, on_bad="skip")
    assert warnings[0].startswith("8 bad rows left out:\n")
    assert len(module.rows["train"].examples) == len(module.rows["train"].keys) == len(WRONG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"absent": -1.0}, r"data\.absent -1\.0, data\.no 1\.0: give numbers from 0 on"),
        ({"no": -0.5}, r"data\.no -0\.5"),
        ({"held_out": ["rom"]}, "held_out: schema home has no 'rom'; did you mean 'room'?"),
        ({"framing": "multiple"}, "framing 'multiple': use one of choice, yesno"),
        ({"schema": "hom"}, "schema hom: no such file; shipped schemas: barista"),
        ({"target": "intent"}, r"data\.target intent: cannot be used here, the schema gives the answers"),
        ({"max_captions": 2}, r"data\.max_captions 2: cannot be used here, the schema gives the answers"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    system: SluSystem, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        QuestionData(**{"train": "nowhere.jsonl", "schema": system.path("home.yaml"), **options})


def test_the_intent_may_come_from_other_columns(system: SluSystem, schema: Schema, tmp_path: Path) -> None:
    records = [{**row, "audio": system.path(row["audio"])} for row in system.rows]
    parts = [row | dict(zip(("deed", "way"), row["intent"].split("_"), strict=False)) for row in records]
    lights = [{k: v for k, v in row.items() if k != "intent"} for row in parts if "way" in row]
    file = str(write_manifest(tmp_path / "m.jsonl", lights))
    module = data(system, root=None, train=file, intent_field="deed+way", absent=0.0)
    answers = [pairs[0][1] for _, pairs in sorted(draw_epoch(module).items())]
    assert sorted(set(answers)) == ["off", "on"]
    with collect_warnings() as warnings:
        data(system, root=None, train=file)
    assert warnings == ["no row has an intent in the field 'intent' (data.intent_field): no question asks about one"]


def test_rows_to_predict_need_no_annotation(system: SluSystem, tmp_path: Path) -> None:
    file = str(write_manifest(tmp_path / "m.jsonl", [{"id": "x", "audio": system.sounds[0]}]))
    module = data(system, "predict", root=None, predict=file, absent=9.0)
    (batch,) = list(module.predict_dataloader())
    assert (batch.ids, len(batch.questions[0])) == (["x"], 2)  # its slots; its intent is unknown


# ---------------------------------------------------------------------------------------------------------- the loss


def alone(media: Media, b: int) -> Media:
    """Input ``b`` of a batch without padding."""
    return Media(media.values[b : b + 1, : int(media.lengths[b])], media.lengths[b : b + 1])


def loss_of_separate_rows(model: PrefixLM, batch: Batch) -> torch.Tensor:
    """Loss with a row for each question, which stands in its prompt."""
    nll, tokens = torch.zeros(()), 0
    for b, (questions, targets) in enumerate(zip(batch.questions, batch.targets, strict=True)):
        for question, target in zip(questions, targets, strict=True):
            inputs = {name: alone(cast(Media, media), b) for name, media in batch.inputs.items()}
            prompt = model.wording.render_prompt(batch.contexts[b], batch.prompts[b]) + model.wording.render_question(
                question
            )
            row = Batch(inputs, [prompt], [[target]], [""], [batch.ids[b]])
            loss = model.decoder.text_loss(model.prefill(row), [prompt], [[target]])
            nll, tokens = nll + loss.nll.sum(), tokens + int(loss.tokens.sum())
    return nll / tokens


@pytest.mark.parametrize("kind", ["whisper", "text", "both"])
def test_questions_behind_one_prompt_equal_separate_rows(system: SluSystem, kind: str) -> None:
    """Loss and gradients: Whisper with its sound, GPT-2 with a worded context, GPT-2 with sound and context."""
    model = {"whisper": system.whisper_model, "text": system.text_model, "both": system.detection_model}[kind]()
    columns: dict[str, Any] = {} if kind == "whisper" else {"context": "transcript"}
    module = data(system, absent=9.0, transcribe="say it?", batch_size=5, **columns)
    module.inputs = ModelInputs(
        {name: model.encoder(name).preprocess for name in model.encoders},
        {name: model.encoder(name).input_kind for name in model.encoders},
        reads_text=model.reads_text,
    )
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert max(map(len, batch.questions)) >= 4
    assert any(batch.contexts) == (kind != "whisper")
    gradients = []
    for loss in (model.text_loss(batch).mean(), loss_of_separate_rows(model, batch)):
        model.zero_grad()
        loss.backward()
        gradients.append(
            (float(loss.detach()), [p.grad.clone() for p in model.trained_parameters().values() if p.grad is not None])
        )
    (loss, shared), (expected_loss, separate) = gradients
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert len(shared) == len(separate) > 0
    for actual, expected in zip(shared, separate, strict=True):
        assert torch.allclose(actual, expected, atol=1e-5 + 1e-3 * float(expected.abs().max()))


# -------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def fitted(system: SluSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a training on texts alone, with its saved model."""
    root = tmp_path_factory.mktemp("fit")
    recipe = system.recipe(system.config("text"), root)
    assert run("fit", recipe, save_to=root / "model") == 0
    return root


@pytest.mark.parametrize("kind", ["whisper", "text"])
def test_a_training_on_questions(system: SluSystem, kind: str, tmp_path: Path, capfd: Any) -> None:
    config = system.config(kind, transcribe="say it?")
    assert run("fit", system.recipe(config, tmp_path), trainer__max_epochs=3) == 0
    losses = metric_values(tmp_path, "train/loss")
    assert len(losses) == 9
    assert sum(losses[-3:]) < sum(losses[:3])
    rows = report_rows(tmp_path, "val")
    assert len(rows) > 8
    assert {row["group"] for row in rows} == {"audio" if kind == "whisper" else "text"}
    correct = [row["prediction"] == row["references"][0] for row in rows]
    assert metric_values(tmp_path, "val/exact_match")[-1] == pytest.approx(np.mean(correct))
    numbers = [row["id"].split(" ", 2)[1] for row in rows if row["id"].startswith("o8 ")]
    assert numbers == [f"[{n + 1}]" for n in range(len(numbers))]
    assert "val/exact_match" in (tmp_path / "logs" / "version_0" / "metrics.csv").read_text()
    assert "exact_match" in capfd.readouterr().err


def test_rows_without_a_drawn_question_are_not_in_the_report(system: SluSystem, tmp_path: Path) -> None:
    config = system.config("text", absent=0.3, held_out=["light_on", "light_off", "ask", "room"], eval_batch_size=1)
    assert run("fit", system.recipe(config, tmp_path), trainer__max_epochs=1) == 0
    rows = report_rows(tmp_path, "val")
    assert 0 < len(rows) < 8
    assert all("[" in row["id"] and row["references"] for row in rows)


def test_a_recipe_may_name_nothing_but_manifests(system: SluSystem, tmp_path: Path) -> None:
    """Train and validate on one manifest of texts alone, which the model card names."""
    file = system.path("texts.jsonl")
    config = system.config("text", train=file, val=file)
    del config["data"]["init_args"]["root"]
    assert run("fit", system.recipe(config, tmp_path), save_to=tmp_path / "model", trainer__max_epochs=1) == 0
    assert {row["media"] for row in report_rows(tmp_path, "val")} == {f"{file}:{n + 1}" for n in range(12)}
    assert "Data: texts.jsonl, texts.jsonl." in (tmp_path / "model" / "README.md").read_text()


def test_predict_writes_questions_and_answers(system: SluSystem, fitted: Path, schema: Schema) -> None:
    recipe, last = fitted / "recipe.yaml", fitted / "checkpoints" / "last.ckpt"
    files = [system.path("texts.jsonl"), system.path("manifest.jsonl")]  # the same ids in both
    assert run("predict", recipe, ckpt_path=last, data__init_args__predict=files) == 0
    lines = [json.loads(line) for line in (fitted / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in system.rows] * 2
    for line, row in zip(lines, system.rows * 2, strict=True):
        assert len(line["questions"]) == len(line["answers"]) == len(line["references"])
        assert line["references"] == [expected_answer(schema, row, question) for question in line["questions"]]
        assert all(isinstance(answer, str) for answer in line["answers"])
    assert run("validate", recipe, ckpt_path=last) == 0
    predictions = {row["id"]: row["prediction"] for row in report_rows(fitted, "val")}
    assert set(predictions.values()) <= {answer for line in lines for answer in line["answers"]}


def test_an_interrupted_run_resumes_with_the_same_questions(system: SluSystem, fitted: Path, tmp_path: Path) -> None:
    """Resumes after the first step of the second epoch; the contexts of the rows are drawn as before, too."""
    config = system.config("text")
    every = {"every_n_train_steps": 2, "save_last": True}
    saves = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every}
    config["trainer"] |= {"callbacks": [saves]}
    recipe = system.recipe(config, tmp_path)
    assert (
        run("fit", recipe, **{"trainer__callbacks+": "tiny.captioning_system.Crash", "trainer__callbacks__at": 5}) == 1
    )
    assert logged_steps(tmp_path)[:4] == logged_steps(fitted)[:4]
    (tmp_path / "steps.jsonl").unlink()
    assert run("fit", recipe, ckpt_path="last") == 0
    assert logged_steps(tmp_path) == logged_steps(fitted)[4:]
    assert len(logged_steps(fitted)) == 6
    drawn = {context for step in logged_steps(fitted) for context in step["contexts"] if context.endswith("runs 3")}
    assert drawn <= {"a the rain runs 3", "old the rain runs 3"}


def test_a_run_is_not_resumed_within_an_epoch_of_other_questions(system: SluSystem, tmp_path: Path, capfd: Any) -> None:
    recipe = system.recipe(system.config("text"), tmp_path)
    assert run("fit", recipe, trainer__max_steps=2) == 0
    for option, value in (("absent", 2.0), ("schema", write_schema(tmp_path))):
        message = error_message("fit", recipe, capfd, ckpt_path="last", **{f"data__init_args__{option}": value})
        assert "after 2 batches of an epoch whose order cannot be made again: questions was " in message
    message = error_message("fit", recipe, capfd, ckpt_path="last", data__init_args__context="transcript")
    assert "content was " in message
    assert run("fit", recipe, ckpt_path="last") == 0


def write_schema(folder: Path) -> str:
    file = folder / "home.yaml"
    file.write_text(tiny_slu_system.SCHEMA.replace("what now?", "and now?"))
    return str(file)


def test_a_context_that_the_model_does_not_read_is_refused(system: SluSystem, tmp_path: Path, capfd: Any) -> None:
    whisper = system.recipe(system.config("whisper", context="transcript"), tmp_path)
    message = error_message("fit", whisper, capfd)
    assert message.startswith("data.context transcript: this model reads none; give model.wording.context")
    reader = system.recipe(system.config("text", context="transscript"), tmp_path)
    message = error_message("fit", reader, capfd)
    columns = "its columns (audio, signals) feed no branch, for there is none"
    assert f"{columns}, and no row has a text in transscript" in message


def test_texts_alone_are_refused_by_models_that_need_other_inputs(
    system: SluSystem, tmp_path: Path, capfd: Any
) -> None:
    """Models: one without any input, and a Whisper that reads a context but needs a sound too."""
    mute = system.config("text")
    del mute["model"]["wording"], mute["data"]["init_args"]["context"]
    message = error_message("fit", system.recipe(mute, tmp_path), capfd)
    assert message == "model.branches: there is none, and without model.wording.context no text is read either"
    whisper = system.config("whisper", train=system.path("texts.jsonl"), context="transcript")
    whisper["model"] |= {"wording": {"context": "{context}"}}
    message = error_message("fit", system.recipe(whisper, tmp_path), capfd)
    assert message.endswith("texts.jsonl: its rows of text alone feed none of the model's branches (audio)")
    whisper = system.config("whisper", context="transcript")
    whisper["model"] |= {"wording": {"context": "{context}"}}
    assert run("fit", system.recipe(whisper, tmp_path), trainer__max_steps=1, trainer__limit_val_batches=1) == 0


def test_check_data_and_training_give_the_same_message(system: SluSystem, tmp_path: Path, capfd: Any) -> None:
    row = {"audio": system.sounds[0], "intent": "ask", "slots": {"rom": "hall"}}
    file = write_manifest(tmp_path / "m.jsonl", [row, row])
    assert main(["check-data", str(file), "--schema", system.path("home.yaml")]) == 2
    first = capfd.readouterr().out.splitlines()[0]
    with pytest.raises(InputError) as error:
        data(system, root=None, train=str(file))
    assert first in str(error.value)
