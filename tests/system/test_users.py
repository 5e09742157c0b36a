"""A captioner that reads users' histories, end to end: fit, saved, loaded, written for one user or many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix.cli.main import main
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.users import encode_histories
from mmprefix.users.store import UserStore
from tiny.captioning_system import CaptioningSystem, build, metric_values, quietly, run
from tiny.speech_system import recipe_part
from tiny.texts import save_sentence_encoder
from tiny.user_traces import bytes_on_disk

pytestmark = quietly
HISTORIES = {"ann": ["a dog runs", "the dog"], "bo": ["the cat the cat"], "cy": []}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CaptioningSystem:
    """Small system whose pictures are captioned by users."""
    system = build(tmp_path_factory.mktemp("users"), steps=10)
    save_sentence_encoder(system.folder / "sentences")
    for split in ("train", "val", "test"):
        file = system.folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {"user": [*HISTORIES, None][int(row["id"][1:]) % 4]} for row in rows if "image" in row]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.dumps({"user": user, "history": texts}) for user, texts in HISTORIES.items()]
    (system.folder / "users.jsonl").write_text("\n".join(lines))
    with UserStore(system.folder / "users.db", create=True) as store:
        store.add_many(HISTORIES)
    return system


@pytest.fixture(scope="module")
def trained(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved model of two steps: its first branch is fused with the history."""
    root = tmp_path_factory.mktemp("run")
    config = tiny.config(("image",))
    branch = config["model"]["branches"]["image"]
    branch["mapper"] = recipe_part("mappers.fusion.Fusion", mapper=branch["mapper"], heads=4, hidden=16, layers=1)
    branch["context"] = "history"
    config["model"]["branches"]["history"] = {
        "encoder": recipe_part("encoders.text.Text", model=tiny.path("sentences"))
    }
    config["data"]["init_args"]["histories"] = tiny.path("users.jsonl")
    recipe = tiny.recipe(config, root)
    assert run("fit", recipe, cache=root / "cache", save_to=root / "saved", trainer__max_epochs=2) == 0
    assert metric_values(root, "train/loss")
    return root / "saved"


@pytest.fixture(scope="module")
def model(tiny: CaptioningSystem, trained: Path) -> Predictor:
    return mmprefix.load(trained, users=tiny.path("users.db"))


def score(model: Predictor, tiny: CaptioningSystem, **options: Any) -> float:
    return model.score(picture(tiny), "a dog", **options)[0]


def picture(tiny: CaptioningSystem, number: int = 0) -> str:
    rows = [json.loads(line) for line in (tiny.folder / "test.jsonl").read_text().splitlines()]
    return str(tiny.folder / rows[number]["image"])


def test_a_users_history_is_that_of_the_store(model: Predictor, tiny: CaptioningSystem) -> None:
    ann = score(model, tiny, history=HISTORIES["ann"])
    assert score(model, tiny, user="ann") == pytest.approx(ann)
    assert score(model, tiny, user="bo") != pytest.approx(ann)
    nobody = score(model, tiny)
    assert nobody != pytest.approx(ann)
    assert score(model, tiny, user="cy") == pytest.approx(nobody)  # a user without texts
    assert score(model, tiny, history=[]) == pytest.approx(nobody)


def test_a_batch_may_have_another_user_in_each_row(model: Predictor, tiny: CaptioningSystem) -> None:
    users = ["bo", None, "ann", "cy", "ann"]
    together = model.score([picture(tiny)] * 5, ["a dog"] * 5, user=users)
    apart = [score(model, tiny, user=user) for user in users]
    assert together == pytest.approx(apart, abs=1e-4)
    histories = [HISTORIES["bo"], [], HISTORIES["ann"]]
    assert model.score([picture(tiny)] * 3, ["a dog"] * 3, history=histories) == pytest.approx(apart[:3], abs=1e-4)


def test_texts_that_were_encoded_once_are_read_and_go_when_they_change(
    trained: Path, tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = UserStore(tmp_path / "users.db", create=True)
    store.add_many(HISTORIES)
    model = mmprefix.load(trained, users=store.path)
    users = ["bo", None, "ann", "cy", "ann"]
    expected = model.score([picture(tiny)] * 5, ["a dog"] * 5, user=users)
    assert main(["users", "encode", str(store.path), str(trained), "--user", "ann", "--user", "cy"]) == 0
    assert capfd.readouterr().out.startswith("1 users encoded, ")
    key = model.context_key or ""
    assert store.tensors("ann", "context", key=key)
    mixed = model.score([picture(tiny)] * 5, ["a dog"] * 5, user=users)  # ann is encoded and bo is not
    assert mixed == pytest.approx(expected, abs=1e-4)
    made = list(encode_histories(model, store, ["ann", "bo", "cy"]))
    assert made == ["encoded already", store_bytes(store, "bo", key), "without history"]
    encoder: Any = model.model.encoder("history")

    def refuse(media: object) -> None:
        raise AssertionError("the texts are encoded anew")

    encoder.encode = refuse
    assert model.score([picture(tiny)] * 5, ["a dog"] * 5, user=users) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(AssertionError):
        score(model, tiny, user="ann", history=["the cat"])  # texts of the call go before the store's
    del encoder.encode
    store.update("ann", ["the cat"], append=True)
    assert store.tensors("ann", "context", key=key) is None
    assert score(model, tiny, user="ann") == pytest.approx(score(model, tiny, history=[*HISTORIES["ann"], "the cat"]))
    store.put("ann", "context", {"frames": torch.zeros(1, 1)}, key="another model's")
    assert score(model, tiny, user="ann") == pytest.approx(score(model, tiny, history=store.history("ann")))
    words = store.tensors("bo", "context", key=key)
    assert words is not None
    store.remove("bo")
    assert words["frames"].numpy().tobytes()[:64] not in bytes_on_disk(store.path)
    with pytest.raises(InputError, match="no user 'bo'"):
        list(encode_histories(model, store, ["bo"]))
    store.add("bo", HISTORIES["bo"])
    made = encode_histories(model, store, ["bo"])
    store.remove("bo")
    assert list(made) == ["changed meanwhile"]


def store_bytes(store: UserStore, user: str, key: str) -> int:
    tensors = store.tensors(user, "context", key=key) or {}
    return sum(tensor.nbytes for tensor in tensors.values())


def test_unknown_users_and_wrong_numbers_are_refused(model: Predictor, trained: Path, tiny: CaptioningSystem) -> None:
    with pytest.raises(InputError, match="'dee'"):
        model(picture(tiny), user="dee")
    with pytest.raises(InputError, match="2 users for 1 inputs"):
        model(picture(tiny), user=["ann", "bo"])
    names = (name for name in ["ann"])  # would be empty when it is read again
    for user, unfit in (
        (7, "7"),
        ([7], "7"),
        ([b"ann"], "b'ann'"),
        ([["ann"]], "\\['ann'\\]"),
        (names, "<generator .*"),
    ):
        with pytest.raises(InputError, match=f"user: {unfit} is no text"):
            model(picture(tiny), user=user)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="user 'ann': nothing is known of users"):
        mmprefix.load(trained)(picture(tiny), user="ann")


def test_a_model_without_users_refuses_them(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config(("image",))
    assert run("fit", tiny.recipe(config, tmp_path), save_to=tmp_path / "saved", trainer__max_steps=1) == 0
    plain = mmprefix.load(tmp_path / "saved")
    with UserStore(tiny.path("users.db")) as store, pytest.raises(InputError, match="has no branch 'history'"):
        encode_histories(plain, store, ["ann"])
    for option, value in (("user", "ann"), ("history", ["a dog"])):
        with pytest.raises(InputError, match=f"{option}: this model was trained without users"):
            plain(picture(tiny), **{option: value})  # type: ignore[arg-type]
    config["data"]["init_args"]["histories"] = tiny.path("users.jsonl")
    assert run("fit", tiny.recipe(config, tmp_path / "again")) == 2


def captions(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["candidates"][0]["score"] for line in capfd.readouterr().out.splitlines()]


def test_the_command_line_writes_for_users(
    trained: Path, tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, store = picture(tiny), tiny.path("users.db")
    (tmp_path / "history.txt").write_text("a dog runs\n\nthe dog\n")
    assert main(["caption", str(trained), file, "--json", "--history", str(tmp_path / "history.txt")]) == 0
    by_file = captions(capfd)
    assert main(["caption", str(trained), file, "--json", "--user", "ann", "--users", store]) == 0
    assert captions(capfd) == pytest.approx(by_file)
    manifest = str(tiny.folder / "test.jsonl")
    out = tmp_path / "out.jsonl"
    assert main(["caption", str(trained), "--manifest", manifest, "--users", store, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    model = mmprefix.load(trained, users=store)
    for row, line in zip(rows, out.read_text().splitlines(), strict=True):
        own = model.candidates(str(tiny.folder / row["image"]), num_return=1, user=row["user"])
        assert json.loads(line)["candidates"][0]["score"] == pytest.approx(own[0].score, abs=1e-4)
    assert main(["caption", str(trained), file, "--history", str(tmp_path / "none.txt")]) == 2


def test_a_long_history_that_was_encoded_by_its_beginning_is_not_read(
    trained: Path, tiny: CaptioningSystem, tmp_path: Path
) -> None:
    long = ["the cat sleeps", "a dog runs", "the dog", "a cat"]  # the encoder reads eight tokens
    store = UserStore(tmp_path / "users.db", create=True)
    store.add_many({"ann": long, "bo": long[-2:]})
    model = mmprefix.load(trained, users=store.path)
    expected = score(model, tiny, history=long[-2:])
    assert score(model, tiny, user="ann") == pytest.approx(expected)
    wrong = {"frames": torch.ones(8, 16), "pooled": torch.ones(16)}  # as an earlier version kept it
    store.put("ann", "context", wrong, key=model.context_key or "", computed_from=long)
    assert score(model, tiny, user="ann") == pytest.approx(expected)
    assert [isinstance(made, int) for made in encode_histories(model, store, ["ann", "bo"])] == [True, True]
    assert list(encode_histories(model, store, ["ann", "bo"])) == ["encoded already"] * 2
    assert score(model, tiny, user="ann") == pytest.approx(expected)
    assert store.tensors("bo", "context", key=model.context_key or "")  # a short one stands where it always stood
