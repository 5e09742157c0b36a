"""Branches that another branch reads as its context: refused, masked where absent, trained, saved, used."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.encoders.signals import Signals
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.loading import load
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Features, Media, Prefix
from tiny.batches import make_batch, signal_media, tone_media, without_padding
from tiny.captioning_system import checkpoint_tensors, quietly, run, training_record
from tiny.mappers import ContextSum
from tiny.speech_system import SpeechSystem, recipe_part

pytestmark = quietly
OPTIONS = GenerateOptions(max_new_tokens=5)
PROMPTS = ["the"] * 4


@pytest.fixture(scope="module")
def gpt2(spoken: SpeechSystem) -> CausalDecoder:
    return CausalDecoder(spoken.path("decoder"))


@pytest.fixture(scope="module")
def whisper(spoken: SpeechSystem) -> Whisper:
    return Whisper(spoken.path("whisper"))


def model_of(gpt2: CausalDecoder, whisper: Whisper, deep: bool = False) -> PrefixLM:
    """Model whose mapper of signals reads the sound as context; the sound makes no prefix of its own."""
    torch.manual_seed(3)
    mapper = partial(Deep, mapper=ContextSum, hidden=6) if deep else ContextSum
    branches = {"audio": Branch(whisper), "signals": Branch(Signals(["a", "b"]), mapper, context="audio")}
    model = PrefixLM(branches, gpt2)
    with torch.no_grad():
        for parameter in model.mappers.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def test_the_mapper_gets_the_features_of_the_other_branch(gpt2: CausalDecoder, whisper: Whisper) -> None:
    model = model_of(gpt2, whisper)
    mapper = model.mappers["signals"]
    assert mapper.sizes == Sizes(0, 2, 32, 2, 4, 8, context_frames=32, context_summary=32, query_heads=4, hidden=32)
    prefix: Any = model.build_prefix({"audio": tone_media(), "signals": signal_media()})
    expected = mapper(model.encoder("signals")(signal_media()), whisper(tone_media()))
    assert isinstance(prefix, Prefix)
    assert torch.equal(prefix.embeds, expected.embeds)
    assert prefix.embeds.shape == (4, 2, 32)
    assert model.reads_frames("audio")  # as context
    assert not model.reads_frames("signals")


@pytest.mark.parametrize("deep", [False, True])
def test_a_missing_context_has_no_real_frame(deep: bool, gpt2: CausalDecoder, whisper: Whisper) -> None:
    """Each row hides another input; its loss and text equal those of a batch of one without that input."""
    model = model_of(gpt2, whisper, deep)
    absent = {"audio": torch.tensor([False, True, False, True]), "signals": torch.tensor([False, False, True, True])}
    inputs: dict[str, Media | Features] = {"audio": tone_media(), "signals": signal_media()}
    whole = make_batch(inputs, PROMPTS, absent=absent)
    losses, texts = model.text_loss(whole).by_input(4).nll, model.generate(whole, OPTIONS)
    for b in range(4):
        own: dict[str, Media | Features] = {
            name: without_padding(media, b)
            for name, media in inputs.items()
            if isinstance(media, Media) and not absent[name][b]
        }
        if own:
            alone = replace(make_batch(own, PROMPTS[:1]), targets=whole.targets[b : b + 1])
            assert float(model.text_loss(alone).nll.sum()) == pytest.approx(float(losses[b]), abs=1e-3)
            assert model.generate(alone, OPTIONS)[0][0].text == texts[b][0].text
    shown = replace(whole, absent={})
    assert not torch.allclose(model.text_loss(shown).by_input(4).nll[1:], losses[1:], atol=1e-2)


def test_padding_of_the_context_is_not_read(gpt2: CausalDecoder, whisper: Whisper) -> None:
    model = model_of(gpt2, whisper)
    clean = whisper(tone_media())
    dirty = replace(clean, frames=torch.where(clean.mask[..., None], clean.frames, torch.tensor(1e3)))
    first, second = (model.build_prefix({"audio": value, "signals": signal_media()}) for value in (clean, dirty))
    assert isinstance(first, Prefix)
    assert isinstance(second, Prefix)
    assert torch.allclose(first.embeds, second.embeds, atol=1e-5)


def test_a_branch_may_have_a_mapper_and_be_the_context_of_another(gpt2: CausalDecoder, whisper: Whisper) -> None:
    torch.manual_seed(3)
    both = partial(Parallel, mappers=[ContextSum, partial(MLP, length=1, hidden=4)])
    branches = {
        "audio": Branch(whisper, partial(MLP, length=3, hidden=4)),
        "signals": Branch(Signals(["a", "b"]), both, context="audio"),
    }
    model = PrefixLM(branches, gpt2)
    prefix: Any = model.build_prefix({"audio": tone_media(), "signals": signal_media()})
    assert prefix.mask.shape == (4, 3 + 2 + 1)
    again = PrefixLM.from_recipe(yaml.safe_load(yaml.safe_dump(model.recipe())))
    assert again.recipe() == model.recipe()
    assert model.recipe()["branches"]["signals"]["context"] == "audio"
    assert "context" not in model.recipe()["branches"]["audio"]
    assert model.merged().recipe() == model.recipe()
    alone: Any = model.build_prefix({"audio": tone_media()})
    assert alone.mask.shape == (4, 3)


REFUSED: list[tuple[str, dict[str, tuple[type[Mapper] | None, str | None]], str]] = [
    ("unknown", {"signals": (ContextSum, "user")}, r"branches.signals.context 'user': is no other branch; .* audio"),
    ("itself", {"signals": (ContextSum, "signals")}, r"branches.signals.context 'signals': is no other branch"),
    ("unread", {"signals": (MLP, "audio")}, r"branches.signals.context 'audio': MLP reads no context; leave it out"),
    ("lacking", {"signals": (ContextSum, None)}, r"branches.signals: ContextSum reads a context and has none; name"),
    ("no mapper", {"signals": (None, "audio")}, r"branches.signals.context 'audio': no mapper reads it"),
    ("nowhere", {"signals": (MLP, None)}, r"branches.audio: has no mapper, and the decoder .* looks at no frames"),
]


@pytest.mark.parametrize(("branches", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_impossible_contexts_are_refused(
    branches: dict[str, tuple[type[Mapper] | None, str | None]], message: str, gpt2: CausalDecoder, whisper: Whisper
) -> None:
    built = {name: Branch(Signals(["a", "b"]), mapper, context) for name, (mapper, context) in branches.items()}
    with pytest.raises(InputError, match=message):
        PrefixLM({**built, "audio": Branch(whisper)}, gpt2)


def test_a_task_prefix_has_no_context(gpt2: CausalDecoder) -> None:
    message = "prefix: ContextSum reads a context and has none; use it in a branch"
    with pytest.raises(InputError, match=message):
        PrefixLM({}, gpt2, lambda sizes: ContextSum(Sizes(0, 2, sizes.width, context_summary=2)))


def test_a_decoder_with_cross_attention_may_have_contexts(spoken: SpeechSystem, whisper: Whisper) -> None:
    decoder = CrossDecoder(spoken.path("whisper"))
    branches = {"audio": Branch(whisper), "signals": Branch(Signals(["a", "b"]), ContextSum, context="audio")}
    model = PrefixLM(branches, decoder)
    inputs: dict[str, Media | Features] = {"audio": tone_media(), "signals": signal_media()}
    prefix = model.mappers["signals"](model.encoder("signals")(signal_media()), whisper(tone_media()))
    expected = decoder.text_loss(
        decoder.prefill(prefix, whisper(tone_media())), PROMPTS, make_batch(inputs, PROMPTS).targets
    )
    assert torch.allclose(model.text_loss(make_batch(inputs, PROMPTS)).nll, expected.nll, atol=1e-4)


@pytest.mark.parametrize("cache", [False, True])
def test_a_model_with_a_context_is_trained_saved_and_used(cache: bool, spoken: SpeechSystem, tmp_path: Path) -> None:
    """A feature store keeps the frames of the context, although no mapper of that branch reads them."""
    signals = {
        "encoder": recipe_part("encoders.signals.Signals", names=["a", "b", "c"]),
        "mapper": {"class_path": "tiny.mappers.ContextSum", "init_args": {"length": 2}},
        "context": "audio",
    }
    audio = {"encoder": recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper"))}
    config = spoken.config(
        branches={"audio": audio, "signals": signals},
        decoder=recipe_part("decoders.CausalDecoder", model=spoken.path("decoder")),
        modality_dropout=0.3,
    )
    if cache:
        config["cache"] = str(tmp_path / "features")
    recipe = spoken.recipe(config, tmp_path)
    assert run("fit", recipe, save_to=tmp_path / "model", trainer__max_epochs=2) == 0
    training = training_record(tmp_path)
    own = {name for name in training.after if name.startswith("model.mappers.signals.")}
    moved = {name for name, tensor in training.after.items() if not torch.equal(tensor, training.before[name])}
    assert moved == own
    assert checkpoint_tensors(tmp_path / "checkpoints" / "last.ckpt").keys() == own
    saved = yaml.safe_load((tmp_path / "model" / "mmprefix.yaml").read_text())
    assert saved["recipe"]["branches"]["signals"]["context"] == "audio"
    model = load(tmp_path / "model", device="cpu")
    rows = [json.loads(line) for line in Path(spoken.path("train.jsonl")).read_text().splitlines()][:3]
    files = [{"audio": spoken.path(row["audio"]), "signals": tuple(row["signals"])} for row in rows]
    scores = model.score(files, ["rain falls"] * 3)
    assert model([files[0]]) == [model(files[0])]
    others = [{**files[0], "audio": spoken.path("3.wav")}, {"signals": files[0]["signals"]}]
    for other in others:  # another context, and none
        assert abs(model.score([other], ["rain falls"])[0] - scores[0]) > 1e-5
