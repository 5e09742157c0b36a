"""Models whose prompt holds a user's earlier texts: from the call, the store, an input of its own, the shell."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.user_id import UserId
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import ModelSettings
from mmprefix.users.store import UnknownUserError, UserStore
from tiny.models import OPTIONS
from tiny.shell import Shell
from tiny.users import picture

pytestmark = pytest.mark.numeric
WORDING = PromptTemplate(context="{context}\ngoal: ", history="{history}\n", history_texts=2)
TEXTS = ["a dog barks", "the cat runs", "rain on the old roof"]


def save(parts: dict[str, Path], directory: Path, *branches: str) -> Path:
    """Saved model with some of the branches image and user."""
    torch.manual_seed(2)
    known = {
        "image": Branch(ViT(str(parts["image"])), partial(Resampler, length=3, heads=2)),
        "user": Branch(UserId(), partial(DeepUserPrefix, length=2, std=0.8, capacity=4)),
    }
    used = {name: branch for name, branch in known.items() if name in branches}
    model = PrefixLM(used, CausalDecoder(str(parts["decoder"])), partial(DeepTable, length=2), wording=WORDING)
    Predictor(model, ModelSettings(OPTIONS)).save(directory)
    return directory


@pytest.fixture(scope="module")
def saved(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(parts, tmp_path_factory.mktemp("texts") / "model")


@pytest.fixture
def store(tmp_path: Path) -> UserStore:
    store = UserStore(tmp_path / "users.db", create=True)
    store.add_many({"ann": TEXTS, "bo": []})
    return store


def score(model: Predictor, context: str, **options: object) -> float:
    return model.score({}, "a bell", context=context, **options)[0]  # type: ignore[arg-type]


def test_texts_of_a_call_stand_before_the_context(saved: Path) -> None:
    model = mmprefix.load(saved, device="cpu")
    assert model.model.wording == WORDING
    by_hand = score(model, "the cat runs\nrain on the old roof\na plan")
    plain = score(model, "a plan")
    assert score(model, "a plan", history=TEXTS) == pytest.approx(by_hand, abs=1e-5)
    assert abs(by_hand - plain) > 1e-3
    assert score(model, "a plan", history=[]) == pytest.approx(plain, abs=1e-6)
    rows = model.score([{}, {}, {}], ["a bell"] * 3, context=["a plan"] * 3, history=[TEXTS, [], TEXTS[:1]])
    alone = [score(model, "a plan", history=texts) for texts in (TEXTS, [], TEXTS[:1])]
    assert rows == pytest.approx(alone, abs=1e-4)
    inputs: list[Any] = [{"history": TEXTS}, {}]
    named = model.score(inputs, ["a bell"] * 2, context="a plan")
    assert named == pytest.approx([by_hand, plain], abs=1e-4)
    for wrong in ([[1]], [1], 1, [["a dog", None]]):
        with pytest.raises(InputError, match="history: "):
            score(model, "a plan", history=wrong)
    for half in ("\ud83d", ["a dog", "\ud83d"], [["\ud83d"]]):
        with pytest.raises(InputError, match=r"history: .*half a character"):
            score(model, "a plan", history=half)
    with pytest.raises(InputError, match="history: earlier texts of a user are a list of texts, not 1"):
        model.score({"history": 1}, "a bell", context="a plan")  # type: ignore[dict-item]
    many = [({}, texts) for texts in (TEXTS, [], ["a dog barks"])] * 3
    streamed = list(model.stream([x for x, _ in many], context="a plan", history=[t for _, t in many], batch_size=1))
    assert [row[0].text for row in streamed if not isinstance(row, InputError)] == [
        model({}, context="a plan", history=texts) for _, texts in many
    ]
    assert isinstance(model({}, history=["a dog"]), str)  # texts alone are something to write from


def test_texts_come_from_the_store_until_the_user_is_removed(saved: Path, store: UserStore) -> None:
    model = mmprefix.load(saved, device="cpu", users=store.path)
    expected = score(model, "a plan", history=TEXTS)
    assert score(model, "a plan", user="ann") == pytest.approx(expected, abs=1e-6)
    assert score(model, "a plan", user="bo") == pytest.approx(score(model, "a plan"), abs=1e-6)
    store.update("ann", ["the cat runs"])
    assert score(model, "a plan", user="ann") == pytest.approx(score(model, "a plan", history=["the cat runs"]))
    store.remove("ann")
    with pytest.raises(UnknownUserError, match="no user 'ann'"):
        score(model, "a plan", user="ann")
    model.users = None
    with pytest.raises(InputError, match="nothing is known of users; give history, or a store"):
        score(model, "a plan", user="ann")


def test_beside_a_prefix_of_the_user_and_a_picture(parts: dict[str, Path], tmp_path: Path, store: UserStore) -> None:
    model = mmprefix.load(save(parts, tmp_path / "both", "image", "user"), device="cpu", users=store.path)

    def of(**options: object) -> float:
        return model.score(picture(), "a bell", **options)[0]  # type: ignore[arg-type]

    by_hand = of(context="the cat runs\nrain on the old roof\n", user=None)
    assert of(user="ann") == pytest.approx(by_hand, abs=1e-4)  # she has texts and no prefix yet
    assert of(history=TEXTS) == pytest.approx(by_hand, abs=1e-4)
    assert of(user="bo") == pytest.approx(of(), abs=1e-4)
    assert abs(of() - by_hand) > 1e-3
    with pytest.raises(UnknownUserError):
        of(user="cy")


def test_the_shell_reads_them_from_options_store_and_rows(
    saved: Path, store: UserStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell, model = Shell(capsys), mmprefix.load(saved, device="cpu")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    rows = [
        {"id": "1", "context": "a plan", "user": "ann"},
        {"id": "2", "context": "a plan"},
        {"id": "3", "context": "a plan", "history": TEXTS[:1]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    expected = [model({}, context="a plan", history=texts) for texts in (TEXTS, [], TEXTS[:1])]
    options = ["--manifest", tmp_path / "rows.jsonl", "--users", store.path, "--out", tmp_path / "out.jsonl"]
    assert shell("caption", saved, *options)[0] == 0
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["caption"] for line in lines] == expected
    code, written, _ = shell("caption", saved, "--context", "a plan", "--history", tmp_path / "texts.txt")
    assert code == 0
    assert expected[0].strip() in written
