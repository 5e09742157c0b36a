"""``mmprefix distil``: users' histories in a store and other texts become prefixes that models write with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import Cartridge, compose, distil
from mmprefix.encoders.user_id import UserId
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.user_prefixes import NAME, TENSOR, distil_users, export_users, users_key
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.users import UserStore
from tiny import models as tiny_models
from tiny.shell import Shell
from tiny.users import picture, save_personal

pytestmark = pytest.mark.numeric
HISTORIES = {
    "ann": ["a bell rings"],
    "bo": ["some rain falls on the old roof", "and the cat runs"],
    "cy": [" "],
    "di": ["a"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of saved models whose one user is ann: deep and soft, and of the decoder of both."""
    folder = tmp_path_factory.mktemp("models")
    parts = tiny_models.frozen_parts(folder / "parts")
    for kind in ("deep", "soft"):
        save_personal(folder / kind, parts, kind, "ann")
    picture().save(folder / "picture.png")
    return folder


@pytest.fixture
def shell(models: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Shell in a folder with a store of users and a file of texts."""
    monkeypatch.chdir(tmp_path)
    with UserStore("users.db", create=True) as store:
        store.add_many(HISTORIES)
    Path("texts.txt").write_text("a dog barks\n\nthe cat runs over a hill\n")
    Path("guide.txt").write_text("a green hill is a hill; the old roof is a roof\n")
    return Shell(capsys)


def scores(folder: Path, *users: str | None) -> list[float]:
    model = mmprefix.load(folder / "deep", device="cpu", users="users.db")
    return model.score([picture()] * len(users), ["a dog"] * len(users), user=list(users))


def test_users_join_by_their_history_and_are_strangers_once_it_changes(shell: Shell, models: Path) -> None:
    ann, stranger = scores(models, "ann", None)
    code, out, _ = shell("distil", models / "deep", "--users", "users.db", "--positions", "6")
    assert code == 0
    assert out.startswith(
        "2 users distilled, 2 to 6 positions, 1,024 bytes a user; "  # of float16; a line of "a" has two tokens
        "left out: 1 with a prefix already, 1 without history; "
    )
    before = scores(models, "ann", "bo", "cy", "di", None)
    assert before[0] == pytest.approx(ann, abs=1e-4)
    assert before[2] == pytest.approx(stranger, abs=1e-4)
    assert len({round(score, 3) for score in before}) == 4
    code, out, _ = shell("caption", models / "deep", models / "picture.png", "--users", "users.db", "--user", "bo")
    own = mmprefix.load(models / "deep", device="cpu", users="users.db")(models / "picture.png", user="bo")
    assert (code, out.rstrip("\n").rpartition(": ")[2].strip()) == (0, own.strip())
    with UserStore("users.db") as store:
        store.update("bo", ["and the cat runs"], append=True)
        store.remove("di")
    assert scores(models, "bo") == pytest.approx([stranger], abs=1e-4)
    code, out, _ = shell("distil", models / "deep", "--users", "users.db", "--user", "bo")
    assert out.startswith("1 users distilled, 16 positions")
    assert scores(models, "bo") != pytest.approx([stranger], abs=1e-3)


def test_prefixes_that_are_there_stay_unless_overwritten(shell: Shell, models: Path) -> None:
    model = mmprefix.load(models / "deep", device="cpu", users="users.db")
    assert model.users is not None
    ann = scores(models, "ann")
    export_users(model, model.users, ["ann"])
    for _ in range(2):
        code, out, _ = shell("distil", models / "deep", "--users", "users.db", "--user", "ann", "--user", "ann")
        assert (code, out.rpartition("; ")[0]) == (0, "0 users distilled; left out: 1 with a prefix already")
    assert scores(models, "ann") == pytest.approx(ann, abs=1e-4)
    code, out, _ = shell("distil", models / "deep", "--users", "users.db", "--user", "ann", "--overwrite")
    assert out.startswith("1 users distilled")
    assert scores(models, "ann") != pytest.approx(ann, abs=1e-3)


def test_a_user_who_leaves_meanwhile_is_left_out(shell: Shell, models: Path) -> None:
    model = mmprefix.load(models / "deep", device="cpu", users="users.db")
    assert model.users is not None
    results = distil_users(model, model.users, ["bo", "di"])
    assert isinstance(next(results), torch.Tensor)
    model.users.remove("di")
    assert next(results) == "changed meanwhile"
    tensors = model.users.tensors("bo", NAME, key=model.users_key or "")
    assert tensors is not None
    assert tensors[TENSOR].dtype == torch.float16


def test_training_moves_the_start_and_a_text_stands_behind_a_shared_sink(shell: Shell, models: Path) -> None:
    decoder = CausalDecoder(str(models / "parts" / "decoder"))
    model = PrefixLM({"user": Branch(UserId(), partial(DeepUserPrefix, length=3, start="a dog"))}, decoder)
    table = model.mapper("user")
    assert isinstance(table, DeepUserPrefix)
    table.begin(decoder)
    Predictor(model, ModelSettings(tiny_models.OPTIONS, "the")).save("sink")
    key, words = users_key(model) or "", ("distil", "sink", "--users", "users.db", "--user", "bo", "--positions", 4)
    kept: list[torch.Tensor] = []
    for more in ([], ["--overwrite", "--texts", "texts.txt", "--steps", 2]):
        code, out, err = shell(*map(str, [*words, *more]))
        assert (code, "1 users distilled, 4 positions" in out) == (0, True)
        with UserStore("users.db") as store:
            kept.append((store.tensors("bo", NAME, key=key) or {})[TENSOR])
    assert err.startswith("step 1: loss ")
    moved = (kept[1] - kept[0]).abs().float()
    assert 0.01 < moved.median() < 0.05  # two steps of Adam at 0.02, in all four positions
    assert bool((moved.amax(1) > 0).all())
    code, out, _ = shell("caption", "sink", "--users", "users.db", "--user", "bo", "--prompt", "the")
    assert (code, out) == (0, f"text: {mmprefix.load('sink', device='cpu', users='users.db')({}, user='bo')}\n")


def test_a_text_becomes_a_file_of_its_decoder(shell: Shell, models: Path) -> None:
    decoder = models / "parts" / "decoder"
    words = ("distil", decoder, "--context", "guide.txt", "--out", "guide.safetensors", "--positions", "6")
    code, out, _ = shell(*words)
    cartridge = Cartridge.load("guide.safetensors")
    assert (code, out.rpartition(", ")[0]) == (0, f"guide.safetensors: 6 positions, {cartridge.nbytes:,} bytes")
    expected = distil(CausalDecoder(str(decoder)), Path("guide.txt").read_text(), [], positions=6, steps=0).half()
    assert torch.allclose(cartridge.values, expected.values, atol=1e-2)
    assert "--overwrite writes over it" in shell.refuses(*words)
    assert shell("distil", models / "deep", *words[2:5], "of_model.safetensors", *words[6:])[0] == 0
    of_model = Cartridge.load("of_model.safetensors")
    assert of_model.decoder == cartridge.decoder
    assert torch.allclose(of_model.values, cartridge.values, atol=1e-2)
    assert shell(*words, "--overwrite", "--start", "random", "--texts", "texts.txt", "--steps", "1")[0] == 0
    assert Cartridge.load("guide.safetensors").frozen == 0
    trained = [*words, "--overwrite", "--texts", "texts.txt", "--steps", "1", "--teacher", "teacher.safetensors"]
    for log in ("", "teacher: not run, its values are those of teacher.safetensors"):
        code, _, err = shell(*trained)
        assert (code, log in err) == (0, True)
    assert "teacher: not run" in err


def test_files_of_one_decoder_are_joined_without_a_model(shell: Shell, models: Path) -> None:
    decoder, files = models / "parts" / "decoder", ["guide.safetensors", "texts.safetensors", "again.safetensors"]
    for file, positions in zip(files, (6, 4, 5), strict=True):
        context = "texts.txt" if file.startswith("texts") else "guide.txt"
        assert shell("distil", decoder, "--context", context, "--out", file, "--positions", str(positions))[0] == 0
    words = ["distil", "--compose", *files, "--out", "new/folder/all.safetensors"]
    code, out, _ = shell(*words)
    whole, own = Cartridge.load("new/folder/all.safetensors"), [Cartridge.load(file) for file in files]
    assert (code, out) == (0, f"new/folder/all.safetensors: 13 positions, {whole.nbytes:,} bytes, of 3 files\n")
    expected = compose(compose(own[0], own[1]), own[2])
    assert torch.equal(whole.keys, expected.keys)
    assert torch.equal(whole.values, expected.values)
    assert (whole.frozen, whole.decoder, whole.keys.dtype) == (1, own[0].decoder, torch.float16)
    assert shell.refuses(*words).endswith("the file is there; --overwrite writes over it")
    assert shell(*words[:4], "--out", "new/folder/all.safetensors", "--overwrite")[0] == 0
    assert Cartridge.load("new/folder/all.safetensors").positions == 9
    recipe = "model:\n  decoder: {class_path: CausalDecoder, init_args: {model: %s}}\n"
    recipe += "  prefix: {class_path: CartridgePrefix, init_args: {file: %s}}\n"
    for name, file in (("apart", "[guide.safetensors, texts.safetensors]"), ("joined", "new/folder/all.safetensors")):
        Path(f"{name}.yaml").write_text(recipe % (decoder, file))
    written = [shell("caption", f"{name}.yaml", "--prompt", "the")[:2] for name in ("apart", "joined")]
    assert written[0] == written[1]
    assert written[0][0] == 0


def test_what_cannot_be_joined_is_one_line(shell: Shell, models: Path) -> None:
    own = distil(CausalDecoder(str(models / "parts" / "decoder")), "a green hill is a hill", [], positions=3, steps=0)
    own.save("a.safetensors")
    replace(own, decoder="0" * 64).save("other.safetensors")
    Path("text.safetensors").write_text("a green hill")
    start, end = ["distil", "--compose", "a.safetensors"], ["--out", "out.safetensors"]
    for words, message in (
        ([*start, *end], "--compose a.safetensors: is one file alone; give two or more"),
        ([*start, "a.safetensors"], "--compose needs --out FILE.safetensors"),
        ([*start, "other.safetensors", *end], "other.safetensors: is of another decoder than a.safetensors"),
        ([*start, "none.safetensors", *end], "none.safetensors: cannot be read as a cartridge"),
        ([*start, "text.safetensors", *end], "text.safetensors: cannot be read as a cartridge"),
        ([*start, ".", *end], ".: cannot be read as a cartridge"),
        (["distil", models / "deep", *start[1:], "a.safetensors", *end], "leave out MODEL"),
        ([*start, "a.safetensors", "--positions", 4, "--steps", 2, *end], "leave out --positions, --steps"),
        ([*start, "a.safetensors", "--users", "users.db", *end], "leave out --users"),
        ([*start, "a.safetensors", "--out", "."], "--out .: is a folder; give a file"),
        (["distil", "--context", "guide.txt", *end], "distil: MODEL is missing; only --compose needs none"),
    ):
        assert message in shell.refuses(*words)
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deep"], "give --users STORE, or --context FILE with --out FILE"),
        (["deep", "--users", "users.db", "--context", "guide.txt"], "give --users STORE, or --context FILE"),
        (["deep", "--users", "users.db", "--out", "x"], "--out belongs to --context, which is missing"),
        (["deep", "--context", "guide.txt", "--user", "bo"], "--user belongs to --users, which is missing"),
        (["deep", "--users", "users.db", "--teacher", "x"], "--teacher belongs to --context, which is missing"),
        (["deep", "--context", "guide.txt", "--out", "x", "--teacher", "x"], "--teacher belongs to --texts"),
        (
            [
                "deep",
                "--context",
                "guide.txt",
                "--out",
                "x",
                "--texts",
                "texts.txt",
                "--steps",
                "1",
                "--teacher",
                "./x",
            ],
            "--teacher ./x: is --out too; give a file of its own",
        ),
        (["deep", "--context", "guide.txt"], "--context needs --out FILE.safetensors"),
        (["deep", "--context", "none.txt", "--out", "x"], "--context none.txt: cannot be read"),
        (["deep", "--users", "users.db", "--texts", "none.txt"], "--texts none.txt: cannot be read"),
        (["deep", "--users", "users.db", "--texts", "texts.txt"], "steps 0: give texts to train on and a number"),
        (["deep", "--users", "users.db", "--start", "random"], "start random: says nothing before it is trained"),
        (["deep", "--users", "users.db", "--user", "zoe"], "users.db: no user 'zoe'"),
        (["deep", "--users", "none.db"], "none.db: no such store"),
        (["soft", "--users", "users.db"], "has no DeepUserPrefix but a UserPrefix in a branch 'user'"),
        (["parts/decoder", "--users", "users.db"], "is no saved model"),
        (["parts/image", "--context", "guide.txt", "--out", "x"], "is no causal language model"),
        (["parts/decoder", "--context", "guide.txt", "--out", "x", "--positions", "99"], "the context has"),
    ],
)
def test_what_cannot_be_is_one_line(shell: Shell, models: Path, words: list[Any], message: str) -> None:
    assert message in shell.refuses("distil", models / words[0], *words[1:])
    assert not Path("x").exists()
