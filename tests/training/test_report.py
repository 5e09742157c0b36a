"""Report of a validation: metrics by kind of input, captions, logs, and warnings if the input is ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmprefix.metrics import FenseModels, caption, detection
from mmprefix.metrics.sentence_encoder import SentenceEncoder
from mmprefix.training.report import Report, ValidationRow
from tiny.bert import save_bert
from tiny.captioning_system import CaptioningSystem, build, metric_values, quietly, report_rows, run
from tiny.logs import collect_warnings

pytestmark = quietly


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CaptioningSystem:
    return build(tmp_path_factory.mktemp("tiny"), steps=300)


@pytest.fixture(scope="module")
def ignoring_run(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Directory of a run whose mappers learn nothing, and its warnings."""
    root = tmp_path_factory.mktemp("ignoring")
    config = tiny.config()
    config["model"]["optimizer"]["init_args"]["lr"] = 0.0
    config["model"]["sentence_encoder"] = str(save_bert(root / "sentences", 1))
    with (
        collect_warnings() as warnings
    ):  # prefixes of fresh mappers differ by chance: with this seed not for the better
        assert run("fit", tiny.recipe(config, root), trainer__max_epochs=1, seed_everything=3) == 0
    return root, warnings


def row(name: str, prediction: str, *references: str, group: str = "image", **more: Any) -> ValidationRow:
    losses: dict[str, Any] = {"nll": 4.0, "nll_shuffled": 12.0, "tokens": 4} | more
    return ValidationRow(name, group, f"{name}.png", prediction, list(references), **losses)


# ------------------------------------------------------------------------------------------------------------ a run


def test_captions_are_reported_beside_references(tiny: CaptioningSystem, ignoring_run: tuple[Path, list[str]]) -> None:
    rows = report_rows(ignoring_run[0], "val")
    manifest = [json.loads(line) for line in (tiny.folder / "val.jsonl").read_text().splitlines()]
    assert {row["id"]: row["references"] for row in rows} == {row["id"]: row["captions"] for row in manifest}
    assert all(row["media"].endswith((".png", ".wav")) and isinstance(row["prediction"], str) for row in rows)
    (table,) = ignoring_run[0].glob("logs/version_0/captions/val-step4.txt")
    text = table.read_text()
    assert text.count("reference  ") == len(manifest)
    assert [line.split()[:2] for line in text.splitlines()[1:3]] == [["audio", "3"], ["image", "4"]]
    assert text.splitlines()[0].split()[-3:] == ["shuffled", "sbert_sim", "shuffled"]


def test_logs_are_written_by_default(ignoring_run: tuple[Path, list[str]]) -> None:
    events = EventAccumulator(str(ignoring_run[0] / "logs" / "version_0"), {"tensors": 0, "scalars": 0}).Reload()
    (text,) = events.Tensors("val/captions/text_summary")
    (table,) = text.tensor_proto.string_val
    assert table.decode().startswith("| id | written | references |")
    assert table.decode().count("\n") == 1 + 7
    assert len(events.Scalars("train/loss")) == 4
    assert events.Scalars("val/loss")[0].value == pytest.approx(metric_values(ignoring_run[0], "val/loss")[0])
    assert len(metric_values(ignoring_run[0], "train/loss")) == 4
    assert (ignoring_run[0] / "logs" / "version_0" / "config.yaml").is_file()


def test_metrics_are_those_of_the_captions(ignoring_run: tuple[Path, list[str]]) -> None:
    rows = report_rows(ignoring_run[0], "val")
    for prefix, part in (
        ("val/", rows),
        ("val/image/", [row for row in rows if row["group"] == "image"]),
        ("val/audio/", [row for row in rows if row["group"] == "audio"]),
    ):
        expected = caption([row["prediction"] for row in part], [row["references"] for row in part])
        for name in ("cider_d", "rouge_l", "bleu_4", "distinct", "exact_match"):
            assert metric_values(ignoring_run[0], prefix + name)[-1] == pytest.approx(expected[name], abs=1e-6)
        models = FenseModels(ignoring_run[0] / "sentences")
        texts = [row["prediction"] for row in part], [row["references"] for row in part]
        similarity = caption(*texts, extra=["sbert_sim"], models=models)["sbert_sim"]
        assert metric_values(ignoring_run[0], prefix + "sbert_sim")[-1] == pytest.approx(similarity, abs=1e-5)
        assert len(metric_values(ignoring_run[0], prefix + "sbert_sim_shuffled")) == 1
        loss = sum(row["nll"] for row in part) / sum(row["tokens"] for row in part)
        assert metric_values(ignoring_run[0], prefix + "loss")[-1] == pytest.approx(loss, abs=1e-6)
        assert len(metric_values(ignoring_run[0], prefix + "cider_d_shuffled")) == 1


def test_a_warning_for_a_model_that_ignores_its_input(ignoring_run: tuple[Path, list[str]]) -> None:
    for kind in ("image", "audio"):
        assert any(f"The model ignores its {kind} input" in line for line in ignoring_run[1]), ignoring_run[1]


def test_a_model_that_reads_its_input_has_no_warning(tiny: CaptioningSystem, tmp_path: Path) -> None:
    """Four memorised pictures: their captions differ and are right."""
    rows = [json.loads(line) for line in (tiny.folder / "train.jsonl").read_text().splitlines()]
    four = [row for row in rows if row["id"] in ("p0", "p1", "p2", "p3")]
    manifest = tmp_path / "four.jsonl"
    manifest.write_text(
        "".join(
            json.dumps({**row, "image": str(tiny.folder / row["image"]), "captions": row["captions"][:1]}) + "\n"
            for row in four
        )
    )
    config = tiny.config(["image"])
    config["data"]["init_args"] |= {"train": [str(manifest)], "val": [str(manifest)], "batch_size": 4}
    config["model"]["branches"]["image"]["mapper"] = {
        "class_path": "mmprefix.mappers.mlp.MLP",
        "init_args": {"length": 4, "hidden": 32},
    }
    config["trainer"] |= {"max_epochs": 120, "check_val_every_n_epoch": 120}
    config["model"]["generate"] = {"max_new_tokens": 12}
    with collect_warnings() as warnings:
        assert run("fit", tiny.recipe(config, tmp_path), trainer__enable_checkpointing=False) == 0
    assert warnings == []
    assert [row["prediction"] for row in report_rows(tmp_path, "val")] == [
        row["captions"][0] for row in sorted(four, key=lambda row: row["id"])
    ]
    assert metric_values(tmp_path, "val/exact_match") == [1.0]
    assert metric_values(tmp_path, "val/cider_d")[0] > 5
    assert metric_values(tmp_path, "val/cider_d_shuffled")[0] < 5
    assert metric_values(tmp_path, "val/shuffle_gap")[0] > 0.5


# ----------------------------------------------------------------------------------------------------- single reports


def test_the_gap_is_the_nll_per_token_behind_another_prefix_minus_its_own() -> None:
    report = Report([row("a", "a dog", "a dog"), row("b", "a cat", "a cat", nll=8.0, nll_shuffled=None)])
    scores = report.figures()
    assert scores["loss"] == pytest.approx((4 + 8) / 8)
    assert scores["shuffle_gap"] == pytest.approx((12 - 4) / 4)  # of the rows that had a neighbour
    assert report.warnings() == []


def test_a_warning_for_one_caption_of_all_unless_references_are_equal() -> None:
    same = [row(name, "a dog", f"a {name}") for name in "abc"]
    assert Report(same).warnings() == ["The model writes one and the same caption for all 3 image inputs."]
    number, idf = "items that all have the same references have", "no idf (inverse document frequency)"
    score = "score a set of different items"
    lines = [f"No cider_d for image: not defined: {number} {idf}; {score}."]
    assert Report([row(name, "a dog", "a dog") for name in "abc"]).warnings() == lines
    assert Report(same[:1]).warnings() == [lines[0].replace(number, "one item has")]


def test_a_figure_that_is_not_defined_is_no_figure() -> None:
    """CIDEr-D of references that are all the same, in the kind of input that has them, and of one item."""
    same = [row(name, f"a {name}", "a dog", group="audio") for name in "abc"]
    report = Report([*same, *(row(name, f"a {name}", f"a {name}") for name in "de")])
    figures = report.figures()
    assert {name for name in figures if "cider_d" in name} == {
        "cider_d", "cider_d_shuffled", "image/cider_d", "image/cider_d_shuffled",
    }  # fmt: skip
    assert report.warnings()[0].startswith("No cider_d for audio: not defined: items that all ")
    assert report.table(0).splitlines()[1].split()[:2] == ["audio", "3"]
    assert report.table(0).splitlines()[1].split()[5] == "nan"
    assert "cider_d" not in Report(same[:1]).figures()
    assert Report([row("a", "", "")]).figures().keys() >= {"bleu_4", "rouge_l", "exact_match"}


def test_sentence_similarity_stands_beside_that_of_shuffled_captions(tmp_path: Path) -> None:
    encoder = SentenceEncoder(save_bert(tmp_path / "sentences", 1))
    rows = [row("a", "a dog runs", "a dog runs"), row("b", "the cat sleeps", "the cat sleeps"), row("c", "a cat")]
    report = Report(rows, encoder=encoder)
    own, shuffled = report.figures()["sbert_sim"], report.figures()["sbert_sim_shuffled"]
    assert own == pytest.approx(1.0, abs=1e-5)
    assert shuffled < own - 1e-3
    title, line = report.table(0).splitlines()[:2]
    assert dict(zip(title.split()[-2:], line.split()[-2:], strict=True)) == {
        "sbert_sim": f"{own:.3f}",
        "shuffled": f"{shuffled:.3f}",
    }
    assert not {"sbert_sim", "sbert_sim_shuffled"} & set(Report(rows).figures())
    assert "sbert" not in Report(rows).table(0)
    assert "sbert_sim_shuffled" not in Report(rows[:1], encoder=encoder).figures()


def test_captions_without_spaces_are_reported() -> None:
    rows = [row("a", "一只狗在草地上奔跑", "一只棕色的狗在跑"), row("b", "雨落在屋顶上的声音", "雨声在铁皮屋顶上")]
    (line,) = Report(rows).warnings()
    assert line.startswith("4 of 4 texts are written without spaces (Chinese, Japanese, Thai ...)")
    assert line.endswith("first.")


def test_the_warning_names_the_ignored_kind_only() -> None:
    good = [row(name, f"a {name}", f"a {name}") for name in "abc"]
    lost = [row(name, f"a {name}", f"a {name}", group="audio", nll_shuffled=4.0) for name in "abc"]
    (line,) = Report(good + lost).warnings()
    assert line.startswith("The model ignores its audio input: with another input's prefix the loss is 1.000")


@pytest.mark.parametrize(
    "rows",
    [
        [row("a", "", "a dog"), row("b", "", "a cat")],
        [row("a", ""), row("b", "a cat")],
        [row("a", "a dog", "")],
        [],
    ],
)
def test_empty_captions_and_missing_references_are_reported(rows: list[ValidationRow]) -> None:
    report = Report(rows)
    assert all(value == value for value in report.figures().values())  # no NaN
    assert len(report.table(5).splitlines()) == 2 + bool(rows) + 3 * len(rows)
    assert isinstance(report.warnings(), list)


def test_a_row_of_two_processes_counts_once() -> None:
    assert len(Report([row("a", "a dog", "a dog"), row("a", "a dog", "a dog")]).rows) == 1
    assert len(Report([row("a", "a dog", "a dog"), row("a", "a dog", "a dog", group="audio")]).rows) == 2


def test_detection_is_measured_over_all_and_over_each_kind() -> None:
    odds = {"a": 2.0, "b": 1.0, "c": -1.0, "d": 0.5, "e": 0.7, "f": -2.0}
    words = dict.fromkeys("abe", "directed") | dict.fromkeys("cdf", "other")
    rows = [
        row(name, words[name], words[name], group="audio" if name in "abc" else "text", log_odds=odds[name])
        for name in odds
    ]
    report = Report(rows, "directed")
    expected = detection(list(odds.values()), [words[name] == "directed" for name in odds])
    scores = report.figures()
    for name in ("eer", "auc", "threshold"):
        assert scores[name] == expected[name]
    for group, names in (("audio", "abc"), ("text", "def")):
        part = detection([odds[name] for name in names], [words[name] == "directed" for name in names])
        assert scores[f"{group}/auc"] == part["auc"]
    assert report.warnings() == []
    assert report.table(0).splitlines()[0].split()[2:] == ["loss", "eer", "auc", "exact_match", "shuffled"]


def test_a_warning_for_labels_of_one_kind_only() -> None:
    rows = [row(name, "yes", "yes", log_odds=1.0) for name in "abc"]
    for target, hits in (("yes", 3), ("no", 0)):
        report = Report(rows, target)
        assert "eer" not in report.figures()
        assert f"No eer and auc: {hits} of 3 references are {target!r}; they need both kinds." in report.warnings()
