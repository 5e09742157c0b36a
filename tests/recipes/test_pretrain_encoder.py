"""Program that trains small encoders: it learns, it reads training rows only, and our encoders load its models."""

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageDraw

from mmprefix.encoders.cnn import Cnn
from mmprefix.encoders.vit import ViT
from mmprefix.media.source import Waveform
from mmprefix.recipes.pretrain import augment, nlvr_scenes
from mmprefix.recipes.pretrain import encoder as pretrain_encoder
from mmprefix.recipes.score import esc10 as score_esc10
from mmprefix.recipes.score import nlvr as score_nlvr
from mmprefix.types import Media
from tiny.decoders import save_decoder

RATE = 16000
BLUE, YELLOW = "#0099ff", "Yellow"


def _write(folder: Path, rows: list[dict[str, object]]) -> Path:
    file = folder / "manifest.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _clip(tone: bool, seed: int) -> np.ndarray:
    """Half a second of one tone, or of noise."""
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * math.pi * rng.uniform(300, 3000) * np.arange(RATE // 2) / RATE)
    return (wave if tone else rng.uniform(-1, 1, RATE // 2)) * rng.uniform(0.1, 0.9)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number in range(24):
        tone, split = number % 2 == 0, "train" if number < 16 else "val"
        soundfile.write(folder / f"{number}.wav", _clip(tone, number), RATE)
        rows.append({"id": str(number), "audio": f"{number}.wav", "label": "tone" if tone else "noise", "split": split})
        rows[-1]["captions"] = ["A tone sounds." if tone else "Noise is heard."]
        rows[-1]["fold"] = 1 + number % 4 // 2
    return _write(folder, rows)


def _train(manifest: Path, out: Path, *more: str) -> dict[str, object]:
    words = [
        "--manifest",
        str(manifest),
        "--out",
        str(out),
        "--channels",
        "4",
        "8",
        "--batch-size",
        "8",
        "--average",
        "0.9",
    ]
    pretrain_encoder.main([*words, "--dropout", "0", "--lr", "0.01", *more])
    return json.loads((out / "training.json").read_text())


@pytest.fixture(scope="module")
def trained(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("encoder")
    return out, _train(sounds, out, "--media", "audio", "--epochs", "20")


def test_the_frozen_encoder_separates_the_classes_that_the_program_learned(trained: tuple[Path, dict[str, object]]):
    out, report = trained
    assert report["inputs"] == 16
    assert report["val"] == 1.0
    encoder = Cnn(str(out))
    pooled = []
    for seed in (100, 101, 102, 103):
        clip = encoder.preprocess(Waveform(_clip(seed % 2 == 0, seed), RATE), 0.0, None)
        pooled.append(encoder(Media(clip[None], torch.tensor([len(clip)]))).pooled[0])
    alike, different = (pooled[0] - pooled[2]).norm(), (pooled[0] - pooled[1]).norm()
    assert different > 2 * alike


def test_one_seed_gives_the_same_weights_and_val_clips_have_no_influence(sounds: Path, tmp_path: Path):
    rows = pretrain_encoder.read_rows(sounds)
    for row in rows:
        row["audio"] = str(sounds.parent / row["audio"])
    options = ["--media", "audio", "--epochs", "1"]
    _train(_write(tmp_path, rows), tmp_path / "a", *options)
    for row in rows[16:]:  # other labels in another order must not change training
        row["label"] = "tone"
    _train(_write(tmp_path, rows[:16] + rows[:15:-1]), tmp_path / "b", *options)
    assert Cnn(str(tmp_path / "a")).identity.sha256 == Cnn(str(tmp_path / "b")).identity.sha256


def test_folds_split_the_training_rows_only(sounds: Path):
    rows, train, rest = pretrain_encoder.split_rows(pretrain_encoder.read_rows(sounds), "val", [1])
    assert len(rows) == 16
    assert {rows[number]["fold"] for number in train} == {1}
    assert {rows[number]["fold"] for number in rest} == {2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for number in range(24):
        colour, word = ((200, 30, 30), "red") if number % 2 else ((30, 30, 200), "blue")
        pixels = np.clip(rng.normal(colour, 40, (32, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        split = "train" if number < 16 else ("val", "test")[number % 2]
        rows.append({"id": str(number), "image": f"{number}.png", "captions": [f"A {word} wall."], "split": split})
        rows[-1] |= {"label": "true", "statement": f"A {word} wall."}
    return _write(folder, rows)


@pytest.fixture(scope="module")
def picture_encoder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("pictures_encoder")
    options = ["--label", "captions", "--least", "4", "--size", "32", "48"]
    return out, _train(pictures, out, "--media", "image", *options, "--epochs", "20", "--report", "train")


def test_pictures_by_the_words_of_their_captions(pictures: Path, picture_encoder: tuple[Path, dict[str, object]]):
    out, report = picture_encoder
    assert report["labels"] == ["blue", "red"]  # "a" and "wall" are in every caption: no labels
    encoder = ViT(str(out))
    assert encoder.preprocess(pictures.parent / "0.png", 0.0, None).shape == (3, 32, 48)
    assert (encoder.dim, encoder.pooled_dim) == (8, 8)
    held = [encoder.preprocess(pictures.parent / f"{number}.png", 0.0, None) for number in range(16, 24)]
    summaries = encoder(Media(torch.stack(held), torch.ones(8))).pooled
    blue, red = summaries[::2], summaries[1::2]
    assert torch.cdist(blue, blue).max() < torch.cdist(blue, red).min()


def _item(x: int, y: int, colour: str, kind: str = "square", size: int = 20) -> dict[str, object]:
    return {"x_loc": x, "y_loc": y, "color": colour, "type": kind, "size": size}


def test_tags_of_a_scene():
    tower = [_item(40, 59, YELLOW), _item(40, 80, BLUE)]
    loose = [_item(0, 30, BLUE, "circle", 10), _item(40, 50, BLUE, "triangle", 30)]
    tags = nlvr_scenes.scene_tags([tower, loose, [_item(40, 80, BLUE)]])
    assert {"tower in 2 or more", "yellow top in 1 or more", "blue base in 2 or more"} <= tags
    assert {"yellow on blue in 1 or more", "blue circle at edge in 1 or more", "2 blue in 1 or more"} <= tags
    assert not {"tower in 3 or more", "yellow base in 1 or more", "blue triangle at edge in 1 or more"} & tags


def test_shuffled_boxes_are_the_same_boxes():
    picture = Image.new("RGB", (400, 100), "gray")
    for number, colour in enumerate(("red", "green", "blue")):
        ImageDraw.Draw(picture).rectangle((150 * number, 0, 150 * number + 99, 99), fill=colour)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float()
    torch.manual_seed(0)
    shuffled = [nlvr_scenes.shuffle_boxes(pixels)[:, 50] for _ in range(40)]
    orders = {tuple(row[:, x].argmax().item() for x in (50, 200, 350)) for row in shuffled}
    assert len(orders) == 6
    torch.testing.assert_close(nlvr_scenes.shuffle_boxes(pixels)[:, :, 100:150], pixels[:, :, 100:150])


def test_scenes_are_trained_from_a_zip(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive, (tmp_path / "scenes.jsonl").open("w") as scenes:
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (20, 80, 4), dtype=np.uint8)).save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", f"{number}.png")
            boxes = [[_item(40, 80, BLUE if number % 2 else YELLOW)]] * 3
            scenes.write(json.dumps({"id": f"s-{number}", "boxes": boxes}) + "\n")
            split = "train" if number < 8 else "val"
            rows.append({"id": f"s-{number}-1", "image": f"images.zip::{number}.png", "captions": [], "split": split})
    report = _train(
        _write(tmp_path, rows), tmp_path / "out", "--media", "image", "--scenes", str(tmp_path / "scenes.jsonl"),
        "--least", "2", "--size", "20", "80", "--epochs", "1",
    )  # fmt: skip
    labels = report["labels"]
    assert isinstance(labels, list)
    assert "yellow top in 3 or more" in labels
    assert "tower in 3 or more" not in labels  # true of all
    assert ViT(str(tmp_path / "out")).dim == 8


def test_sounds_are_varied_but_stay_sounds():
    torch.manual_seed(0)
    power = torch.rand(16, 100)
    varied = [augment.vary_sound(power, 80) for _ in range(5)]
    assert all(clip.shape == (16, 80) and clip.isfinite().all() and (clip >= 0).all() for clip in varied)
    assert not torch.allclose(varied[0], varied[1])
    mixed, shares = augment.mix_sounds(torch.stack(varied), torch.eye(5))
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    assert mixed.shape == (5, 16, 80)
    hidden = augment.hide_bands(torch.ones(3, 16, 80), most_bands=4, most_time=10)
    assert 0 < (hidden == 0).float().mean() < 0.5


def test_words_of_a_caption_name_its_class():
    assert score_esc10.named("A cock crows.") == ["rooster"]
    assert score_esc10.named("A dog barks while rain falls.") == ["dog", "rain"]
    many = {"helicopters": "helicopter", "chainsaws": "chainsaw", "clocks": "clock tick", "roosters": "rooster"}
    many |= {"fires": "fire crackling", "beaches": "sea waves", "babies": "baby cry", "dogs": "dog"}
    assert all(score_esc10.named(f"The sound of {words}.") == [label] for words, label in many.items())
    pairs = [("dog", "A dog is barking."), ("rain", "A crowd cheers."), ("dog", "A dog barks in the rain.")]
    accuracy, mistakes = score_esc10.score(pairs)
    assert accuracy == pytest.approx(1 / 3)
    assert mistakes == {("rain", "nothing"): 1, ("dog", "dog and rain"): 1}


def test_a_statement_should_be_likelier_where_it_is_true():
    scored = [("a", True, -1.0), ("a", False, -2.0), ("a", False, -0.5), ("b", True, -3.0), ("c", False, 0.0)]
    assert score_nlvr.preferred([*scored, ("b", False, -3.0)]) == (pytest.approx(0.5), 3)


def test_every_template_of_the_real_manifest_names_its_class():
    manifest = Path(__file__).resolve().parents[3] / "shared" / "data" / "esc10" / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip("no ../shared/data/esc10")
    for row in map(json.loads, manifest.read_text().splitlines()):
        assert all(score_esc10.named(caption) == [row["label"]] for caption in row["captions"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["esc10", "nlvr", "coco_mini"])
def test_the_recipe_runs(
    name: str,
    sounds: Path,
    pictures: Path,
    trained: tuple[Path, dict[str, object]],
    picture_encoder: tuple[Path, dict[str, object]],
    tmp_path: Path,
):
    """One epoch on tiny parts and data: the whole recipe is used, and its predictions can be scored."""
    from mmprefix.cli.training.train import train

    branch, data, encoder = (
        ("audio", sounds, trained[0]) if name == "esc10" else ("image", pictures, picture_encoder[0])
    )
    decoder = save_decoder(tmp_path / "decoder")
    recipe = Path(pretrain_encoder.__file__).parents[1] / f"{name}.yaml"
    options = {
        "config": recipe,
        "data.root": data.parent,
        f"model.branches.{branch}.encoder.init_args.model": encoder,
        "model.decoder.init_args.model": decoder,
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.default_root_dir": tmp_path,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": False,
        "save_to": tmp_path / "model",
    }
    assert train(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    [written] = tmp_path.rglob("captions/val-step*.jsonl")
    if name == "esc10":
        score_esc10.main([str(written), "--manifest", str(data)])
    if name == "nlvr":
        score_nlvr.main([str(tmp_path / "model"), "--manifest", str(data)])


@pytest.mark.parametrize("column", ["prediction", "caption"])
def test_the_scorer_reads_what_a_validation_and_what_caption_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    manifest, texts = tmp_path / "manifest.jsonl", tmp_path / "texts.jsonl"
    manifest.write_text("".join(json.dumps({"id": name, "label": name}) + "\n" for name in ("dog", "rain")))
    texts.write_text("".join(json.dumps({"id": name, column: "A dog barks."}) + "\n" for name in ("dog", "rain")))
    score_esc10.main([str(texts), "--manifest", str(manifest)])
    assert capsys.readouterr().out.splitlines() == ["2 captions, 50.0% name the class", "  1 × rain: named dog"]
