"""A branch of texts beside one of pictures, end to end: fit with a feature cache, saved, loaded, captioned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

import mmprefix
from mmprefix.cli.main import main
from mmprefix.errors import InputError
from mmprefix.features.store import FeatureStore, store_description
from mmprefix.inference.predictor import Predictor
from tiny.captioning_system import CaptioningSystem, build, metric_values, quietly, run
from tiny.speech_system import recipe_part
from tiny.texts import save_sentence_encoder

pytestmark = quietly
WORDS = (["a dog", "the cat"], "a cat sleeps", "", "dog", ["the dog runs"], None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CaptioningSystem:
    """Small system whose pictures have keywords beside them."""
    system = build(tmp_path_factory.mktemp("texts"), steps=10)
    save_sentence_encoder(system.folder / "sentences")
    for split in ("train", "val", "test"):
        file = system.folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {"keywords": WORDS[int(row["id"][1:])]} for row in rows if "image" in row]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return system


def config(tiny: CaptioningSystem, branches: tuple[str, ...] = ("image", "keywords")) -> dict[str, Any]:
    made = tiny.config(("image",))
    made["model"]["branches"]["keywords"] = {
        "encoder": recipe_part("encoders.text.Text", model=tiny.path("sentences")),
        "mapper": recipe_part("mappers.resampler.Resampler", length=2, layers=1, heads=4, hidden=16),
    }
    made["model"]["branches"] = {name: made["model"]["branches"][name] for name in branches}
    return made


@pytest.fixture(scope="module")
def trained(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two steps with a cache, whose model is saved in ``saved``."""
    root = tmp_path_factory.mktemp("run")
    recipe = tiny.recipe(config(tiny), root)
    options = {"cache": root / "cache", "cache_dtype": "float32", "save_to": root / "saved"}
    assert run("fit", recipe, trainer__max_steps=2, **options) == 0
    return root


def test_texts_are_trained_on_and_kept_in_the_feature_store(tiny: CaptioningSystem, trained: Path) -> None:
    assert len(metric_values(trained, "train/loss")) == 2
    encoder = mmprefix.load(trained / "saved").model.encoder("keywords")
    store = FeatureStore(trained / "cache", store_description(encoder, "float32"))
    assert len(store) == 4  # of six rows two have no keywords


def test_a_saved_model_captions_pictures_with_and_without_words(tiny: CaptioningSystem, trained: Path) -> None:
    model = mmprefix.load(trained / "saved")
    assert model.kinds == {"image": "image", "keywords": "text"}
    picture = str(tiny.folder / "1.png")
    inputs: list[Any] = [
        {"image": picture, "keywords": "a cat sleeps"},
        {"image": picture},
        {"keywords": ["the cat", "a dog"]},
        {"image": picture, "keywords": "http://the.cat/sleeps"},  # a text is no address
        {"image": picture, "keywords": picture},  # and no path
    ]
    captions = model(inputs)
    assert len(captions) == 5
    assert all(isinstance(caption, str) for caption in captions)
    alone = [model(value) for value in inputs]
    assert alone == captions
    scores = [model.score(value, ["the red hill"]) for value in inputs[:3]]
    assert len({round(score[0], 4) for score in scores}) == 3  # words and picture both count
    assert scores[2] == model.score({"keywords": "the cat. a dog"}, ["the red hill"])


def test_texts_that_cannot_be_read_are_refused(tiny: CaptioningSystem, trained: Path) -> None:
    model = mmprefix.load(trained / "saved")
    for value, message in (
        ({"keywords": " "}, "the given text is empty; give words"),
        ({"keywords": []}, "the given text is empty; give words"),
        ({"keywords": [0.5, 1.0]}, "is a row of numbers, but this model reads a text (branch 'keywords')"),
        ({"keywords": Path(tiny.path("1.png"))}, "is a picture, but this model reads a text (branch 'keywords')"),
        ({"keywords": b"dog"}, "the given bytes: is no text"),
        ({"words": "a dog"}, "no branch for input words; this model reads a picture"),
    ):
        with pytest.raises(InputError) as error:
            model(value)
        assert message in str(error.value)


def test_the_command_line_reads_the_texts_of_a_manifest(tiny: CaptioningSystem, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    test = tiny.folder / "test.jsonl"
    assert main(["caption", str(trained / "saved"), "--manifest", str(test), "--out", str(out)]) == 0
    written = {row["id"]: row["caption"] for row in map(json.loads, out.read_text().splitlines())}
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    model: Predictor = mmprefix.load(trained / "saved")
    for row in rows:
        words = {"keywords": row["keywords"]} if row["keywords"] else {}
        assert written[row["id"]] == model({"image": str(tiny.folder / row["image"]), **words})


def test_texts_alone_feed_a_model(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    rows = [{"id": str(n), "keywords": "a dog", "caption": f"the dog {n}"} for n in range(3)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = config(tiny, ("keywords",))
    made["data"]["init_args"] = {name: str(tmp_path / "words.jsonl") for name in ("train", "val", "test")}
    assert run("fit", tiny.recipe(made, tmp_path / "r"), trainer__max_steps=1, save_to=tmp_path / "saved") == 0
    model = mmprefix.load(tmp_path / "saved")
    assert model.model.encoder("keywords").input_kind == "text"
    with pytest.raises(InputError, match=r"a dog: this model reads a text \(branch 'keywords'\); give a dictionary"):
        model("a dog")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert 'print(model({"keywords": "a few words"}))' in card
    out = tmp_path / "out.jsonl"
    words = ["caption", str(tmp_path / "saved"), "--manifest", str(tmp_path / "words.jsonl"), "--out", str(out)]
    assert main(words) == 0
    assert len(out.read_text().splitlines()) == 3
    (tmp_path / "words.jsonl").write_text(json.dumps({"id": "a", "keywords": {"dog": 1}, "caption": "a"}) + "\n")
    assert run("fit", tiny.recipe(made, tmp_path / "bad")) == 2
    assert "words.jsonl:1: keywords must be a text or a list of texts, found an object" in capfd.readouterr().err


def test_a_batch_of_stored_texts_equals_those_encoded_anew(tiny: CaptioningSystem, trained: Path) -> None:
    recipe = tiny.recipe(config(tiny), trained / "again")
    assert run("fit", recipe, trainer__max_steps=2) == 0
    stored, anew = (metric_values(root, "train/loss") for root in (trained, trained / "again"))
    assert_close(stored, anew, atol=1e-4, rtol=1e-4)
