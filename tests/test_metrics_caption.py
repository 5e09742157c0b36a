"""Caption scores against recorded figures, against pycocoevalcap, and against what each measure promises."""

from __future__ import annotations

import json
import math
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import LightningModule
from tiny_bert import save_bert

from mmprefix import metrics
from mmprefix.metrics import CaptionScores, FenseModels, NotAvailable
from mmprefix.metrics.caption import EXTRA, NAMES, caption
from mmprefix.metrics.java import read_spice
from mmprefix.metrics.rouge import common_length
from mmprefix.types import InputError

FIXTURE = Path(__file__).resolve().parents[2] / "shared" / "parity" / "caption_scores.json"
COCO = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    if not FIXTURE.is_file():
        pytest.skip(f"no {FIXTURE}")
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


def _scores(items: list[dict[str, Any]], tokenize: str, suffix: str = "", extra: tuple[str, ...] = ()) -> dict:
    references = "reference_tokens" if suffix else "references"
    return caption(
        [item["prediction" + suffix] for item in items],
        [item[references] for item in items],
        tokenize,
        True,
        extra=extra,
    )


def _same(got: dict[str, Any], want: dict[str, Any], names: tuple[str, ...] = COCO, tolerance: float = 1e-9) -> None:
    for name in names:
        assert got["items"][name] == pytest.approx(want["per_item"][name], abs=tolerance), name
        assert got[name] == pytest.approx(want["corpus"][name], abs=tolerance), name


def test_recorded_white_space(recorded: dict[str, Any]) -> None:
    _same(_scores(recorded["items"], "none"), recorded["whitespace_raw"])


def test_recorded_tokens(recorded: dict[str, Any]) -> None:
    _same(_scores(recorded["items"], "none", "_tokens"), recorded["ptb"])


def test_recorded_text_with_our_tokeniser(recorded: dict[str, Any]) -> None:
    _same(_scores(recorded["items"], "ptb"), recorded["ptb"])


def test_recorded_ten_alone(recorded: dict[str, Any]) -> None:
    _same(_scores(recorded["items"][:10], "ptb"), recorded["first_ten_only_ptb"])


def _random_set(rng: random.Random, items: int) -> tuple[list[str], list[list[str]]]:
    words = [f"w{index}" for index in range(rng.choice([3, 12, 60]))]

    def text(least: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randrange(least, 15)))

    references = [[text(1) for _ in range(rng.randrange(1, 6))] for _ in range(items)]
    # A third of the predictions are a reference with a word changed, so that long n-grams match too.
    predictions = [
        rng.choice(texts) + rng.choice(["", " w0"]) if rng.random() < 0.3 else text(0) for texts in references
    ]
    return predictions, references


def test_pycocoevalcap_gives_the_same_on_random_tokens() -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    rng = random.Random(3)
    for _ in range(40):
        predictions, references = _random_set(rng, rng.randrange(2, 30))
        theirs = dict(enumerate(references)), {index: [text] for index, text in enumerate(predictions)}
        bleu_all, bleu_items = bleu.Bleu(4).compute_score(*theirs, verbose=0)
        rouge_all, rouge_items = rouge.Rouge().compute_score(*theirs)
        cider_all, cider_items = cider.Cider().compute_score(*theirs)
        corpus = dict(zip(COCO, [*bleu_all, rouge_all, cider_all], strict=True))
        items = dict(zip(COCO, [*bleu_items, list(rouge_items), list(cider_items)], strict=True))
        _same(caption(predictions, references, "none", True), {"per_item": items, "corpus": corpus}, tolerance=1e-10)


def test_common_length_is_that_of_the_table() -> None:
    rng = random.Random(5)
    for _ in range(200):
        first, second = ([rng.choice("abcd") for _ in range(rng.randrange(90))] for _ in range(2))
        row = [0] * (len(second) + 1)
        for token in first:
            last = row[:]
            for index, other in enumerate(second):
                row[index + 1] = last[index] + 1 if token == other else max(last[index + 1], row[index])
        assert common_length(first, second) == row[-1]


def test_a_perfect_set_scores_full() -> None:
    texts = [f"item {index} holds a very special thing number {index}" for index in range(5)]
    scores = caption(texts, [[text] for text in texts])
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "distinct", "exact_match"):
        assert scores[name] == pytest.approx(1, abs=1e-8)
    assert scores["cider_d"] == pytest.approx(10)


def test_order_of_items_and_references_does_not_count() -> None:
    predictions, references = _random_set(random.Random(8), 30)
    turned = caption(predictions[::-1], [texts[::-1] for texts in references[::-1]], "none")
    assert turned == pytest.approx(caption(predictions, references, "none"), abs=1e-12)


def test_diversity_length_and_exact_match() -> None:
    predictions = ["A dog.", "a dog", "a cat sat"]
    references = [["a  DOG!"], ["the dog"], ["x", "a cat sat."]]
    scores = caption(predictions, references, per_item=True)
    assert scores["distinct"] == pytest.approx(2 / 3)
    assert scores["distinct_1"] == pytest.approx(4 / 7)
    assert scores["distinct_2"] == pytest.approx(3 / 4)
    assert scores["length"] == pytest.approx(7 / 3)
    assert scores["items"]["exact_match"] == [1, 0, 1]
    assert caption(predictions, references, "none")["exact_match"] == 0


def test_empty_predictions_score_nothing() -> None:
    scores = caption(["", "...", "a dog runs"], [["a dog"], ["a cat", "b"], ["a dog runs"]], per_item=True)
    for name in (*COCO, "length"):
        assert scores["items"][name][:2] == [0, 0], name
    assert all(math.isfinite(scores[name]) for name in NAMES)
    assert caption(["", ""], [["a"], ["..."]])["distinct_1"] == 0


def test_names_and_lists() -> None:
    scores = caption(["a dog", "b"], [["a dog"], ["c"]], per_item=True)
    assert tuple(scores) == (*NAMES, "items")
    assert set(scores["items"]) == {*COCO, "length", "exact_match"}
    assert all(len(values) == 2 for values in scores["items"].values())
    assert "items" not in caption(["a dog"], [["a dog"]])


@pytest.mark.parametrize(
    ("predictions", "references", "options", "said"),
    [
        (["a"], [["a"], ["b"]], {}, "1 predictions but 2"),
        ([], [], {}, "nothing to score"),
        (["a", "b"], [["a"], []], {}, "item 1 ('b') has no references"),
        (["a"], ["a"], {}, "references is one string"),
        ([None], [["a"]], {}, "item 0: the prediction is NoneType"),
        (["a"], [[3]], {}, "item 0: a reference is int"),
        (["a"], [["a"]], {"tokenize": "bert"}, "use one of ptb, none"),
        (["a"], [["a"]], {"extra": ["bertscore"]}, "use some of meteor"),
    ],
)
def test_bad_input_is_named(predictions: list, references: list, options: dict, said: str) -> None:
    with pytest.raises(InputError) as error:
        caption(predictions, references, **options)
    assert said in str(error.value)


def test_five_thousand_captions_take_seconds() -> None:
    rng = random.Random(9)
    words = [f"word{int(rng.paretovariate(0.7))}" for _ in range(20000)]
    references = [[" ".join(rng.choices(words, k=11)) + "." for _ in range(5)] for _ in range(5000)]
    predictions = [rng.choice(texts) for texts in references]
    start = time.process_time()
    caption(predictions, references)
    assert time.process_time() - start < 6  # 1.2 s measured; room for slow machines


def test_metrics_load_no_torch() -> None:
    code = (
        "import sys, mmprefix.metrics, mmprefix.evaluate; assert 'torch' not in sys.modules; mmprefix.metrics.caption"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
    assert metrics.caption is caption
    with pytest.raises(AttributeError, match="capton"):
        metrics.capton  # noqa: B018 # pyright: ignore


# Java and models


def _needs_java() -> None:
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no java")


@pytest.mark.slow
def test_meteor_gives_the_recorded_figures(recorded: dict[str, Any]) -> None:
    _needs_java()
    _same(_scores(recorded["items"], "none", "_tokens", ("meteor",)), recorded["ptb"], ("meteor",))


def test_without_java_the_reason_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailable, match="meteor is not available: no java on the PATH"):
        caption(["a dog"], [["a dog"]], extra=["meteor"])


def test_a_java_program_that_stops_is_no_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailable, match="its Java program stopped: no memory"):
        caption(["a dog"] * 50, [["a dog"]] * 50, extra=["meteor"])


@pytest.mark.parametrize("name", ["spice", "spider"])
def test_spice_without_its_archives(name: str) -> None:
    package = pytest.importorskip("pycocoevalcap")
    if Path(package.__path__[0], "spice", "lib", "stanford-corenlp-3.6.0.jar").is_file():
        pytest.skip("the archives are here")
    with pytest.raises(NotAvailable, match=r"stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar not in"):
        caption(["a dog"], [["a dog"]], extra=[name])


def test_spice_report_is_read_by_item() -> None:
    entry = '{"image_id": %d, "test_tuples": [], "ref_tuples": [], "scores": {"All": {"pr": 1, "re": 1, "f": %s}}}'
    assert read_spice(f"[{entry % (1, 'null')}, {entry % (0, '0.25')}]", 2) == [0.25, 0.0]


def test_fense_from_local_models(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    save_bert(tmp_path / "sentences", 1)
    save_bert(tmp_path / "backbone", 2)
    bert = AutoModel.from_pretrained(tmp_path / "backbone")
    state = {f"encoder.{key}": value for key, value in bert.state_dict().items()}
    predictions = ["a dog runs.", "the cat", "a cat sleeps the dog runs"]
    references = [["the dog runs", "a dog"], ["a cat sleeps."], ["the cat sleeps", "a dog runs", "dog"]]

    # The similarity, one text at a time and without padding.
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tmp_path / "sentences"),
        AutoModel.from_pretrained(tmp_path / "sentences"),
    )

    def vector(text: str) -> torch.Tensor:
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    with torch.inference_mode():
        similar = [
            sum(float(torch.cosine_similarity(vector(ours), vector(text), dim=0)) for text in texts) / len(texts)
            for ours, texts in zip(predictions, references, strict=True)
        ]
        # A detector whose last logit says "error" for the second prediction only (its text without marks, lowered).
        tokens = AutoTokenizer.from_pretrained(tmp_path / "backbone")
        first = [
            bert(**tokens(text.replace(".", ""), return_tensors="pt")).last_hidden_state[0, 0] for text in predictions
        ]
    direction = first[1] - (first[0] + first[2]) / 2
    weight = torch.zeros(6, 16)
    weight[5] = direction * 200 / direction.norm() ** 2
    bias = torch.zeros(6)
    bias[5] = -float(weight[5] @ (first[1] + max(first[0], first[2], key=lambda one: float(weight[5] @ one))) / 2)
    state |= {"clf.weight": weight, "clf.bias": bias, "encoder.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({"model_type": "tiny", "num_classes": 6, "state_dict": state}, tmp_path / "detector.ckpt")

    models = FenseModels(tmp_path / "sentences", tmp_path / "detector.ckpt", tmp_path / "backbone")
    scores = caption(predictions, references, per_item=True, extra=["sbert_sim", "fense"], models=models)
    assert scores["items"]["sbert_sim"] == pytest.approx(similar, abs=1e-5)
    assert scores["items"]["fense"] == pytest.approx([similar[0], similar[1] * 0.1, similar[2]], abs=1e-5)
    assert scores["fense"] == pytest.approx(sum(scores["items"]["fense"]) / 3)

    save_bert(tmp_path / "other", 3, width=8)
    wrong = FenseModels(tmp_path / "sentences", tmp_path / "detector.ckpt", tmp_path / "other")
    with pytest.raises(NotAvailable, match="was not built on the BERT in"):
        caption(predictions, references, extra=["fense"], models=wrong)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (None, "name the folders of its models"),
        (FenseModels("x"), "it needs a fluency detector"),
        (FenseModels("no-such-folder", "d", "b"), "no-such-folder does not exist"),
    ],
)
def test_fense_without_models(models: FenseModels | None, said: str) -> None:
    with pytest.raises(NotAvailable, match=said):
        caption(["a dog"], [["a dog"]], extra=["fense"], models=models)
    assert "fense" in EXTRA


# The torchmetrics class


def test_collected_scores_are_those_of_the_set() -> None:
    predictions, references = _random_set(random.Random(4), 9)
    ids = [f"id{index}" for index in range(9)]
    scores = CaptionScores("none")
    scores.update(ids[5:], predictions[5:], references[5:])
    scores.update(ids[:6], predictions[:6], references[:6])  # id5 comes again
    assert scores.compute() == caption(predictions, references, "none")
    assert scores.items() == [*map(tuple, zip(ids, predictions, references, strict=True))]
    again = pickle.loads(pickle.dumps(scores))
    assert again.compute() == scores.compute()
    alone = scores(["new"], ["a dog"], [["a dog"]])
    assert alone == caption(["a dog"], [["a dog"]], "none")
    assert len(scores.items()) == 10
    scores.reset()
    assert scores.items() == []
    scores.update(["x"], ["a dog"], [["a dog"]])
    assert scores.compute()["exact_match"] == 1
    with pytest.raises(InputError, match="2 ids, 1 predictions"):
        scores.update(["x", "y"], ["a"], [["a"]])


def _process(rank: int, folder: str) -> None:
    """One of two processes: validates its share of seven examples with Lightning's own sampler, twice."""
    import torch.distributed as dist
    from torch.utils.data.distributed import DistributedSampler

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    predictions, references = _random_set(random.Random(6), 7)
    model = _Listening()
    ids = [f"id{index}" for index in range(7)]
    sampler = DistributedSampler(ids, num_replicas=2, rank=rank, shuffle=False)  # pyright: ignore[reportArgumentType]
    seen = []
    for _ in range(2):
        model.on_validation_epoch_start()
        for index in sampler:  # 2 x 4 places for 7 examples: one comes twice
            model.validation_step(([ids[index]], [predictions[index]], [references[index]]))
        items = model.scores.items()
        seen.append({"scores": model.scores.compute(), "ids": [item.id for item in items], "own": len(sampler)})
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


class _Listening(LightningModule):
    """A LightningModule that scores what its validation batches hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = CaptionScores("none")

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    def validation_step(self, batch: tuple[list[str], list[str], list[list[str]]]) -> None:
        self.scores.update(*batch)


@pytest.mark.slow
def test_two_processes_score_every_example_once(tmp_path: Path) -> None:
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    predictions, references = _random_set(random.Random(6), 7)
    whole = caption(predictions, references, "none")
    for rank in range(2):
        for epoch in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert epoch["own"] == 4
            assert epoch["ids"] == [f"id{index}" for index in range(7)]
            assert epoch["scores"] == pytest.approx(whole, abs=1e-12)
