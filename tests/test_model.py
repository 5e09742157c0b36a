"""PrefixLM: what branches, task prefix and wording become for the decoder; inputs that are absent; saving it whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmprefix.cli.main import main
from mmprefix.data.collate import pad_media
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.encoders.panns import Cnn14
from mmprefix.encoders.signals import Signals
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.predictor import Predictor, load
from mmprefix.kv_cache.trie import build_trie
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import Detection, ModelSettings
from mmprefix.training import task
from mmprefix.training.modality_dropout import drop_modalities
from mmprefix.transcriber import Transcriber
from mmprefix.types import Batch, DeepPrefix, Features, Media, MixedPrefix, Prefix
from tiny import encoders as tiny_encoders
from tiny import speech_system as tiny_speech_system
from tiny.captioning_system import checkpoint_tensors, error_message, quietly, run, same_tensors, training_record
from tiny.speech_system import PHRASES, SpeechSystem, recipe_part, tone

pytestmark = quietly
OPTIONS = GenerateOptions(max_new_tokens=5)
Make = Callable[[Sizes], Mapper]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> SpeechSystem:
    return tiny_speech_system.build(tmp_path_factory.mktemp("spoken"), taught=True)


@pytest.fixture(scope="module")
def gpt2(spoken: SpeechSystem) -> CausalDecoder:
    return CausalDecoder(spoken.path("decoder"))


@pytest.fixture(scope="module")
def ears(spoken: SpeechSystem) -> Whisper:
    return Whisper(spoken.path("whisper"))


@pytest.fixture(scope="module")
def asked(spoken: SpeechSystem) -> CrossDecoder:
    return CrossDecoder(spoken.path("whisper"))


def sounds(count: int = 4) -> Media:
    return pad_media([torch.from_numpy(tone(pitch, 0.4 + 0.3 * n)) for n, pitch in enumerate(PHRASES.values())][:count])


def numbers(count: int = 4) -> Media:
    return pad_media([torch.tensor([n - 1.5, 0.5 * n]) for n in range(count)])


def batch(inputs: dict[str, Media | Features], prompts: list[str], **more: Any) -> Batch:
    count = len(prompts)
    targets = [["a dog", "rain falls"], ["the cat."], ["a bell"], ["the old roof", "some rain"]][:count]
    return Batch(**{
        "inputs": inputs, "prompts": prompts, "targets": targets, "contexts": [""] * count,
        "ids": [str(n) for n in range(count)], **more,
    })  # fmt: skip


def row(media: Media, b: int) -> Media:
    return Media(media.values[b : b + 1, : int(media.lengths[b])], media.lengths[b : b + 1])


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


def two_ears(gpt2: CausalDecoder, ears: Whisper, audio: Make, signals: Make, prefix: Make | None) -> PrefixLM:
    torch.manual_seed(7)
    branches = {"audio": Branch(ears, audio), "signals": Branch(Signals(["a", "b"]), signals)}
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
def test_a_hidden_input_is_as_if_it_were_not_there(
    prompts: list[str], prefix: Make | None, audio: Make, signals: Make, gpt2: CausalDecoder, ears: Whisper
) -> None:
    """In one batch each row lacks something else; alone it has only the inputs that it has."""
    model = two_ears(gpt2, ears, audio, signals, prefix)
    inputs: dict[str, Media | Features] = {"audio": sounds(), "signals": numbers()}
    hidden = {name: torch.tensor(rows) for name, rows in ABSENT.items()}
    whole = batch(inputs, prompts, contexts=CONTEXTS, absent=hidden)
    losses, texts = model.text_loss(whole).by_input(4).nll, model.generate(whole, OPTIONS)
    for b in range(4):
        own = {name: row(media, b) for name, media in (("audio", sounds()), ("signals", numbers()))}
        alone = batch({name: media for name, media in own.items() if not ABSENT[name][b]}, prompts[b : b + 1])
        alone = replace(alone, contexts=CONTEXTS[b : b + 1], targets=whole.targets[b : b + 1])
        assert float(model.text_loss(alone).nll.sum()) == pytest.approx(float(losses[b]), abs=1e-3)
        assert model.generate(alone, OPTIONS)[0][0].text == texts[b][0].text
    shown = replace(whole, absent={})
    assert not torch.allclose(model.text_loss(shown).by_input(4).nll[1:], losses[1:], atol=1e-2)


def test_what_is_hidden_is_not_trained(gpt2: CausalDecoder, ears: Whisper) -> None:
    model = two_ears(gpt2, ears, SOFT["audio"], DEEP["signals"], TASK["deep task prefix"])
    everywhere = {"audio": torch.ones(4, dtype=torch.bool)}
    inputs: dict[str, Media | Features] = {"audio": sounds(), "signals": numbers()}
    model.text_loss(batch(inputs, [""] * 4, absent=everywhere)).mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if name.startswith("mappers.")}
    assert all(g is None or not bool(g.any()) for name, g in gradients.items() if name.startswith("mappers.audio"))
    assert all(g is not None and bool(g.any()) for name, g in gradients.items() if "signals" in name)


def test_prefixes_hide_their_rows() -> None:
    prefix = Prefix(torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]]))
    shape = (2, 2, 2, 3, 2)
    deep = DeepPrefix(torch.randn(shape), torch.randn(shape), prefix.mask)
    rows = torch.tensor([False, True])
    wanted = [[True, True, False], [False] * 3]
    assert prefix.mask_rows(rows).mask.tolist() == deep.mask_rows(rows).mask.tolist() == wanted
    both = MixedPrefix(deep, prefix).mask_rows(rows)
    assert both.deep.mask.tolist() == both.soft.mask.tolist() == wanted
    one = MixedPrefix(
        DeepPrefix(deep.keys[:, :1], deep.values[:, :1], deep.mask[:1]), Prefix(prefix.embeds[:1], prefix.mask[:1])
    )
    many = one.expand(3)
    assert many.deep.keys.shape == (2, 3, 2, 3, 2)
    assert torch.equal(many.deep.values[:, 2], deep.values[:, 0])
    assert many.soft.embeds.shape == (3, 3, 4)
    assert many.soft.mask.tolist() == many.deep.mask.tolist() == [wanted[0]] * 3


# ---------------------------------------------------------------------------------------------------- modality dropout


def rows(count: int, contexts: list[str] | None = None) -> Batch:
    inputs: dict[str, Media | Features] = {
        "audio": Media(torch.zeros(count, 4), torch.full((count,), 4)),
        "signals": Features(torch.zeros(count, 0, 0), torch.zeros(count, 0).bool(), torch.zeros(count, 2)),
    }
    names = [str(n) for n in range(count)]
    return Batch(inputs, [""] * count, [["a"]] * count, contexts or [""] * count, names)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_inputs_are_hidden_with_the_probability_asked_for_and_never_all(probability: float) -> None:
    count, three = 100000, 3
    torch.manual_seed(0)
    dropped = drop_modalities(rows(count, ["said"] * count), probability, text=True)
    gone = torch.stack(
        [dropped.absent["audio"], dropped.absent["signals"], torch.tensor([not c for c in dropped.contexts])]
    )
    assert not bool(gone.all(0).any())
    # a row that would lose all three keeps one of them, drawn evenly
    wanted = probability - probability**three / three
    error = (wanted * (1 - wanted) / count) ** 0.5
    for one in gone:
        assert float(one.float().mean()) == pytest.approx(wanted, abs=4 * error)
    pair = float((gone[0] & gone[1]).float().mean())
    assert pair == pytest.approx(probability**2 - probability**3 * 2 / 3, abs=0.01)


def test_only_what_is_there_can_be_kept() -> None:
    torch.manual_seed(0)
    contexts = ["said", ""] * 500
    dropped = drop_modalities(rows(1000, contexts), 0.9, text=True)
    gone = dropped.absent["audio"] & dropped.absent["signals"]
    assert not bool(gone[1::2].any())  # without a context, one of the inputs is left
    assert bool(gone[::2].any())
    assert all(dropped.contexts[place] for place in gone.nonzero()[:, 0].tolist())
    assert set(dropped.contexts[1::2]) == {""}
    kept = drop_modalities(rows(1000, contexts), 0.9, text=False)
    assert kept.contexts == contexts
    assert not bool((kept.absent["audio"] & kept.absent["signals"]).any())


def test_the_draw_is_torchs_and_moves_nothing_else() -> None:
    whole = rows(50, ["said"] * 50)
    torch.manual_seed(3)
    one = drop_modalities(whole, 0.5, text=True)
    torch.manual_seed(3)
    two = drop_modalities(whole, 0.5, text=True)
    assert all(torch.equal(one.absent[name], two.absent[name]) for name in ("audio", "signals"))
    assert one.contexts == two.contexts
    assert not torch.equal(one.absent["audio"], drop_modalities(whole, 0.5, text=True).absent["audio"])
    assert one.inputs is whole.inputs
    assert whole.contexts == ["said"] * 50
    assert not whole.absent
    nothing = drop_modalities(whole, 0.0, text=True)
    assert not any(bool(rows.any()) for rows in nothing.absent.values())
    assert nothing.contexts == whole.contexts


def test_rows_of_text_alone_and_of_nothing_are_left_as_they_are() -> None:
    text = Batch({}, ["", ""], [["a"], ["b"]], ["said", ""], ["0", "1"])
    torch.manual_seed(0)
    for _ in range(20):
        assert drop_modalities(text, 0.9, text=True).contexts == ["said", ""]
    assert drop_modalities(text, 0.9, text=False) is text


# ------------------------------------------------------------------------------------------- branches and task prefix


def test_a_task_prefix_stands_before_the_branches(gpt2: CausalDecoder, ears: Whisper) -> None:
    model = two_ears(gpt2, ears, SOFT["audio"], SOFT["signals"], TASK["soft task prefix"])
    prefix = model.build_prefix({"audio": sounds(2), "signals": numbers(2)})
    alone = {name: model.mappers[name](model.features({name: media})[name]) for name, media in
             (("audio", sounds(2)), ("signals", numbers(2)))}  # fmt: skip
    assert isinstance(prefix, Prefix)
    assert model.task_prefix is not None
    learned: Tensor = model.task_prefix.get_parameter("embeds")
    wanted = torch.cat([learned.expand(2, -1, -1), alone["audio"].embeds, alone["signals"].embeds], 1)
    assert torch.allclose(prefix.embeds, wanted, atol=1e-6)
    assert prefix.mask.sum(1).tolist() == [2 + 10 + 2, 2 + 18 + 2]
    mixed = two_ears(gpt2, ears, SOFT["audio"], SOFT["signals"], TASK["deep task prefix"]).build_prefix(
        {"signals": numbers(3)}
    )
    assert isinstance(mixed, MixedPrefix)
    assert mixed.deep.keys.shape == (2, 3, 4, 2, 8)
    assert mixed.soft.embeds.shape == (3, 2, 32)


def test_a_model_may_be_a_prefix_alone(gpt2: CausalDecoder) -> None:
    model = PrefixLM({}, gpt2, TASK["deep task prefix"])
    assert len(model.text_loss(batch({}, ["the", "a green", ""])).nll) == 4
    assert [len(one) for one in model.generate(batch({}, ["the", ""]), OPTIONS)] == [1, 1]
    assert set(model.trained) == {"task_prefix.table"}
    prefix = model.build_prefix({}, count=5)
    assert isinstance(prefix, DeepPrefix)
    assert prefix.mask.shape == (5, 2)
    with pytest.raises(InputError, match="no branch for input audio"):
        model.build_prefix({"audio": sounds()})


def test_whisper_looks_at_a_branch_without_a_mapper(ears: Whisper, asked: CrossDecoder, gpt2: CausalDecoder) -> None:
    model = PrefixLM({"audio": Branch(ears)}, asked)
    inputs = batch({"audio": sounds(3)}, [""] * 3)
    loss = model.text_loss(inputs).by_input(3).nll
    features = ears(sounds(3))
    nothing = Prefix(torch.zeros(3, 0, 32), torch.zeros(3, 0, dtype=torch.bool))
    wanted = asked.text_loss(asked.prefill(nothing, features), [""] * 3, inputs.targets).by_input(3).nll
    assert torch.allclose(loss, wanted, atol=1e-4)
    assert not model.trained
    twice = PrefixLM({"near": Branch(ears), "far": Branch(ears)}, asked)  # what is heard twice is looked at in a row
    both = batch({"near": sounds(3), "far": sounds(3)}, [""] * 3)
    frames = Features(torch.cat([features.frames] * 2, 1), torch.cat([features.mask] * 2, 1), features.pooled)
    wanted = asked.text_loss(asked.prefill(nothing, frames), [""] * 3, inputs.targets).by_input(3).nll
    assert torch.allclose(twice.text_loss(both).by_input(3).nll, wanted, atol=1e-4)
    with pytest.raises(
        InputError, match=r"model.branches.audio: has no mapper, and the decoder '.*' looks at no frames"
    ):
        PrefixLM({"audio": Branch(ears)}, gpt2)
    with pytest.raises(InputError, match=r"model.branches.signals: has no mapper"):
        PrefixLM({"audio": Branch(ears), "signals": Branch(Signals())}, asked)


def test_frames_of_another_width_become_a_prefix_beside_those_that_are_looked_at(
    ears: Whisper, asked: CrossDecoder, tmp_path: Path
) -> None:
    other = Cnn14(str(tiny_encoders.save_panns(tmp_path / "cnn.pth")), **tiny_encoders.PANNS)
    assert other.dim != asked.memory_dim
    mapper = Resampler(Sizes(other.dim, other.pooled_dim, asked.width), length=3, layers=1, hidden=16)
    model = PrefixLM({"audio": Branch(ears), "room": Branch(other, lambda sizes: mapper)}, asked)
    inputs = batch({"audio": sounds(3), "room": sounds(3)}, [""] * 3)
    wanted = asked.text_loss(asked.prefill(mapper(other(sounds(3))), ears(sounds(3))), [""] * 3, inputs.targets)
    assert torch.allclose(model.text_loss(inputs).nll, wanted.nll, atol=1e-4)


def test_what_does_not_fit_together_is_refused(asked: CrossDecoder, gpt2: CausalDecoder, ears: Whisper) -> None:
    with pytest.raises(InputError, match=r"model.branches: at least one branch is needed.* or model.prefix"):
        PrefixLM({}, gpt2)
    for name in ("decoder", "transcriber"):
        with pytest.raises(InputError, match=f"model.branches.{name}: is the name of another part"):
            PrefixLM({name: Branch(ears, SOFT["audio"])}, gpt2)
    with pytest.raises(InputError, match="MLP reads the encoder's summary, and this encoder has none"):
        PrefixLM({}, gpt2, MLP)
    model = PrefixLM({"audio": Branch(ears, SOFT["audio"])}, gpt2)
    with pytest.raises(InputError, match="no branch for input signals; this model reads audio"):
        model.build_prefix({"signals": numbers()})
    with pytest.raises(InputError, match=r"no branch for input \(none given\)"):
        model.build_prefix({})
    wide = Whisper(ears.identity.source)
    wide.dim = 48
    with pytest.raises(InputError, match=r"its frames are 48 wide, while the decoder .* frames that are 32 wide"):
        PrefixLM({"audio": Branch(wide)}, asked)
    with pytest.raises(InputError, match=r"looks at frames that are 32 wide, and no branch has any"):
        PrefixLM({"signals": Branch(Signals(["a", "b", "c"]), SOFT["signals"])}, asked)
    with pytest.raises(InputError, match=r"model.transcriber: nothing reads its text; give model.wording"):
        PrefixLM({"audio": Branch(ears)}, asked, transcriber=Transcriber(ears.identity.source))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"modality_dropout": 1.0}, "model.modality_dropout 1.0: give a probability"),
    ({"answers": ["yes", "yes"]}, "model.answers .*: give two words"),
])  # fmt: skip
def test_a_task_refuses_what_cannot_be(arguments: dict[str, Any], message: str, gpt2: CausalDecoder) -> None:
    with pytest.raises(InputError, match=message):
        task.PrefixTask({}, gpt2, prefix=TASK["deep task prefix"], **arguments)


def test_a_decoder_that_needs_frames_cannot_do_without_them(asked: CrossDecoder, ears: Whisper) -> None:
    with pytest.raises(InputError, match=r"model.modality_dropout: this decoder cannot do without the frames"):
        task.PrefixTask({"audio": Branch(ears)}, asked, modality_dropout=0.2)


# ------------------------------------------------------------------------------------------------------------- wording


def test_wording_puts_texts_where_they_belong() -> None:
    wording = PromptTemplate("said: {context}\n", "question: {question}\nanswer:")
    assert wording.render_prompt("turn {it} on", "be brief. ") == "said: turn {it} on\nbe brief. "
    assert wording.render_prompt("", "be brief. ") == "be brief. "
    assert wording.render_question("which {context}?") == "question: which {context}?\nanswer:"
    assert wording.render_question("") == ""
    assert PromptTemplate().render_prompt("never read", "p") == "p"
    assert PromptTemplate().render_question("which?") == "which?"


@pytest.mark.parametrize(("templates", "message"), [
    ({"context": "said:"}, r"wording.context 'said:': must hold \{context\} once"),
    ({"context": "{context}{context}"}, "wording.context"),
    ({"question": ""}, r"wording.question '': must hold \{question\} once"),
    ({"question": "{context}"}, "wording.question"),
])  # fmt: skip
def test_a_template_without_its_place_is_refused(templates: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptTemplate(**templates)


def test_the_decoder_reads_what_is_worded(gpt2: CausalDecoder) -> None:
    """A context before the prompt, a question before each target; without wording contexts are not read."""
    torch.manual_seed(0)
    model = PrefixLM(
        {}, gpt2, TASK["deep task prefix"], wording=PromptTemplate("said: {context}\n", "q: {question}\na:")
    )
    asking = batch({}, ["be brief. ", "the"], contexts=["a dog", ""], questions=[["who?", "where?"], [""]])
    loss = model.text_loss(asking)
    state = gpt2.prefill(model.build_prefix({}, count=1))
    plain = [
        gpt2.text_loss(state, [before], [[text]]).nll
        for before, text in (
            ("said: a dog\nbe brief. q: who?\na:", "a dog"),
            ("said: a dog\nbe brief. q: where?\na:", "rain falls"),
            ("the", "the cat."),
        )
    ]
    assert torch.allclose(loss.nll, torch.cat(plain), atol=1e-3)
    assert model.reads_text
    deaf = PrefixLM({}, gpt2, TASK["deep task prefix"])
    assert not deaf.reads_text
    assert deaf.prompts(asking) == ["be brief. ", "the"]


# ------------------------------------------------------------------------------------------------------------- choices


def test_a_trie_reads_what_texts_have_in_common_once() -> None:
    texts = [[5, 6, 0], [5, 7, 0], [5, 0], [8, 0]]
    tree = build_trie(texts, torch.device("cpu"))
    assert tree.tokens.tolist() == [5, 6, 7, 8]
    assert tree.depth.tolist() == [0, 1, 1, 0]
    wanted = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert tree.visible.long().tolist() == wanted
    spelled: list[list[int]] = [[] for _ in texts]
    for edge, text in zip(tree.edge_of_use.tolist(), tree.text_of_use.tolist(), strict=True):
        spelled[text].append(int(tree.token[edge]))
    assert spelled == texts
    assert len(tree.token) == len(set(zip(tree.node.tolist(), tree.token.tolist(), strict=True))) == 8


@pytest.mark.parametrize("stop", [None, "."])
def test_choices_are_weighed_as_they_would_be_scored(stop: str | None, spoken: SpeechSystem) -> None:
    decoder = CausalDecoder(spoken.path("decoder"), stop=stop)
    torch.manual_seed(1)
    model = PrefixLM({}, decoder, TASK["soft task prefix"])
    prompts, choices = ["the", "", "said: "], ["a dog", "a dog barks", "rain", "a", "the cat runs over"]
    state = model.prefill(batch({}, prompts))
    scores_of_choices = decoder.score_choices(decoder.append_prompts(state, prompts), prompts, choices)
    ended = [text + (stop or "") for text in choices]
    scores = torch.tensor(decoder.score(state, prompts, [ended] * 3))
    assert torch.allclose(scores_of_choices, scores.log_softmax(-1), atol=1e-3)


# -------------------------------------------------------------------------------------------------- the model, whole


def everything(spoken: SpeechSystem) -> dict[str, Any]:
    """Sound and numbers to GPT-2, a deep prefix, texts from a transcriber, one of the three hidden now and then."""
    audio = {
        "encoder": recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper")),
        "mapper": recipe_part("mappers.mlp.MLP", length=2, hidden=8),
    }
    scaled = recipe_part("mappers.minmax.MinMax", mapper=recipe_part("mappers.mlp.MLP", length=1, hidden=8, layers=3))
    signals = {"encoder": recipe_part("encoders.signals.Signals", names=["a", "b", "c"]), "mapper": scaled}
    made = spoken.config(
        branches={"audio": audio, "signals": signals},
        decoder=recipe_part("decoder.CausalDecoder", model=spoken.path("decoder")),
        prefix=recipe_part("mappers.deep.Deep", mapper=recipe_part("mappers.learned.Learned", length=3), hidden=8),
        wording={"context": "said: {context}\ndecision:"},
        transcriber=recipe_part(
            "transcriber.Transcriber", model=spoken.path("whisper"), num_beams=1, max_new_tokens=12
        ),
        modality_dropout=0.4,
        answers=["directed", "other"],
    )
    labels = [json.loads(line) for line in Path(spoken.path("train.jsonl")).read_text().splitlines()]
    for number, one in enumerate(labels):
        one["target"] = ["directed", "other"][number % 2]
    Path(spoken.path("labelled.jsonl")).write_text("".join(json.dumps(one) + "\n" for one in labels))
    made["data"]["init_args"] |= {"train": [spoken.path("labelled.jsonl")], "val": [spoken.path("labelled.jsonl")]}
    return made


@pytest.fixture(scope="module")
def fitted(spoken: SpeechSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fit")
    recipe = spoken.recipe(everything(spoken), root)
    assert run("fit", recipe, save_to=root / "model", trainer__max_epochs=2) == 0
    return root


def test_training_touches_mappers_and_task_prefix_only(fitted: Path) -> None:
    watch = training_record(fitted)
    moved = {name for name, tensor in watch.after.items() if not torch.equal(tensor, watch.before[name])}
    own = {name for name in watch.after if name.startswith(("model.mappers.", "model.task_prefix."))}
    ranges = {f"model.mappers.signals.{name}" for name in ("low", "high")}
    assert moved == own - ranges == set(watch.gradients)
    assert {name.split(".")[1] for name in watch.after} == {
        "decoder", "encoders", "mappers", "task_prefix", "transcriber"
    }  # fmt: skip
    assert checkpoint_tensors(fitted / "checkpoints" / "last.ckpt").keys() == own


def test_the_saved_model_is_the_trained_one(spoken: SpeechSystem, fitted: Path, tmp_path: Path) -> None:
    saved = yaml.safe_load((fitted / "model" / "mmprefix.yaml").read_text())
    assert saved["recipe"].keys() == {"branches", "decoder", "prefix", "wording", "transcriber"}
    assert saved["parts"].keys() == {"audio", "signals", "decoder", "transcriber"}
    assert saved["parts"]["transcriber"]["sha256"] == saved["parts"]["audio"]["sha256"]
    state = load_file(fitted / "model" / "model.safetensors")
    assert {name for name in state if name.startswith("task_prefix")} == {"task_prefix.table"}
    assert not any(name.startswith(("transcriber", "decoder", "encoders")) for name in state)
    loaded = load(fitted / "model", device="cpu")
    assert loaded.model.wording == PromptTemplate("said: {context}\ndecision:")
    assert loaded.settings.task == Detection(("directed", "other"))
    files = [{"audio": spoken.path(f"{n}.wav"), "signals": (float(n), 1.0, 7.0)} for n in range(3)]
    contexts = list(PHRASES)[:3]
    odds = loaded.detect(files, context=contexts)
    assert loaded.detect(files) == pytest.approx(odds, abs=1e-4)  # it hears for itself what was said
    assert loaded.detect(files, context=contexts[::-1]) != pytest.approx(odds, abs=1e-4)
    # the same by the model that was trained
    trained = PrefixLM.from_recipe(saved["recipe"])
    after = {name.removeprefix("model."): tensor for name, tensor in training_record(fitted).after.items()}
    deep = partial(Deep, mapper=partial(Learned, length=3), hidden=8)
    whole = PrefixLM(
        {name: Branch(trained.encoder(name), partial(_mapper, trained, name)) for name in trained.encoders},
        trained.decoder, deep, wording=trained.wording, transcriber=trained.transcriber,
    )  # fmt: skip
    whole.load_state_dict(after)
    again = Predictor(whole, loaded.settings)
    assert again.detect(files, context=contexts) == pytest.approx(odds, abs=1e-4)
    again.save(tmp_path / "again")
    folded = load_file(tmp_path / "again" / "model.safetensors")
    assert folded.keys() == state.keys()
    assert all(torch.allclose(folded[name], state[name], atol=1e-6) for name in state)
    loaded.save(tmp_path / "once more")
    assert same_tensors(load_file(tmp_path / "once more" / "model.safetensors"), state)


def _mapper(model: PrefixLM, name: str, sizes: Sizes) -> Mapper:
    mapper = model.mappers[name]
    assert isinstance(mapper, Mapper)
    return mapper


def test_the_transcriber_may_move_but_not_change(spoken: SpeechSystem, fitted: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(spoken.path("whisper"), tmp_path / "moved")
    files = {"audio": spoken.path("0.wav"), "signals": (0.0, 1.0, 7.0)}
    relocated = load(fitted / "model", device="cpu", parts={"transcriber": str(moved)})
    assert relocated.model.frozen_parts["transcriber"].identity.source == str(moved)
    assert relocated.detect([files]) == load(fitted / "model", device="cpu").detect([files])
    weights = load_file(moved / "model.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    save_file({**weights, name: weights[name] + 1}, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"was trained with the transcriber '.*whisper' \(sha256 .*; use the same"):
        load(fitted / "model", device="cpu", parts={"transcriber": str(moved)})
    model = shutil.copytree(fitted / "model", tmp_path / "model")
    file = model / "mmprefix.yaml"
    saved = yaml.safe_load(file.read_text())
    saved["recipe"]["transcriber"]["init_args"]["model"] = str(tmp_path / "gone")
    file.write_text(yaml.safe_dump(saved))
    with pytest.raises(InputError, match=r"the transcriber is not at .*gone; .*--part transcriber=PLACE"):
        load(model, device="cpu")
    del saved["recipe"]["transcriber"]
    file.write_text(yaml.safe_dump(saved))
    with pytest.raises(InputError, match="was trained with the transcriber, which this model does not have"):
        load(model, device="cpu")
    with pytest.raises(InputError, match="part 'transcriber': this model has audio, signals, decoder"):
        load(model, device="cpu", parts={"transcriber": str(moved)})


def test_the_shell_is_told_where_the_transcriber_is(
    spoken: SpeechSystem, fitted: Path, tmp_path: Path, capsys: Any
) -> None:
    moved = shutil.copytree(spoken.path("whisper"), tmp_path / "moved")
    words = ["caption", str(fitted / "model"), spoken.path("0.wav"), "--device", "cpu", "--part"]
    assert main([*words, f"transcriber={moved}"]) == 0
    capsys.readouterr()
    assert main([*words, f"transcriber={tmp_path}/nowhere"]) == 2
    assert "the transcriber is not at" in capsys.readouterr().err


def test_a_checkpoint_for_another_transcriber_or_wording(
    spoken: SpeechSystem, fitted: Path, tmp_path: Path, capfd: Any
) -> None:
    last = fitted / "checkpoints" / "last.ckpt"

    def message_of(change: Callable[[dict[str, Any]], Any]) -> str:
        made = everything(spoken)
        change(made["model"])
        return error_message("validate", spoken.recipe(made, tmp_path), capfd, ckpt_path=last)

    text = message_of(lambda model: model.pop("transcriber"))
    assert text == f"{last}: was trained with the transcriber, which this model does not have"
    text = message_of(lambda model: model["transcriber"]["init_args"].update(num_beams=2))
    assert text == f"{last}: the transcriber was trained with num_beams=1, but this one has num_beams=2"
    text = message_of(lambda model: model.pop("prefix"))
    assert f"{last}: holds a tensor 'task_prefix." in text


def test_a_dry_run_counts_every_part(spoken: SpeechSystem, tmp_path: Path, capfd: Any) -> None:
    assert run("fit", spoken.recipe(everything(spoken), tmp_path), dry_run=True) == 0
    output = capfd.readouterr()
    lines = {line[:24].strip(): line.split() for line in (output.out + output.err).splitlines()}
    assert lines["task prefix"][2:] == ["Deep", "1,512", "1,512"]  # 3 * 32, 33 * 8, 9 * 2 * 2 * 32
    assert lines["transcriber"][1] == "Transcriber"
    assert lines["transcriber"][-1] == lines["decoder"][-1] == "0"
    trained = [int(lines[name][-1].replace(",", "")) for name in ("audio mapper", "signals mapper", "task prefix")]
    assert int(lines["all"][-1].replace(",", "")) == sum(trained)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_recipes_of_models_without_mappers_are_built_again(ears: Whisper, asked: CrossDecoder, tmp_path: Path) -> None:
    model = PrefixLM({"audio": Branch(ears)}, asked, TASK["deep task prefix"])
    again = PrefixLM.from_recipe(yaml.safe_load(yaml.safe_dump(model.recipe())))
    assert again.recipe() == model.recipe()
    assert "mapper" not in model.recipe()["branches"]["audio"]
    assert not again.mappers
    Predictor(model, ModelSettings(OPTIONS)).save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    inputs = batch({"audio": sounds(3)}, [""] * 3)
    assert torch.equal(loaded.model.text_loss(inputs).nll, model.text_loss(inputs).nll)
    with pytest.raises(InputError, match=r"recipe: .*answer"):
        PrefixLM.from_recipe({**model.recipe(), "wording": {"answer": "x"}})
