"""Recipes of ClipCap, Prefix-AAC and spoken commands: the papers' hyper-parameters and results, sizes without weights.

The captioning recipes also run from end to end on tiny parts.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BartForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import mmprefix
from mmprefix.cli.main import main
from mmprefix.recipes.prepare import vocabulary as build_vocabulary
from mmprefix.weights.dry_run import known_config_folder
from tiny import decoders as tiny_decoders
from tiny import encoders as tiny_encoders
from tiny import whisper as tiny_whisper
from tiny.captioning_system import metric_values, quietly, report_rows
from tiny.hub import hub_model

pytestmark = quietly
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PICTURES = ("clipcap_mlp", "clipcap_mlp_gpt2", "clipcap_transformer")
SOUNDS = (
    "prefix_aac_audiocaps",
    "prefix_aac_clotho",
    "prefix_aac_both",
    "prefix_aac_no_mapper",
    "prefix_aac_temporal",
    "prefix_aac_global",
)


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PICTURES)
def test_clipcaps_hyper_parameters(name: str) -> None:
    settings = recipe(name)
    model, data, trainer = settings["model"], settings["data"]["init_args"], settings["trainer"]
    assert model["optimizer"]["init_args"]["lr"] == 2e-5
    assert (model["schedule"], model["warmup"]) == ("linear", 5000)
    assert data["batch_size"] * 5 == 40
    assert trainer["max_epochs"] == 10
    assert model["decoder"]["init_args"].get("frozen", True) == (name != "clipcap_mlp_gpt2")
    assert model["decoder"]["init_args"]["stop"] == "."
    assert model["generate"] == {"max_new_tokens": 67, "num_beams": 5, "ranking": "clipcap"}


@pytest.mark.parametrize("name", SOUNDS)
def test_prefix_aacs_hyper_parameters(name: str) -> None:
    settings = recipe(name)
    model, data, trainer = settings["model"], settings["data"]["init_args"], settings["trainer"]
    clotho, both = "clotho" in name, "both" in name
    options = model["optimizer"]["init_args"]
    assert (options["lr"], options["weight_decay"]) == (5e-5, 0.02 if clotho or both else 0.01)
    assert model["schedule"] == "cosine"
    assert model["warmup"] == pytest.approx(1 / 6, abs=1e-4)
    assert trainer["max_epochs"] == (60 if clotho else 50)
    captions = {"prefix_aac_clotho": 5, "prefix_aac_both": (49838 + 5 * 3839) / (49838 + 3839)}.get(name, 1)
    assert round(data["batch_size"] * captions) == (55 if clotho else 62 if both else 75)
    (callback,) = trainer["callbacks"]
    assert callback["init_args"]["epochs"] == (30 if clotho else 16)
    encoder = model["branches"]["audio"]["encoder"]["init_args"]
    assert (encoder["rate"], encoder["seconds"]) == (16000, 30 if clotho else 10)
    assert settings["seed_everything"] == 2766


ROWS = {  # from the papers' tables
    "clipcap_mlp": "27.39 24.4 92.38 18.04",
    "clipcap_mlp_gpt2": "32.15 27.1 108.35 20.12",
    "clipcap_transformer": "33.53 27.45 113.08 21.05",
    "prefix_aac_audiocaps": ".713 .552 .421 .309 .240 .503 .733 .177 .455",
    "prefix_aac_clotho": ".560 .376 .253 .160 .170 .378 .392 .118 .255",
    "prefix_aac_both": ".539 .346 .227 .142 .159 .366 .319 .111 .215 .708 .547 .402 .283 .238 .499 .710 .167 .438",
    "prefix_aac_no_mapper": ".250 .216 .471 .614 .387",
    "prefix_aac_temporal": ".280 .230 .491 .708 .440",
    "prefix_aac_global": ".297 .230 .485 .652 .413",
}


@pytest.mark.parametrize("name", [*PICTURES, *SOUNDS])
def test_the_header_has_the_published_row(name: str) -> None:
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\nseed_everything")[0]
    expected = header.split("# Expected:")[1].split("# Cost:")[0]
    numbers = re.findall(r"(?<![\w.])(\d+\.\d+|\.\d{3})(?![\d])", expected)
    assert numbers == ROWS[name].split()
    assert "CIDEr-D" in expected
    for word in ("Paper:", "Data:", "Cost:", "Differs:", "--dry-run"):
        assert word in header


def parameter_table(capsys: pytest.CaptureFixture[str], name: str, *more: str) -> dict[str, tuple[int, int]]:
    """Table of a dry run: part → all parameters, trained parameters."""
    capsys.readouterr()
    assert main(["fit", "--config", str(RECIPES / f"{name}.yaml"), "--dry-run", *more]) == 0
    lines = re.findall(r"^(\S.*?)\s{2,}\w+\s+([\d,]+)\s+([\d,]+)$", capsys.readouterr().out, re.MULTILINE)
    return {part: (int(a.replace(",", "")), int(b.replace(",", ""))) for part, a, b in lines}


@pytest.mark.slow
def test_a_dry_run_needs_no_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    """Sizes as in the papers' tables, on a machine without hub, weights or data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    transformer = parameter_table(capsys, "clipcap_transformer")
    assert transformer["image mapper"] == (42728448, 42728448)  # the table's 43 M
    assert transformer["decoder"] == (124439808, 0)
    assert transformer["all"][1] == 42728448
    tuned = parameter_table(capsys, "clipcap_mlp_gpt2")
    assert tuned["image mapper"][0] == 31960320  # 32 M
    assert tuned["all"][1] == 31960320 + 124439808  # 156 M
    embodied = parameter_table(capsys, "embodied_gpt", "--data.train", "a.jsonl", "--data.val", "b.jsonl")
    assert embodied["decoder"] == (6738415616, 0)  # LLaMA of 7 billion
    assert embodied["video mapper"] == (165207168, 165207168)  # a Q-Former over 1408 with text, and the projection
    assert embodied["task prefix"] == (30 * 10 * 4096 + 30 * 32,) * 2  # a gate for each of 32 heads
    aac = parameter_table(capsys, "prefix_aac_audiocaps")
    assert aac["audio mapper, part 1"] == (22058496, 22058496)
    assert aac["audio mapper, part 2"] == (18946560, 18946560)
    assert aac["audio encoder"][1] > 80e6  # it is trained for 16 epochs
    assert parameter_table(capsys, "prefix_aac_both")["decoder"][1] == 50257 * 768
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


HALVES = {
    "small": (88154112, 153580800),
    "medium": (307216384, 456641536),
}  # encoder and decoder of Whisper, each with its table of positions
KNOWN_SIZES = {  # part → all parameters, trained parameters
    "uapt": {
        "image encoder": (87849216, 0),
        "history encoder": (22713216, 0),
        "image mapper": (36440064, 36440064),
        "decoder": (124439808, 0),
    },
    "slu_whisper": {
        "audio encoder": (HALVES["small"][0], 0),
        "task prefix": (10 * 12 * 2 * 768, 10 * 12 * 2 * 768),
        "decoder": (HALVES["small"][1], 0),
        "all": (sum(HALVES["small"]) + 184320, 184320),
    },
    "slu_modular": {
        "task prefix": (184320, 184320),
        "transcriber": (sum(HALVES["small"]), 0),
        "decoder": (124439808, 0),
        "all": (sum(HALVES["small"]) + 124439808 + 184320, 184320),
    },
    "slu_e2e_gpt2": {
        "audio encoder": (HALVES["small"][0], 0),
        "audio mapper": (7501568, 7501568),
        "task prefix": (184320, 184320),
        "decoder": (124439808, 0),
    },
    "ddsd": {
        "audio encoder": (HALVES["medium"][0], 0),
        "signals encoder": (0, 0),
        "audio mapper": (1024 * 512 + 512 + 512 * 512 + 512 + 512 * 6144 + 6144,) * 2,
        "signals mapper": (4 * 512 + 512 + 512 * 512 + 512 + 512 * 3072 + 3072,) * 2,
        "task prefix": (184320, 184320),
        "decoder": (124439808, 0),
    },
}


@pytest.mark.parametrize("name", KNOWN_SIZES)
def test_a_dry_run_of_models_of_a_hub_needs_no_weights(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """Published sizes of Whisper's halves, CLIP, MiniLM, GPT-2; the header has the number of trained parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    table = parameter_table(capsys, name)
    assert {part: table[part] for part in KNOWN_SIZES[name]} == KNOWN_SIZES[name]
    assert table.keys() == {*KNOWN_SIZES[name], "all"}
    header = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").split("\nseed_everything")[0]
    (millions,) = re.findall(r"# Cost: +([\d.]+) million trained parameters", header)
    assert f"{table['all'][1] / 1e6:.{len(millions.partition('.')[2])}f}" == millions
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


@pytest.mark.parametrize("words", [True, False])
def test_a_dry_run_reads_folders_that_hold_no_weights(
    words: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """Configurations only, with and without a tokenizer: the sizes are those of the models with weights."""
    monkeypatch.chdir(tmp_path)
    whole: dict[str, int] = {}
    for name, make in (("whisper", tiny_whisper.save_whisper), ("bart", tiny_whisper.save_bart)):
        make(tmp_path / name)
        cls = WhisperForConditionalGeneration if name == "whisper" else BartForConditionalGeneration
        whole[name] = sum(p.numel() for p in cls.from_pretrained(tmp_path / name).parameters())
        for file in (tmp_path / name).iterdir():
            if file.name != "config.json" and not (words and "token" in file.name):
                file.unlink()
    hears, writes = (f"--model.{part}.init_args.model" for part in ("branches.audio.encoder", "decoder"))
    table = parameter_table(capsys, "slu_whisper", f"{hears}=whisper", f"{writes}=whisper")
    assert table["audio encoder"][0] + table["decoder"][0] == whole["whisper"]
    assert table["audio encoder"][0] > 0 < table["decoder"][0]
    assert table["task prefix"] == (10 * 2 * 2 * 32,) * 2
    crossed = ("--model.decoder=mmprefix.decoders.CrossDecoder", f"{writes}=bart")
    table = parameter_table(capsys, "slu_modular", "--model.transcriber.init_args.model=whisper", *crossed)
    assert (table["transcriber"][0], table["decoder"][0]) == (whole["whisper"], whole["bart"])


@pytest.mark.parametrize(("name", "parameters"), [
    ("tiny", 37760640), ("base", 72593920), ("small.en", 241734144), ("small", 241734912), ("medium", 763857920),
    ("large-v2", 1543304960), ("large-v3", 1543490560), ("large-v3-turbo", 808878080),
])  # fmt: skip
def test_known_configurations_of_whisper_have_the_published_sizes(name: str, parameters: int) -> None:
    folder = known_config_folder(f"openai/whisper-{name}")
    assert folder is not None
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(AutoTokenizer.from_pretrained(folder)) <= model.config.vocab_size
    assert (
        known_config_folder("openai/whisper-enormous")
        is known_config_folder("whisper-tiny")
        is known_config_folder("tiny")
        is None
    )


@pytest.mark.parametrize(("name", "parameters"), [
    ("gpt2", 124439808), ("openai-community/gpt2-medium", 354823168), ("gpt2-large", 774030080), ("gpt2-xl", 1557611200)
])  # fmt: skip
def test_known_configurations_of_gpt2_have_the_published_sizes(name: str, parameters: int) -> None:
    folder = known_config_folder(name)
    assert folder is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|endoftext|>"
    assert known_config_folder("somebody/else") is None


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder with tiny parts and data at the paths that the recipes name."""
    root, cache = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("hub")
    torch.manual_seed(1)
    hub_model(cache, "openai-community/gpt2", Path(tiny_decoders.save_decoder(cache / "gpt2")))
    (root / "weights").mkdir()
    tiny_encoders.save_panns(root / "weights" / "Cnn14_16k_mAP=0.438.pth")
    tiny_encoders.save_clip(root / "clip")
    texts = ["a dog barks.", "rain falls on a roof.", "the bell rings.", "a cat runs.", "some rain.", "a bird."]
    for data, kind, each in (("coco", "image", 5), ("audiocaps", "audio", 1), ("clotho", "audio", 5)):
        (root / data).mkdir()
        for split in ("train", "val", "test"):
            rows = []
            for n in range(6 if split == "train" else 2):
                file = f"{split}{n}.{'png' if kind == 'image' else 'wav'}"
                if kind == "image":
                    Image.new("RGB", (20, 20), (40 * n, 90, 20)).save(root / data / file)
                else:
                    soundfile.write(root / data / file, 0.1 * np.sin(np.arange(4000 + 900 * n) / (3 + n)), 16000)
                rows.append({"id": f"{split}{n}", kind: file, "captions": (texts[n:] + texts)[:each]})
            (root / data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert build_vocabulary.main(["audiocaps/train.jsonl", "--out", "audiocaps/words.txt"]) == 0
        both = ["audiocaps/train.jsonl", "clotho/train.jsonl", "--out", "clotho/words.txt"]
        assert build_vocabulary.main(both) == 0
        yield root


def shrunk(name: str) -> list[str]:
    """Options that make a recipe's parts tiny; the paper's hyper-parameters stay."""
    words = [
        "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--trainer.check_val_every_n_epoch=1", "--data.init_args.num_workers=0", "--data.init_args.batch_size=3",
        "--model.generate.max_new_tokens=5", "--trainer.num_sanity_val_steps=0", "--data.init_args.drop_last=false",
    ]  # fmt: skip
    if name in PICTURES:
        encoder = "--model.branches.image.encoder.init_args"
        return [*words, f"{encoder}.model=clip", f"{encoder}.pretrained=null"]
    encoder = "--model.branches.audio.encoder.init_args"
    sizes = {"mels": 16, "channels": "[4,6,8]", "classes": 20, "seconds": 0.5}
    return [*words, *(f"{encoder}.{option}={value}" for option, value in sizes.items())]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PICTURES, *SOUNDS])  # in this order: Clotho starts from the model of AudioCaps
def test_it_runs_from_end_to_end(name: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(RECIPES / f"{name}.yaml"), *shrunk(name)]) == 0
    assert len(metric_values(workplace / "runs" / name, "val/loss")) == 1
    assert metric_values(workplace / "runs" / name, "test/cider_d")
    model = mmprefix.load(workplace / "runs" / name / "model", device="cpu")
    file = workplace / ("coco/test0.png" if name in PICTURES else "clotho/test0.wav")
    assert isinstance(model(file), str)
    assert model.options.ranking == "clipcap"
    if name == "prefix_aac_both":  # the other test set, by the command in its header
        header = (RECIPES / f"{name}.yaml").read_text()
        words = shlex.split(header.split(f"mmprefix test --config recipes/{name}.yaml ")[1].splitlines()[0])
        assert main(["test", "--config", str(RECIPES / f"{name}.yaml"), *shrunk(name), *words]) == 0
        rows = report_rows(workplace / "runs" / name, "test")
        assert [row["references"] for row in rows] == [
            ["a dog barks."],
            ["rain falls on a roof."],
        ]  # AudioCaps: one each
    if name == "prefix_aac_clotho":
        assert "trained tensors start from runs/prefix_aac_audiocaps/model" in capsys.readouterr().err
