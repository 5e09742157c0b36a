"""Room for captions: as many tokens as the decoder runs, not one more; found before a run and by check-data."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.data.manifest import InputRef
from mmprefix.decoders import CausalDecoder, CrossDecoder
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.mappers.calibrated import Calibrated
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.minmax import MinMax
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.prompt_queue import PromptQueue
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.training.inputs.text_room import DecoderRoom, text_room
from mmprefix.types import Batch
from tiny.captioning_system import CaptioningSystem, error_message, quietly, run, same_tensors
from tiny.decoders import make_chat_tokenizer, save_decoder
from tiny.shell import Shell
from tiny.speech_system import SpeechSystem

pytestmark = quietly
PLACES = {
    "mlp": lambda sizes: MLP(sizes, length=3),
    "frames": lambda sizes: Linear(sizes),
    "deep": lambda sizes: Deep(sizes, mapper=lambda inner: MLP(inner, length=4)),
    "calibrated": lambda sizes: Calibrated(sizes, mapper=Linear),
    "deep of calibrated": lambda sizes: Deep(sizes, mapper=lambda inner: Calibrated(inner, mapper=MLP)),
    "minmax": lambda sizes: MinMax(sizes, mapper=lambda inner: MLP(inner, length=5)),
}


def batch_of(model: PrefixLM, refs: dict[str, InputRef], texts: tuple[str, str], target: str) -> Batch:
    from mmprefix.data.collate import collate_inputs

    inputs = {
        name: collate_inputs([model.encoder(name).preprocess(ref.source, ref.start, ref.end)])
        for name, ref in refs.items()
    }
    context, prompt = texts
    return Batch(inputs=inputs, prompts=[prompt], targets=[[target]], contexts=[context], ids=["x"], sources=["x"])


def fits(model: PrefixLM, refs: dict[str, InputRef], texts: tuple[str, str], target: str) -> bool:
    """True where the decoder itself runs prefix, prompt and target."""
    try:
        with torch.no_grad():
            model.text_loss(batch_of(model, refs, texts, target))
    except InputError:
        return False
    return True


def room_of(model: PrefixLM) -> DecoderRoom:
    room = text_room(model)
    assert room is not None
    return room


def longest_text(room: DecoderRoom, refs: dict[str, InputRef], texts: tuple[str, str]) -> tuple[str, str]:
    """The longest text of one word again and again that has room, and that text with a word more."""
    left = room.left(refs, texts, exact=True)
    count = next(n for n in range(200, 0, -1) if room.length(texts, " ".join(["red"] * n)) <= left)
    return " ".join(["red"] * count), " ".join(["red"] * (count + 1))


@pytest.mark.parametrize("name", ["mlp", "frames", "deep"])
@pytest.mark.parametrize("texts", [("", ""), ("", "a hill:"), ("low bells", "say ")])
def test_the_room_is_the_decoders_own(name: str, texts: tuple[str, str], tiny: CaptioningSystem) -> None:
    branches = {
        "image": Branch(Clip(tiny.path("pictures")), PLACES[name]),
        "audio": Branch(Clip(tiny.path("pictures")), PLACES["mlp"]),
    }
    model = PrefixLM(branches, CausalDecoder(tiny.path("decoder")), wording=PromptTemplate(context="heard: {context}."))
    refs = {"image": InputRef(str(tiny.folder / "0.png")), "audio": InputRef(str(tiny.folder / "1.png"))}
    room = room_of(model)
    before = torch.random.get_rng_state()
    for some in ({"image": refs["image"]}, refs):
        fitting, longer = longest_text(room, some, texts)
        assert fits(model, some, texts, fitting)
        assert not fits(model, some, texts, longer)
        cut = room.shorten(texts, f"{longer} red red", room.left(some, texts, exact=True))
        assert cut == fitting
    assert torch.equal(before, torch.random.get_rng_state())
    room.measure(refs)
    assert room.left(refs, texts) <= room.left(refs, texts, exact=True)


def test_the_room_of_a_chat_counts_its_template(tiny: CaptioningSystem, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, words=make_chat_tokenizer())
    branches = {"image": Branch(Clip(tiny.path("pictures")), PLACES["mlp"])}
    model, refs = PrefixLM(branches, CausalDecoder(folder, chat=True)), {"image": InputRef(str(tiny.folder / "0.png"))}
    fitting, longer = longest_text(room_of(model), refs, ("", "say"))
    assert fits(model, refs, ("", "say"), fitting)
    assert not fits(model, refs, ("", "say"), longer)


def test_a_mapper_that_is_not_ready_has_its_length(tiny: CaptioningSystem) -> None:
    branches = {"image": Branch(Clip(tiny.path("pictures")), PLACES["minmax"])}
    room = room_of(PrefixLM(branches, CausalDecoder(tiny.path("decoder"))))
    ref = {"image": InputRef(str(tiny.folder / "0.png"))}
    assert room.left(ref, ("", "")) == room.limit - 5


@pytest.mark.parametrize("where", ["prefix", "branch", "deep", "parallel"])
def test_a_queue_of_prompts_has_room_for_all_its_tasks(where: str, tiny: CaptioningSystem) -> None:
    """A text that fits before the first task fits in the last one; a text of one word more does not."""
    queue = partial(PromptQueue, length=3, shared=2, capacity=2)
    around: dict[str, Any] = {
        "deep": partial(Deep, mapper=queue, hidden=4),
        "parallel": partial(Parallel, mappers=[queue, partial(MLP, length=1)]),
    }
    branch = Branch(Clip(tiny.path("pictures")), PLACES["mlp"] if where == "prefix" else around.get(where, queue))
    decoder, prefix = CausalDecoder(tiny.path("decoder")), queue if where == "prefix" else None
    model, refs = PrefixLM({"image": branch}, decoder, prefix), {"image": InputRef(str(tiny.folder / "0.png"))}
    first = longest_text(room_of(model), refs, ("", "say "))
    for _ in range(4):
        assert longest_text(room_of(model), refs, ("", "say ")) == first
        for part in model.modules():
            if isinstance(part, PromptQueue):
                part.next_task()
    assert fits(model, refs, ("", "say "), first[0])
    assert not fits(model, refs, ("", "say "), first[1])


def test_a_trial_leaves_a_model_in_training_as_it_was(tiny: CaptioningSystem) -> None:
    """Statistics of BatchNorm, dropout's generator and modes; a single frame has no statistics of its own."""
    branches = {"image": Branch(Clip(tiny.path("pictures")), lambda sizes: PrefixAAC(sizes, length=4, layers=1))}
    model = PrefixLM(branches, CausalDecoder(tiny.path("decoder"))).train()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.random.get_rng_state()
    room = room_of(model)
    room.measure({"image": InputRef(str(tiny.folder / "0.png"))})
    assert same_tensors(state, dict(model.state_dict()))
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_room_of_whisper(spoken: SpeechSystem) -> None:
    whisper = spoken.path("whisper")
    branches = {"audio": Branch(Whisper(whisper))}
    model = PrefixLM(branches, CrossDecoder(whisper), prefix=lambda sizes: DeepTable(sizes, length=4))
    room = room_of(model)
    sound = next(spoken.folder.rglob("*.wav"))
    fitting, longer = longest_text(room, {"audio": InputRef(str(sound))}, ("", "say"))
    assert fits(model, {"audio": InputRef(str(sound))}, ("", "say"), fitting)
    assert not fits(model, {"audio": InputRef(str(sound))}, ("", "say"), longer)


def long_recipe(tiny: CaptioningSystem, root: Path) -> tuple[Path, dict[str, Any]]:
    """Recipe whose train manifest has one row a caption, and one of 60 words in line 4."""
    root.mkdir(parents=True, exist_ok=True)
    words = " ".join(["hill"] * 60)
    rows = [("0.png", "the red hill"), ("1.png", "a hill 1 is green."), ("0.png", words), ("2.png", "the blue hill")]
    manifest = root / "long.csv"
    manifest.write_text("image,caption\n" + "".join(f"{name},{text}\n" for name, text in rows))
    config = tiny.config(["image"])
    config["data"]["init_args"] = {"train": str(manifest), "val": str(tiny.folder / "val.jsonl"), "batch_size": 2}
    config["trainer"]["max_epochs"] = 1
    return tiny.recipe(config, root), config


def test_a_run_names_it_before_the_first_step(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    recipe, _ = long_recipe(tiny, tmp_path)
    root = {"media-root": str(tiny.folder)}  # the manifest lies elsewhere
    assert run("fit", recipe, **root) == 2
    err = capfd.readouterr().err
    assert f"{tmp_path / 'long.csv'}:4: id '2': caption 2 has " in err
    assert "of the decoder's 48 positions are left for it after prefix and prompt" in err
    assert not list(tmp_path.rglob("metrics.csv"))
    for options in ({"data__on_bad": "skip"}, {"data__long_captions": "cut", "overwrite": "true"}):
        assert run("fit", recipe, **options, **root) == 0
    assert "1 captions cut (data.long_captions cut)" in capfd.readouterr().err
    assert "expected one of 'error', 'skip', 'cut', got no" in error_message(
        "fit", recipe, capfd, data__long_captions="no"
    )


def test_check_data_finds_it(tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(capsys)
    recipe, config = long_recipe(tiny, tmp_path)
    manifest = config["data"]["init_args"]["train"]
    root = ("--media-root", tiny.folder)
    assert shell("check-data", manifest, *root)[0] == 0
    for words in ((manifest, "--config", recipe), ("--config", recipe)):
        code, out, err = shell("check-data", *words, *root)
        assert code == 2
        assert f"{manifest}:4: id '2': caption 2 has " in out
        assert "mmprefix: 1 bad row: " in err
    code, out, _ = shell("check-data", "--config", recipe, "--json", *root)
    assert [len(report["faults"]) for report in json.loads(out)["manifests"]] == [1, 0]
    assert "no manifest is named" in shell.refuses("check-data")
