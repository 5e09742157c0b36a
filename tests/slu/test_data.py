"""Rows with intents and slots become questions with answers: what is asked when, and what training makes of it."""

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
from mmprefix.errors import InputError
from mmprefix.model import PrefixLM
from mmprefix.slu.annotation import join_values, read_annotation
from mmprefix.slu.data import QuestionData
from mmprefix.slu.schema import Schema, read_schema
from mmprefix.types import Batch, Media
from tiny import slu_system as tiny_slu_system
from tiny.captioning_system import error_message, metric_values, quietly, report_rows, run
from tiny.logs import collect_warnings
from tiny.readers import LoadSound
from tiny.slu_system import Orders, steps, write

pytestmark = quietly


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Orders:
    return tiny_slu_system.build(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def schema(orders: Orders) -> Schema:
    return read_schema(orders.place("home.yaml"))


def data(orders: Orders, stage: str = "fit", **options: Any) -> QuestionData:
    """Without a Trainer, for a model that hears."""
    given = {"root": str(orders.folder), "schema": orders.place("home.yaml"), "batch_size": 3, "seed": 3, **options}
    pairs = QuestionData(**given)
    pairs.inputs = ModelInputs({"audio": LoadSound()})
    pairs.setup(stage)
    return pairs


Asked = dict[str, list[tuple[str, str]]]


def epoch(pairs: QuestionData, number: int = 0) -> Asked:
    """Questions and answers of an epoch of training by id, in their order."""
    loader = pairs.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return asked(list(loader))


def asked(batches: list[Batch]) -> Asked:
    found: Asked = {}
    for batch in batches:
        assert len(batch.questions) == len(batch.targets) == len(batch)
        for name, questions, targets in zip(batch.ids, batch.questions, batch.targets, strict=True):
            found[name] = list(zip(questions, targets, strict=True))
    return found


def right(schema: Schema, row: dict[str, Any], question: str) -> str:
    """The answer that a row of the manifest has for a question in any phrasing."""
    gold = read_annotation(row)
    if question in schema.intent_questions:
        return schema.intents[str(gold.intent)].answer
    for label in schema.intents.values():
        if question in label.questions:
            return schema.yes if label.name == gold.intent else schema.no
    (label,) = (label for label in schema.slots.values() if question in label.questions)
    return join_values(gold.slots.get(label.name, (schema.none,)))


# ------------------------------------------------------------------------------------------------- what is in a batch


@pytest.mark.parametrize("framing", ["choice", "yesno"])
def test_pairs_reach_the_batch(orders: Orders, schema: Schema, framing: str) -> None:
    pairs = data(orders, framing=framing, absent=9.0, no=9.0)
    rows = {row["id"]: row for row in orders.rows if row["split"] == "train"}
    found = epoch(pairs)
    assert found.keys() == rows.keys()
    for name, said in found.items():
        assert [answer for _, answer in said] == [right(schema, rows[name], question) for question, _ in said]
        assert len(said) == (1 if framing == "choice" else 3) + 2  # all that there is, absent slots too
    assert {answer for said in found.values() for _, answer in said} >= {schema.none, "dog", "hall"}


def test_only_what_is_there_is_asked_where_nothing_absent_is_wanted(orders: Orders, schema: Schema) -> None:
    found = epoch(data(orders, absent=0.0))
    for row in orders.rows:
        if row["split"] == "train":
            assert len(found[row["id"]]) == 1 + len(row["slots"])
    assert schema.none not in {answer for said in found.values() for _, answer in said}


def test_training_asks_anew_each_epoch_and_validation_does_not(orders: Orders) -> None:
    pairs = data(orders)
    epochs = [epoch(pairs, number) for number in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epoch(data(orders), 1) == epochs[1]  # the same for the same seed
    assert epoch(data(orders, num_workers=2), 1) == epochs[1]  # and in workers
    assert epoch(data(orders, seed=4), 1) != epochs[1]
    first, second = (asked(list(pairs.val_dataloader())) for _ in range(2))
    assert first == second == asked(list(data(orders).val_dataloader()))
    assert len(first) == 4
    phrased = {question for number in range(6) for said in epoch(pairs, number).values() for question, _ in said}
    assert {"what now?", "which deed?", "which thing?", "say the thing?"} <= phrased


def test_what_is_held_out_is_never_asked(orders: Orders, schema: Schema) -> None:
    for framing in ("choice", "yesno"):
        pairs = data(orders, framing=framing, held_out=["ask", "room"], absent=9.0, no=9.0)
        questions = {q for number in range(5) for said in epoch(pairs, number).values() for q, _ in said}
        questions |= {q for said in asked(list(pairs.val_dataloader())).values() for q, _ in said}
        aside = {*schema.intents["ask"].questions, *schema.slots["room"].questions}
        assert not questions & aside
        assert questions & set(schema.slots["thing"].questions)
        if framing == "choice":  # of a row whose intent is held out the intent is not asked either, nor is it an answer
            answers = {
                answer
                for said in epoch(pairs).values()
                for question, answer in said
                if question in schema.intent_questions
            }
            assert answers == {"on", "off"}


def test_rows_without_anything_to_ask_are_left_out(orders: Orders, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("mmprefix").propagate = True
    with caplog.at_level(logging.INFO, "mmprefix"):
        pairs = data(orders, absent=0.0, held_out=["ask", "light_off", "thing"])
    # an "ask" has no room, and of two intents that are held out nothing is asked; "light_off" has a room
    names = [row["id"] for row in orders.rows if row["split"] == "train" and row["intent"] != "ask"]
    assert [row.id for row in pairs.rows["train"].examples] == names
    assert len(pairs.rows["train"].keys) == len(names)
    assert epoch(pairs).keys() == set(names)
    assert "2 of 8 rows left out: no question to ask about them" in caplog.text
    kept = data(orders, absent=0.5, held_out=["ask", "light_off", "thing"])  # now a room may be asked about
    assert len(kept.rows["train"].examples) == 8
    with pytest.raises(InputError, match="there is no row to train on"):
        data(orders, absent=0.0, held_out=["ask", "light_off", "light_on", "thing", "room"]).train_dataloader()


def test_a_row_of_which_nothing_happens_to_be_asked_stays_in_its_batch(orders: Orders) -> None:
    pairs = data(orders, absent=0.3, held_out=["light_on", "light_off", "ask", "room"])
    found = [epoch(pairs, number) for number in range(4)]
    assert any(not said for one in found for said in one.values())
    assert all(one.keys() == found[0].keys() for one in found)


def test_a_transcript_is_asked_for_beside_the_rest(orders: Orders) -> None:
    found = epoch(data(orders, transcribe="say it?", absent=0.0))
    for row in orders.rows:
        if row["split"] == "train":
            assert found[row["id"]][-1] == ("say it?", row["transcript"])
    held = ["light_on", "light_off", "ask", "thing", "room"]
    alone = epoch(data(orders, transcribe="say it?", held_out=held))
    assert {len(said) for said in alone.values()} == {1}


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


def test_rows_that_the_schema_does_not_know_are_faults_with_their_line(orders: Orders, tmp_path: Path) -> None:
    good = {"audio": orders.sounds[0], "intent": "ask", "slots": {"thing": "dog"}}
    found = [row for wrong, _ in WRONG for row in (good, {**good, **wrong})]
    file = str(write(tmp_path / "m.jsonl", [*found, {"audio": "none.wav"}]))
    with pytest.raises(InputError) as error:
        data(orders, root=None, train=file)
    first, *lines = str(error.value).splitlines()
    assert first == "8 bad rows (data.on_bad skip would leave them out)"
    for number, (line, (_, message)) in enumerate(zip(lines, WRONG, strict=False)):
        assert line.startswith(f"{file}:{2 * number + 2}: {message}")
    assert lines[-1].startswith(f"{file}:{len(found) + 1}: audio: ")  # in the order of the lines
    with collect_warnings() as said:
        pairs = data(orders, root=None, train=file, on_bad="skip")
    assert said[0].startswith("8 bad rows left out:\n")
    assert len(pairs.rows["train"].examples) == len(pairs.rows["train"].keys) == len(WRONG)


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
def test_options_that_make_no_sense_are_refused_before_anything_is_read(
    orders: Orders, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        QuestionData(**{"train": "nowhere.jsonl", "schema": orders.place("home.yaml"), **options})


def test_the_intent_may_stand_elsewhere(orders: Orders, schema: Schema, tmp_path: Path) -> None:
    found = [{**row, "audio": orders.place(row["audio"])} for row in orders.rows]
    parts = [row | dict(zip(("deed", "way"), row["intent"].split("_"), strict=False)) for row in found]
    lights = [{k: v for k, v in row.items() if k != "intent"} for row in parts if "way" in row]
    file = str(write(tmp_path / "m.jsonl", lights))
    pairs = data(orders, root=None, train=file, intent_field="deed+way", absent=0.0)
    answers = [said[0][1] for _, said in sorted(epoch(pairs).items())]
    assert sorted(set(answers)) == ["off", "on"]
    with collect_warnings() as said:
        data(orders, root=None, train=file)
    assert said == ["no row has an intent in the field 'intent' (data.intent_field): no question asks about one"]


def test_rows_to_predict_need_no_gold(orders: Orders, tmp_path: Path) -> None:
    file = str(write(tmp_path / "m.jsonl", [{"id": "x", "audio": orders.sounds[0]}]))
    pairs = data(orders, "predict", root=None, predict=file, absent=9.0)
    (batch,) = list(pairs.predict_dataloader())
    assert (batch.ids, len(batch.questions[0])) == (["x"], 2)  # its slots; nobody knows its intent


# ---------------------------------------------------------------------------------------------------------- the loss


def alone(media: Media, b: int) -> Media:
    """One input of a batch without padding."""
    return Media(media.values[b : b + 1, : int(media.lengths[b])], media.lengths[b : b + 1])


def separate(model: PrefixLM, batch: Batch) -> torch.Tensor:
    """The same loss where each question is a row of its own, with the question in its prompt."""
    nll, tokens = torch.zeros(()), 0
    for b, (questions, targets) in enumerate(zip(batch.questions, batch.targets, strict=True)):
        for question, target in zip(questions, targets, strict=True):
            inputs = {name: alone(cast(Media, media), b) for name, media in batch.inputs.items()}
            prompt = model.wording.render_prompt(batch.contexts[b], batch.prompts[b]) + model.wording.render_question(
                question
            )
            row = Batch(inputs, [prompt], [[target]], [""], [batch.ids[b]])
            found = model.decoder.text_loss(model.prefill(row), [prompt], [[target]])
            nll, tokens = nll + found.nll.sum(), tokens + int(found.tokens.sum())
    return nll / tokens


@pytest.mark.parametrize("kind", ["hears", "reads", "both"])
def test_questions_behind_one_prompt_are_as_good_as_separate_rows(orders: Orders, kind: str) -> None:
    """Values and gradients: Whisper with its sound, GPT-2 with a worded context, GPT-2 with sound and context."""
    model = {"hears": orders.hears, "reads": orders.reads, "both": orders.detects}[kind]()
    told: dict[str, Any] = {} if kind == "hears" else {"context": "transcript"}
    pairs = data(orders, absent=9.0, transcribe="say it?", batch_size=5, **told)
    pairs.inputs = ModelInputs(
        {name: model.encoder(name).preprocess for name in model.encoders},
        {name: model.encoder(name).input_kind for name in model.encoders},
        reads_text=model.reads_text,
    )
    pairs.setup("fit")
    batch = next(iter(pairs.train_dataloader()))
    assert max(map(len, batch.questions)) >= 4
    assert any(batch.contexts) == (kind != "hears")
    gradients = []
    for loss in (model.text_loss(batch).mean(), separate(model, batch)):
        model.zero_grad()
        loss.backward()
        gradients.append(
            (float(loss.detach()), [p.grad.clone() for p in model.trained_parameters() if p.grad is not None])
        )
    (one, ours), (other, theirs) = gradients
    assert one == pytest.approx(other, rel=1e-5)
    assert len(ours) == len(theirs) > 0
    for mine, wanted in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, wanted, atol=1e-5 + 1e-3 * float(wanted.abs().max()))


# ----------------------------------------------------------------------------------------------------- from the shell


@pytest.fixture(scope="module")
def fitted(orders: Orders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a training on texts alone, that was saved."""
    root = tmp_path_factory.mktemp("fit")
    recipe = orders.recipe(orders.config("reads"), root)
    assert run("fit", recipe, save_to=root / "model") == 0
    return root


@pytest.mark.parametrize("kind", ["hears", "reads"])
def test_a_training_by_questions(orders: Orders, kind: str, tmp_path: Path, capfd: Any) -> None:
    config = orders.config(kind, transcribe="say it?")
    assert run("fit", orders.recipe(config, tmp_path), trainer__max_epochs=3) == 0
    losses = metric_values(tmp_path, "train/loss")
    assert len(losses) == 9
    assert sum(losses[-3:]) < sum(losses[:3])
    rows = report_rows(tmp_path, "val")
    assert len(rows) > 8
    assert {row["group"] for row in rows} == {"audio" if kind == "hears" else "text"}
    right = [row["prediction"] == row["references"][0] for row in rows]
    assert metric_values(tmp_path, "val/exact_match")[-1] == pytest.approx(np.mean(right))
    numbers = [row["id"].split(" ", 2)[1] for row in rows if row["id"].startswith("o8 ")]
    assert numbers == [f"[{n + 1}]" for n in range(len(numbers))]
    assert "val/exact_match" in (tmp_path / "logs" / "version_0" / "metrics.csv").read_text()
    assert "exact_match" in capfd.readouterr().out


def test_questions_that_nobody_happens_to_ask_leave_no_rows_in_the_report(orders: Orders, tmp_path: Path) -> None:
    config = orders.config("reads", absent=0.3, held_out=["light_on", "light_off", "ask", "room"], eval_batch_size=1)
    assert run("fit", orders.recipe(config, tmp_path), trainer__max_epochs=1) == 0
    rows = report_rows(tmp_path, "val")
    assert 0 < len(rows) < 8
    assert all("[" in row["id"] and row["references"] for row in rows)


def test_a_recipe_may_name_nothing_but_manifests(orders: Orders, tmp_path: Path) -> None:
    """One file each, which is text alone; the model is measured on it, and says where it comes from."""
    file = orders.place("texts.jsonl")
    config = orders.config("reads", train=file, val=file)
    del config["data"]["init_args"]["root"]
    assert run("fit", orders.recipe(config, tmp_path), save_to=tmp_path / "model", trainer__max_epochs=1) == 0
    assert {row["media"] for row in report_rows(tmp_path, "val")} == {f"{file}:{n + 1}" for n in range(12)}
    assert "Data: texts.jsonl, texts.jsonl." in (tmp_path / "model" / "README.md").read_text()


def test_predict_writes_questions_and_answers(orders: Orders, fitted: Path, schema: Schema) -> None:
    recipe, last = fitted / "recipe.yaml", fitted / "checkpoints" / "last.ckpt"
    files = [orders.place("texts.jsonl"), orders.place("manifest.jsonl")]  # the same ids in both
    assert run("predict", recipe, ckpt_path=last, data__init_args__predict=files) == 0
    lines = [json.loads(line) for line in (fitted / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in orders.rows] * 2
    for line, row in zip(lines, orders.rows * 2, strict=True):
        assert len(line["questions"]) == len(line["answers"]) == len(line["references"])
        assert line["references"] == [right(schema, row, question) for question in line["questions"]]
        assert all(isinstance(answer, str) for answer in line["answers"])
    assert run("validate", recipe, ckpt_path=last) == 0
    told = {row["id"]: row["prediction"] for row in report_rows(fitted, "val")}
    assert set(told.values()) <= {answer for line in lines for answer in line["answers"]}


def test_a_run_broken_off_goes_on_with_the_same_questions(orders: Orders, fitted: Path, tmp_path: Path) -> None:
    """Checkpoints after the first step of the second epoch; the text that stands for a row is drawn as well."""
    config = orders.config("reads")
    every = {"every_n_train_steps": 2, "save_last": True}
    saves = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every}
    config["trainer"] |= {"callbacks": [saves]}
    recipe = orders.recipe(config, tmp_path)
    assert (
        run("fit", recipe, **{"trainer__callbacks+": "tiny.captioning_system.Crash", "trainer__callbacks__at": 5}) == 1
    )
    assert steps(tmp_path)[:4] == steps(fitted)[:4]
    (tmp_path / "steps.jsonl").unlink()
    assert run("fit", recipe, ckpt_path="last") == 0
    assert steps(tmp_path) == steps(fitted)[4:]
    assert len(steps(fitted)) == 6
    drawn = {context for step in steps(fitted) for context in step["contexts"] if context.endswith("runs 3")}
    assert drawn <= {"a the rain runs 3", "old the rain runs 3"}


def test_a_run_is_not_resumed_within_an_epoch_of_other_questions(orders: Orders, tmp_path: Path, capfd: Any) -> None:
    recipe = orders.recipe(orders.config("reads"), tmp_path)
    assert run("fit", recipe, trainer__max_steps=2) == 0
    for option, value in (("absent", 2.0), ("schema", write_schema(tmp_path))):
        said = error_message("fit", recipe, capfd, ckpt_path="last", **{f"data__init_args__{option}": value})
        assert "after 2 batches of an epoch whose order cannot be made again: questions was " in said
    said = error_message("fit", recipe, capfd, ckpt_path="last", data__init_args__context="transcript")
    assert "content was " in said
    assert run("fit", recipe, ckpt_path="last") == 0


def write_schema(folder: Path) -> str:
    place = folder / "home.yaml"
    place.write_text(tiny_slu_system.SCHEMA.replace("what now?", "and now?"))
    return str(place)


def test_a_context_that_the_model_does_not_read_is_refused(orders: Orders, tmp_path: Path, capfd: Any) -> None:
    hears = orders.recipe(orders.config("hears", context="transcript"), tmp_path)
    said = error_message("fit", hears, capfd)
    assert said.startswith("data.context transcript: this model reads none; give model.wording.context")
    reads = orders.recipe(orders.config("reads", context="transscript"), tmp_path)
    said = error_message("fit", reads, capfd)
    assert (
        "its columns (audio, signals) feed no branch, for there is none, and no row has a text in transscript" in said
    )


def test_texts_alone_are_refused_by_models_that_cannot_do_with_them(orders: Orders, tmp_path: Path, capfd: Any) -> None:
    """One that reads nothing at all, and a Whisper that reads a context, but must hear something too."""
    mute = orders.config("reads")
    del mute["model"]["wording"], mute["data"]["init_args"]["context"]
    said = error_message("fit", orders.recipe(mute, tmp_path), capfd)
    assert said == "model.branches: there is none, and without model.wording.context no text is read either"
    hears = orders.config("hears", train=orders.place("texts.jsonl"), context="transcript")
    hears["model"] |= {"wording": {"context": "{context}"}}
    said = error_message("fit", orders.recipe(hears, tmp_path), capfd)
    assert said.endswith("texts.jsonl: its rows of text alone feed none of the model's branches (audio)")
    hears = orders.config("hears", context="transcript")
    hears["model"] |= {"wording": {"context": "{context}"}}
    assert run("fit", orders.recipe(hears, tmp_path), trainer__max_steps=1, trainer__limit_val_batches=1) == 0


def test_check_data_and_training_say_the_same_of_a_row(orders: Orders, tmp_path: Path, capfd: Any) -> None:
    row = {"audio": orders.sounds[0], "intent": "ask", "slots": {"rom": "hall"}}
    file = write(tmp_path / "m.jsonl", [row, row])
    assert main(["check-data", str(file), "--schema", orders.place("home.yaml")]) == 2
    first = capfd.readouterr().out.splitlines()[0]
    with pytest.raises(InputError) as error:
        data(orders, root=None, train=str(file))
    assert first in str(error.value)
