"""Captions of nearest inputs: written out in loops, kept in a file, written into manifests, read by the shell."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import mmprefix
from mmprefix.data.manifest import InputRef
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.timm import Timm
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.features.neighbours import Neighbours
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.resampler import Resampler
from mmprefix.metrics.cider_reward import CiderReward
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.recipes.retrieve.neighbours import main
from mmprefix.saved_model import ModelSettings
from mmprefix.types import Candidate
from tiny.datasets import write_sound
from tiny.encoders import save_timm
from tiny.models import OPTIONS, frozen_parts
from tiny.shell import Shell

pytestmark = pytest.mark.numeric
COLOURS = ("red", "green", "blue", "white", "black", "gray", "orange", "purple")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a data set: eight pictures, six of them to train on, and an encoder of timm."""
    folder = tmp_path_factory.mktemp("pictures")
    save_timm(folder / "timm", "efficientnet")
    rows: list[dict[str, Any]] = []
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (40, 40), colour)
        image.paste("yellow", (0, 0, 5 * number, 20))
        image.save(folder / f"{colour}.png")
        captions = [f"a {colour} wall", f"paint that is {colour}"]
        rows.append({"id": colour, "image": f"{colour}.png", "captions": captions})
    for split, part in (("train", rows[:6]), ("test", rows[6:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Timm:
    return Timm(str(folder / "timm"))


def recipe_of(folder: Path) -> str:
    return f"{{class_path: mmprefix.encoders.timm.Timm, init_args: {{model: {folder / 'timm'}}}}}"


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Path:
    """Folder that the program wrote."""
    out, cache = folder / "out", folder / "features"
    words = [str(folder), "--encoder", recipe_of(folder), "--count", "2", "--circle", "3"]
    assert main([*words, "--cache", str(cache), "--out", str(out)]) == 0
    return out


def by_hand(rows: torch.Tensor, captions: list[list[str]], query: torch.Tensor, skip: int | None = None) -> str:
    """Context of two neighbours out of a circle of three, in loops."""
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    deviation = deviation.clamp(min=0.01 * float(deviation.mean()))

    def cosine(number: int) -> float:
        a, b = (query - mean) / deviation, (rows[number] - mean) / deviation
        return float(a @ b / (a.norm() * b.norm()))

    near = sorted((n for n in range(len(rows)) if n != skip), key=cosine, reverse=True)[:3]
    others = [set(text.split()) for n in near for text in captions[n]]
    lines: list[str] = []
    for number in near[:2]:
        shared = [
            sum(2 * len(set(text.split()) & other) / (len(set(text.split())) + len(other)) for other in others)
            for text in captions[number]
        ]
        lines.append(captions[number][shared.index(max(shared))])
    return "\n".join(reversed(lines))


def test_contexts_are_those_of_the_formula(encoder: Timm) -> None:
    torch.manual_seed(0)
    rows = torch.randn(9, 5)
    captions = [[f"a {word} b", f"c {word} d {'a' if n % 2 else 'e'}"] for n, word in enumerate("qrstuvwxy")]
    neighbours = Neighbours(encoder, rows, captions, 2, 3)
    queries = torch.randn(4, 5)
    assert neighbours.contexts(queries) == [by_hand(rows, captions, query) for query in queries]
    own = neighbours.contexts(rows, range(9))
    assert own == [by_hand(rows, captions, row, n) for n, row in enumerate(rows)]
    assert all(text not in context.split("\n") for context, texts in zip(own, captions, strict=True) for text in texts)
    assert neighbours.contexts(rows[:1])[0].split("\n")[-1] in captions[0]  # a new input may be one of them


def test_texts_are_ranked_by_score_and_agreement(encoder: Timm) -> None:
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.5], [-0.8, 0.4]])
    captions = [["a dog runs fast", "the dog runs"], ["a dog runs in snow"], ["rain on the roof"], ["a roof of tin"]]
    neighbours = Neighbours(encoder, rows, captions, 1, 2, judges=2)
    texts = [Candidate("rain on the roof", -0.5), Candidate("a dog runs fast", -0.9), Candidate("a bell", -0.2)]
    dogs, roofs = neighbours.best_first(torch.tensor([[1.0, 0.05], [-0.9, 0.5]]), [texts, texts], 1.0)
    assert dogs[0].text == "a dog runs fast"
    assert roofs[0].text == "rain on the roof"
    assert sorted(dogs, key=lambda text: text.score) == sorted(texts, key=lambda text: text.score)
    cider = CiderReward(captions, end=False)
    values = [text.score + 0.3 * cider(text.text, captions[0] + captions[1]) for text in texts]
    (ranked,) = neighbours.best_first(rows[:1], [texts], 0.3)
    assert ranked == [text for _, text in sorted(zip(values, texts, strict=True), key=lambda pair: -pair[0])]
    assert [text.score for text in neighbours.best_first(rows[:1], [texts], 0.0)[0]] == [-0.2, -0.5, -0.9]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((0, 3), "1 <= count <= circle"), ((4, 3), "1 <= count <= circle"), ((1, 1, 0), "judges 0: give a number from 1")],
)
def test_numbers_that_cannot_be_are_refused(encoder: Timm, numbers: tuple[int, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Neighbours(encoder, torch.zeros(1, 2), [["a"]], *numbers)


def test_an_encoder_without_a_summary_is_refused(encoder: Timm) -> None:
    with pytest.raises(InputError, match="gives frames and no summary"):
        Neighbours(encoder, torch.zeros(2, 0), [["a"], ["b"]], 1, 1)


def test_summaries_that_are_no_finite_numbers_are_refused(encoder: Timm) -> None:
    """Numbers beyond half precision, in which the file holds them, would make every likeness none."""
    with pytest.raises(InputError, match="not finite, also where they are too large for half precision"):
        Neighbours(encoder, torch.tensor([[1e5, 0.0]]).half(), [["a"]], 1, 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encoder": None}, "is no part; give class_path"),
        ({"count": 0}, "1 <= count <= circle"),
        ({"captions": []}, "each input needs a summary and a caption"),
        ({"format": 7}, "format 7"),
        ({"sha256": KeyError}, "'sha256'"),
        ({"judges": KeyError}, "'judges'"),
        ({"summaries": torch.zeros(6, 3)}, r"holds summaries of shape \(6, 3\)"),
        ({"summaries": torch.zeros(6)}, r"holds summaries of shape \(6,\)"),
    ],
)
def test_a_damaged_file_is_refused(prepared: Path, tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with safe_open(prepared / "neighbours.safetensors", "pt") as opened:
        settings = {**json.loads(opened.metadata()["neighbours"]), **change}
        summaries = change.get("summaries", opened.get_tensor("summaries"))
    kept = {name: value for name, value in settings.items() if value is not KeyError and name != "summaries"}
    save_file({"summaries": summaries}, tmp_path / "file", {"neighbours": json.dumps(kept)})
    with pytest.raises(InputError, match=text):
        Neighbours.load(tmp_path / "file")


def test_a_file_gives_what_the_program_wrote(folder: Path, prepared: Path) -> None:
    neighbours = Neighbours.load(prepared / "neighbours.safetensors")
    rows = [json.loads(line) for line in (prepared / "test.jsonl").read_text().splitlines()]
    files = [str(prepared / row["image"]) for row in rows]
    assert all(Path(file).is_file() for file in files)
    assert neighbours(files) == [row["context"] for row in rows]
    assert neighbours([InputRef(files[1])]) == [rows[1]["context"]]
    assert neighbours([]) == []
    train = [json.loads(line) for line in (prepared / "train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in train] == list(COLOURS[:6])
    for row in train:
        lines = row["context"].split("\n")
        assert len(lines) == 2
        assert not set(lines) & set(row["captions"])
    neighbours.save(folder / "again.safetensors")
    assert Neighbours.load(folder / "again.safetensors")(files) == neighbours(files)


def test_captions_of_one_picture_in_rows_of_their_own_are_one_input(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    lines = [{"image": str(folder / row["image"]), "caption": text} for row in rows for text in row["captions"]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [str(tmp_path), "--encoder", recipe_of(folder), "--count", "2", "--circle", "3"]
    assert main([*words, "--cache", str(folder / "features"), "--out", str(tmp_path / "out")]) == 0
    written = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(written) == 12
    for line in written:
        colour = Path(line["image"]).stem
        assert colour not in line["context"].split()


def test_one_manifest_of_all_splits_does_as_well(folder: Path, prepared: Path, tmp_path: Path) -> None:
    table = ["id,split,image,captions"]
    for split in ("train", "test"):
        for row in map(json.loads, (folder / f"{split}.jsonl").read_text().splitlines()):
            texts = json.dumps(row["captions"]).replace('"', '""')
            table.append(f'{row["id"]},{split},{folder / row["image"]},"{texts}"')
    (tmp_path / "manifest.csv").write_text("\n".join(table) + "\n")
    words = [str(tmp_path), "--encoder", recipe_of(folder), "--count", "2", "--circle", "3"]
    assert main([*words, "--cache", str(folder / "features"), "--out", str(tmp_path / "out")]) == 0
    for split in ("train", "test"):
        ours, theirs = (
            [json.loads(line) for line in (place / f"{split}.jsonl").read_text().splitlines()]
            for place in (tmp_path / "out", prepared)
        )
        assert [(row["id"], row["context"]) for row in ours] == [(row["id"], row["context"]) for row in theirs]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"start": 1.0, "end": 2.0}, "is a part of a file"),
        ({"image": None, "audio": "a.wav"}, "has no column 'image'"),
        ({"captions": []}, "train.jsonl:1: has no caption"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], text: str
) -> None:
    write_sound(tmp_path / "a.wav")
    content = {"image": str(folder / "red.png"), "captions": ["a"], **row}
    content = {name: value for name, value in content.items() if value is not None}
    (tmp_path / "train.jsonl").write_text(json.dumps(content) + "\n")
    assert main([str(tmp_path), "--encoder", recipe_of(folder), "--out", str(tmp_path / "out")]) == 2
    assert text in capsys.readouterr().err


def test_other_weights_and_other_files_are_refused(folder: Path, prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    Neighbours(Timm(str(save_timm(tmp_path / "timm", "convnext"))), torch.zeros(1, 64), [["a"]], 1, 1).save(file)
    (tmp_path / "timm" / "model.safetensors").write_bytes((folder / "timm" / "model.safetensors").read_bytes())
    (tmp_path / "timm" / "config.json").write_bytes((folder / "timm" / "config.json").read_bytes())
    with pytest.raises(InputError, match="encoder of other weights"):
        Neighbours.load(file)
    for other in (folder / "timm" / "model.safetensors", folder / "red.png", tmp_path / "none"):
        with pytest.raises(InputError, match=r"is not what mmprefix\.recipes\.retrieve\.neighbours writes"):
            Neighbours.load(other)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--encoder", "timm"], "'timm' is no part; give class_path"),
        (["--encoder", "none.yaml"], "--encoder none.yaml: give"),
        (["--count", "6", "--circle", "9"], "has 6 rows of train; --count 6"),
        (["--count", "3", "--circle", "2"], "give 1 <= count <= circle"),
        (["--out", "."], "--out .: is the folder of the data, whose manifests would be written over"),
    ],
)
def test_wrong_options_end_in_a_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(folder)
    plain = [str(folder), "--encoder", recipe_of(folder), "--out", str(tmp_path / "out")]
    assert main([*plain, "--cache", str(folder / "features"), *words]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("neighbours: ")
    assert text in error


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Saved models that read pictures, with a context and without."""
    parts = frozen_parts(tmp_path_factory.mktemp("parts"))
    models = dict[bool, Path]()
    for reads in (True, False):
        torch.manual_seed(2)
        branch = Branch(ViT(str(parts["image"])), partial(Resampler, length=3, heads=2))
        wording = PromptTemplate(context="{context}\n") if reads else PromptTemplate()
        model = PrefixLM({"image": branch}, CausalDecoder(str(parts["decoder"])), wording=wording)
        models[reads] = tmp_path_factory.mktemp("models") / f"reads_{reads}"
        Predictor(model, ModelSettings(OPTIONS)).save(models[reads])
    return models


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def captions(shell: Shell, *words: str | Path) -> dict[str, dict[str, Any]]:
    code, out, _ = shell("caption", *words, "--json", "--device", "cpu")
    assert code == 0
    return {Path(row["file"]).name: row for row in map(json.loads, out.splitlines())}


def test_the_shell_finds_neighbours(saved: dict[bool, Path], folder: Path, prepared: Path, shell: Shell) -> None:
    """A caption beside ``--neighbours`` is that of a manifest with the context, and of a call that is given it."""
    file = prepared / "neighbours.safetensors"
    files = [folder / "orange.png", folder / "purple.png"]
    own = captions(shell, saved[True], *files, "--neighbours", file, "--agreement", "0")
    written = captions(shell, saved[True], "--manifest", prepared / "test.jsonl")
    context = Neighbours.load(file)([str(files[0])])[0]
    by_option = captions(shell, saved[True], files[0], "--context", context)
    plain = captions(shell, saved[True], *files)
    for name in ("orange.png", "purple.png"):
        assert own[name]["caption"] == written[name]["caption"]
        assert own[name]["candidates"][0]["score"] == pytest.approx(written[name]["candidates"][0]["score"], abs=1e-4)
        assert own[name]["candidates"][0]["score"] != pytest.approx(plain[name]["candidates"][0]["score"], abs=1e-4)
    assert own["orange.png"]["caption"] == by_option["orange.png"]["caption"]
    code, streamed, _ = shell(
        "caption", saved[True], files[0], "--neighbours", file, "--agreement", "0", "--stream", "--device", "cpu"
    )
    assert (code, streamed.strip()) == (0, own["orange.png"]["caption"])


def test_neighbours_choose_among_beams(saved: dict[bool, Path], folder: Path, tmp_path: Path, shell: Shell) -> None:
    """A model without context: of four beams the last one is what the nearest input, itself, was described by."""
    files = [folder / f"{colour}.png" for colour in COLOURS]
    beams = mmprefix.load(saved[False], device="cpu").candidates(files, num_return=4, num_beams=4)
    encoder = Timm(str(folder / "timm"))
    names = [str(file) for file in files]
    vectors = Neighbours(encoder, torch.zeros(1, encoder.pooled_dim), [["a"]], 1, 1).embed(names)
    written = [[row[-1].text, f"{row[-1].text} {colour}"] for row, colour in zip(beams, COLOURS, strict=True)]
    neighbours = Neighbours(encoder, vectors, written, 1, 1, judges=1)
    neighbours.save(tmp_path / "file")
    words = [*files, "--num-beams", "4", "--batch-size", "3", "--neighbours", tmp_path / "file", "--agreement", "50"]
    best = captions(shell, saved[False], *words)
    twice = captions(shell, saved[False], *words, "--num-return", "2")
    ranked = neighbours.best_first(neighbours.embed(names), beams, 50.0)
    assert [texts[0].text for texts in ranked] != [texts[0].text for texts in beams]
    for file, texts, own in zip(files, ranked, beams, strict=True):
        assert best[file.name]["caption"] == texts[0].text
        assert [text["text"] for text in best[file.name]["candidates"]] == [texts[0].text]
        assert [text["text"] for text in twice[file.name]["candidates"]] == [text.text for text in texts[:2]]
        assert {text.text for text in texts} == {text.text for text in own}


def test_a_file_that_cannot_be_read_does_not_end_the_others(
    saved: dict[bool, Path], folder: Path, prepared: Path, shell: Shell
) -> None:
    broken = folder / "broken.png"
    broken.write_bytes((folder / "red.png").read_bytes()[:60])
    files = [folder / "orange.png", broken, folder / "purple.png"]
    words = ["--neighbours", prepared / "neighbours.safetensors", "--json", "--device", "cpu"]
    code, out, error = shell("caption", saved[True], *files, *words)
    assert code == 3
    assert "broken.png" in error
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["orange.png", "purple.png"]


def test_what_neighbours_cannot_do_is_refused(
    saved: dict[bool, Path], folder: Path, prepared: Path, shell: Shell
) -> None:
    file = prepared / "neighbours.safetensors"
    cases: list[tuple[bool, list[str | Path], str]] = [
        (False, ["--neighbours", file, "--num-beams", "1"], "neighbours: choose among several texts"),
        (False, ["--neighbours", file, "--stream"], "stream: neighbours choose among whole texts"),
        (True, ["--neighbours", file, "--stream"], "stream: neighbours choose among whole texts"),
        (False, ["--neighbours", file, "--agreement", "-1"], "agreement -1: give a number"),
        (True, ["--agreement", "2"], "agreement 2: weighs neighbours=FILE (--neighbours FILE)"),
        (True, ["--neighbours", folder / "red.png"], "red.png: is not what"),
    ]
    for reads, words, text in cases:
        assert text in shell.refuses("caption", saved[reads], folder / "orange.png", "--device", "cpu", *words)


def test_a_page_gives_neighbours_to_named_models_alone(prepared: Path, shell: Shell) -> None:
    error = shell.refuses("demo", "--neighbours", prepared / "neighbours.safetensors")
    assert "go with the models that are named" in error
    assert "--neighbours none: no such file" in shell.refuses("demo", "mmprefix:world/trained", "--neighbours", "none")


def test_a_row_keeps_a_context_of_its_own(
    saved: dict[bool, Path], folder: Path, prepared: Path, tmp_path: Path, shell: Shell
) -> None:
    rows = [{"image": str(folder / f"{colour}.png"), "captions": ["a"]} for colour in COLOURS[:3]]
    rows[1]["context"] = "mine"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--neighbours", prepared / "neighbours.safetensors", "--agreement", "0"]
    code, out, _ = shell(
        "caption", saved[True], "--manifest", tmp_path / "m.jsonl", *words, "--json", "--device", "cpu"
    )
    assert code == 0
    scores = [json.loads(line)["score"] for line in out.splitlines()]
    contexts = Neighbours.load(prepared / "neighbours.safetensors")([str(row["image"]) for row in rows])
    plain = mmprefix.load(saved[True], device="cpu")
    own = plain.candidates(
        [str(row["image"]) for row in rows], num_return=1, context=[contexts[0], "mine", contexts[2]]
    )
    assert scores == pytest.approx([texts[0].score for texts in own], abs=1e-4)
