"""PrefixLM: prefix of branches and task prefix, prompts by the template, absent inputs, refused combinations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.encoders.panns import Cnn14
from mmprefix.encoders.signals import Signals
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.loading import load
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import ModelSettings
from mmprefix.transcriber import Transcriber
from mmprefix.types import DeepPrefix, Features, Media, MixedPrefix, Prefix
from tiny import encoders as tiny_encoders
from tiny.batches import make_batch, signal_media, tone_media, without_padding
from tiny.captioning_system import quietly
from tiny.speech_system import SpeechSystem

pytestmark = quietly
OPTIONS = GenerateOptions(max_new_tokens=5)
Make = Callable[[Sizes], Mapper]


@pytest.fixture(scope="module")
def gpt2(spoken: SpeechSystem) -> CausalDecoder:
    return CausalDecoder(spoken.path("decoder"))


@pytest.fixture(scope="module")
def whisper(spoken: SpeechSystem) -> Whisper:
    return Whisper(spoken.path("whisper"))


@pytest.fixture(scope="module")
def whisper_decoder(spoken: SpeechSystem) -> CrossDecoder:
    return CrossDecoder(spoken.path("whisper"))


# --------------------------------------------------------------------------------------------- inputs that are absent

SOFT: dict[str, Make] = {
    "audio": lambda sizes: Linear(sizes, stack=2),
    "signals": lambda sizes: MLP(sizes, length=2, hidden=6),
}
DEEP: dict[str, Make] = {
    "audio": lambda sizes: Deep(sizes, mapper=SOFT["audio"], hidden=6),
    "signals": lambda sizes: Deep(sizes, mapper=SOFT["signals"], hidden=6),
}
TASK: dict[str, Make | None] = {
    "no task prefix": None,
    "soft task prefix": lambda sizes: Learned(sizes, length=2, std=1.0),
    "deep task prefix": lambda sizes: DeepTable(sizes, length=2, std=1.0),
}


def two_branches(gpt2: CausalDecoder, whisper: Whisper, audio: Make, signals: Make, prefix: Make | None) -> PrefixLM:
    """Model of sounds and signals with random mappers ``audio`` and ``signals`` and a task prefix."""
    torch.manual_seed(7)
    branches = {"audio": Branch(whisper, audio), "signals": Branch(Signals(["a", "b"]), signals)}
    model = PrefixLM(branches, gpt2, prefix, wording=PromptTemplate(context="said: {context}\n"))
    with torch.no_grad():
        for parameter in model.mappers.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


ABSENT = {"audio": [False, True, False, True], "signals": [False, False, True, True]}
CONTEXTS = ["", "", "a dog", "the cat"]


@pytest.mark.parametrize("signals", [SOFT["signals"], DEEP["signals"]], ids=["soft signals", "deep signals"])
@pytest.mark.parametrize("audio", [SOFT["audio"], DEEP["audio"]], ids=["soft audio", "deep audio"])
@pytest.mark.parametrize("prefix", TASK.values(), ids=TASK)
@pytest.mark.parametrize("prompts", [[""] * 4, ["the", "", "a green", ""]], ids=["no prompt", "prompts"])
def test_a_hidden_input_changes_nothing_beside_its_absence(
    prompts: list[str], prefix: Make | None, audio: Make, signals: Make, gpt2: CausalDecoder, whisper: Whisper
) -> None:
    """Each row hides another input; its loss and text equal those of a batch of one without that input."""
    model = two_branches(gpt2, whisper, audio, signals, prefix)
    inputs: dict[str, Media | Features] = {"audio": tone_media(), "signals": signal_media()}
    hidden = {name: torch.tensor(rows) for name, rows in ABSENT.items()}
    whole = make_batch(inputs, prompts, contexts=CONTEXTS, absent=hidden)
    losses, texts = model.text_loss(whole).by_input(4).nll, model.generate(whole, OPTIONS)
    for b in range(4):
        own = {
            name: without_padding(media, b) for name, media in (("audio", tone_media()), ("signals", signal_media()))
        }
        alone = make_batch({name: media for name, media in own.items() if not ABSENT[name][b]}, prompts[b : b + 1])
        alone = replace(alone, contexts=CONTEXTS[b : b + 1], targets=whole.targets[b : b + 1])
        assert float(model.text_loss(alone).nll.sum()) == pytest.approx(float(losses[b]), abs=1e-3)
        assert model.generate(alone, OPTIONS)[0][0].text == texts[b][0].text
    shown = replace(whole, absent={})
    assert not torch.allclose(model.text_loss(shown).by_input(4).nll[1:], losses[1:], atol=1e-2)


def test_a_hidden_input_has_no_gradient(gpt2: CausalDecoder, whisper: Whisper) -> None:
    model = two_branches(gpt2, whisper, SOFT["audio"], DEEP["signals"], TASK["deep task prefix"])
    everywhere = {"audio": torch.ones(4, dtype=torch.bool)}
    inputs: dict[str, Media | Features] = {"audio": tone_media(), "signals": signal_media()}
    model.text_loss(make_batch(inputs, [""] * 4, absent=everywhere)).mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if name.startswith("mappers.")}
    assert all(g is None or not bool(g.any()) for name, g in gradients.items() if name.startswith("mappers.audio"))
    assert all(g is not None and bool(g.any()) for name, g in gradients.items() if "signals" in name)


# ------------------------------------------------------------------------------------------- branches and task prefix


def test_a_task_prefix_stands_before_the_branches(gpt2: CausalDecoder, whisper: Whisper) -> None:
    model = two_branches(gpt2, whisper, SOFT["audio"], SOFT["signals"], TASK["soft task prefix"])
    prefix = model.build_prefix({"audio": tone_media(2), "signals": signal_media(2)})
    alone = {name: model.mappers[name](model.features({name: media})[name]) for name, media in
             (("audio", tone_media(2)), ("signals", signal_media(2)))}  # fmt: skip
    assert isinstance(prefix, Prefix)
    assert model.task_prefix is not None
    learned: Tensor = model.task_prefix.get_parameter("embeds")
    expected = torch.cat([learned.expand(2, -1, -1), alone["audio"].embeds, alone["signals"].embeds], 1)
    assert torch.allclose(prefix.embeds, expected, atol=1e-6)
    assert prefix.mask.sum(1).tolist() == [2 + 10 + 2, 2 + 18 + 2]
    mixed = two_branches(gpt2, whisper, SOFT["audio"], SOFT["signals"], TASK["deep task prefix"]).build_prefix(
        {"signals": signal_media(3)}
    )
    assert isinstance(mixed, MixedPrefix)
    assert mixed.deep.keys.shape == (2, 3, 4, 2, 8)
    assert mixed.soft.embeds.shape == (3, 2, 32)


def test_a_model_may_be_a_prefix_alone(gpt2: CausalDecoder) -> None:
    model = PrefixLM({}, gpt2, TASK["deep task prefix"])
    assert len(model.text_loss(make_batch({}, ["the", "a green", ""])).nll) == 4
    assert [len(candidates) for candidates in model.generate(make_batch({}, ["the", ""]), OPTIONS)] == [1, 1]
    assert set(model.trained) == {"task_prefix.table"}
    prefix = model.build_prefix({}, count=5)
    assert isinstance(prefix, DeepPrefix)
    assert prefix.mask.shape == (5, 2)
    with pytest.raises(InputError, match="no branch for input audio"):
        model.build_prefix({"audio": tone_media()})


def test_frames_of_a_branch_without_a_mapper_are_cross_attended(
    whisper: Whisper, whisper_decoder: CrossDecoder, gpt2: CausalDecoder
) -> None:
    model = PrefixLM({"audio": Branch(whisper)}, whisper_decoder)
    inputs = make_batch({"audio": tone_media(3)}, [""] * 3)
    loss = model.text_loss(inputs).by_input(3).nll
    features = whisper(tone_media(3))
    nothing = Prefix(torch.zeros(3, 0, 32), torch.zeros(3, 0, dtype=torch.bool))
    expected = (
        whisper_decoder.text_loss(whisper_decoder.prefill(nothing, features), [""] * 3, inputs.targets).by_input(3).nll
    )
    assert torch.allclose(loss, expected, atol=1e-4)
    assert not model.trained
    twice = PrefixLM(
        {"near": Branch(whisper), "far": Branch(whisper)}, whisper_decoder
    )  # frames of two branches are concatenated
    both = make_batch({"near": tone_media(3), "far": tone_media(3)}, [""] * 3)
    frames = Features(torch.cat([features.frames] * 2, 1), torch.cat([features.mask] * 2, 1), features.pooled)
    expected = (
        whisper_decoder.text_loss(whisper_decoder.prefill(nothing, frames), [""] * 3, inputs.targets).by_input(3).nll
    )
    assert torch.allclose(twice.text_loss(both).by_input(3).nll, expected, atol=1e-4)
    with pytest.raises(
        InputError, match=r"model.branches.audio: has no mapper, and the decoder '.*' looks at no frames"
    ):
        PrefixLM({"audio": Branch(whisper)}, gpt2)
    with pytest.raises(InputError, match=r"model.branches.signals: has no mapper"):
        PrefixLM({"audio": Branch(whisper), "signals": Branch(Signals())}, whisper_decoder)


def test_a_mapped_branch_is_a_prefix_beside_cross_attended_frames(
    whisper: Whisper, whisper_decoder: CrossDecoder, tmp_path: Path
) -> None:
    other = Cnn14(str(tiny_encoders.save_panns(tmp_path / "cnn.pth")), **tiny_encoders.PANNS)
    assert other.dim != whisper_decoder.memory_dim
    mapper = Resampler(Sizes(other.dim, other.pooled_dim, whisper_decoder.width), length=3, layers=1, hidden=16)
    model = PrefixLM({"audio": Branch(whisper), "room": Branch(other, lambda sizes: mapper)}, whisper_decoder)
    inputs = make_batch({"audio": tone_media(3), "room": tone_media(3)}, [""] * 3)
    expected = whisper_decoder.text_loss(
        whisper_decoder.prefill(mapper(other(tone_media(3))), whisper(tone_media(3))), [""] * 3, inputs.targets
    )
    assert torch.allclose(model.text_loss(inputs).nll, expected.nll, atol=1e-4)


def test_parts_that_do_not_fit_together_are_refused(
    whisper_decoder: CrossDecoder, gpt2: CausalDecoder, whisper: Whisper
) -> None:
    with pytest.raises(InputError, match=r"model.branches: at least one branch is needed.* or model.prefix"):
        PrefixLM({}, gpt2)
    for name in ("decoder", "transcriber"):
        with pytest.raises(InputError, match=f"model.branches.{name}: is the name of another part"):
            PrefixLM({name: Branch(whisper, SOFT["audio"])}, gpt2)
    with pytest.raises(InputError, match="MLP reads the encoder's summary, and this encoder has none"):
        PrefixLM({}, gpt2, MLP)
    model = PrefixLM({"audio": Branch(whisper, SOFT["audio"])}, gpt2)
    with pytest.raises(InputError, match="no branch for input signals; this model reads audio"):
        model.build_prefix({"signals": signal_media()})
    with pytest.raises(InputError, match=r"no branch for input \(none given\)"):
        model.build_prefix({})
    wide = Whisper(whisper.identity.source)
    wide.dim = 48
    with pytest.raises(InputError, match=r"its frames are 48 wide, while the decoder .* frames that are 32 wide"):
        PrefixLM({"audio": Branch(wide)}, whisper_decoder)
    with pytest.raises(InputError, match=r"looks at frames that are 32 wide, and no branch has any"):
        PrefixLM({"signals": Branch(Signals(["a", "b", "c"]), SOFT["signals"])}, whisper_decoder)
    with pytest.raises(InputError, match=r"model.transcriber: nothing reads its text; give model.wording"):
        PrefixLM({"audio": Branch(whisper)}, whisper_decoder, transcriber=Transcriber(whisper.identity.source))


def test_the_decoder_reads_contexts_and_questions_by_the_template(gpt2: CausalDecoder) -> None:
    """A context before the prompt, a question before each target; without wording contexts are not read."""
    torch.manual_seed(0)
    model = PrefixLM(
        {}, gpt2, TASK["deep task prefix"], wording=PromptTemplate("said: {context}\n", "q: {question}\na:")
    )
    inputs = make_batch({}, ["be brief. ", "the"], contexts=["a dog", ""], questions=[["who?", "where?"], [""]])
    loss = model.text_loss(inputs)
    state = gpt2.prefill(model.build_prefix({}, count=1))
    separate = [
        gpt2.text_loss(state, [before], [[text]]).nll
        for before, text in (
            ("said: a dog\nbe brief. q: who?\na:", "a dog"),
            ("said: a dog\nbe brief. q: where?\na:", "rain falls"),
            ("the", "the cat."),
        )
    ]
    assert torch.allclose(loss.nll, torch.cat(separate), atol=1e-3)
    assert model.reads_text
    plain_model = PrefixLM({}, gpt2, TASK["deep task prefix"])
    assert not plain_model.reads_text
    assert plain_model.prompts(inputs) == ["be brief. ", "the"]


def test_a_model_without_mappers_is_saved_and_built_again(
    whisper: Whisper, whisper_decoder: CrossDecoder, tmp_path: Path
) -> None:
    model = PrefixLM({"audio": Branch(whisper)}, whisper_decoder, TASK["deep task prefix"])
    again = PrefixLM.from_recipe(yaml.safe_load(yaml.safe_dump(model.recipe())))
    assert again.recipe() == model.recipe()
    assert "mapper" not in model.recipe()["branches"]["audio"]
    assert not again.mappers
    Predictor(model, ModelSettings(OPTIONS)).save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    inputs = make_batch({"audio": tone_media(3)}, [""] * 3)
    assert_close(loaded.model.text_loss(inputs).nll, model.text_loss(inputs).nll)
    with pytest.raises(InputError, match=r"recipe: .*answer"):
        PrefixLM.from_recipe({**model.recipe(), "wording": {"answer": "x"}})


# ------------------------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize("stop", [None, "."])
def test_choices_are_weighed_as_they_would_be_scored(stop: str | None, spoken: SpeechSystem) -> None:
    decoder = CausalDecoder(spoken.path("decoder"), stop=stop)
    torch.manual_seed(1)
    model = PrefixLM({}, decoder, TASK["soft task prefix"])
    prompts, choices = ["the", "", "said: "], ["a dog", "a dog barks", "rain", "a", "the cat runs over"]
    state = model.prefill(make_batch({}, prompts))
    scores_of_choices = decoder.score_choices(decoder.append_prompts(state, prompts), prompts, choices)
    ended = [text + (stop or "") for text in choices]
    scores = torch.tensor(decoder.score(state, prompts, [ended] * 3))
    assert torch.allclose(scores_of_choices, scores.log_softmax(-1), atol=1e-3)
