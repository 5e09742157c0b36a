"""One user who joins is trained alone: no other tensor and no other user changes by a bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import mmprefix
from mmprefix.encoders.user_id import id_bytes
from mmprefix.errors import InputError
from mmprefix.inference.user_prefixes import export_users, rows_of_users
from mmprefix.mappers.user_rows import NOBODY, UserRows
from mmprefix.model import PrefixLM
from mmprefix.training.optimization.row_adam import RowAdam
from mmprefix.training.optimization.train_only import default_optimizer, require_rows_alone, trained_alone
from mmprefix.users.store import UserStore
from tiny.captioning_system import CaptioningSystem, quietly, run, training_record
from tiny.models import frozen_parts
from tiny.speech_system import recipe_part
from tiny.users import save_personal

pytestmark = quietly
ROWS = {"class_path": "mmprefix.training.RowAdam", "init_args": {"lr": 0.05}}
ULPT = recipe_part("mappers.ulpt.UserULPT", length=2, rank=3, capacity=5)  # users share its scale and shift


def with_users(tiny: CaptioningSystem, folder: Path, *users: str) -> str:
    """Manifest of pictures, written by ``users`` in turn."""
    rows = [json.loads(line) for line in (tiny.folder / "train.jsonl").read_text().splitlines()]
    rows = [row | {"image": str(tiny.folder / row["image"])} for row in rows if "image" in row]
    lines = [json.dumps(row | {"user": users[number % len(users)]}) for number, row in enumerate(rows)]
    file = folder / f"{'-'.join(users)}.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


def recipe(tiny: CaptioningSystem, root: Path, *users: str, **model: Any) -> Path:
    root.mkdir(exist_ok=True)
    config = tiny.config(("image",), dropout=0.3)
    config["model"]["branches"]["user"] = {
        "encoder": recipe_part("encoders.user_id.UserId"),
        "mapper": ULPT,
    }
    config["model"] |= {"optimizer": ROWS} | model
    manifest = with_users(tiny, root, *users)
    config["data"]["init_args"] |= {"train": [manifest], "val": [manifest], "test": [manifest]}
    return tiny.recipe(config, root)


def table(directory: Path) -> UserRows:
    rows = rows_of_users(mmprefix.load(directory, device="cpu").model)
    assert rows is not None
    return rows


@pytest.fixture(scope="module")
def joined(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Saved model of two users, and the one of a training of a third that started from it."""
    root = tmp_path_factory.mktemp("joined")
    assert run("fit", recipe(tiny, root / "base", "ann", "bo"), save_to=root / "two") == 0
    alone = recipe(tiny, root / "alone", "dee", start_from=str(root / "two"), train_only=["user.rows"])
    assert run("fit", alone, save_to=root / "three") == 0
    return root / "two", root / "three"


def test_nothing_else_changes_by_a_bit(joined: tuple[Path, Path]) -> None:
    before, after = (mmprefix.load(directory, device="cpu") for directory in joined)
    for name, tensor in before.model.trained.items():
        if not name.startswith("mappers.user.keys") and not name.startswith("mappers.user.rows"):
            assert torch.equal(after.model.trained[name], tensor), name
    two, three = table(joined[0]), table(joined[1])
    assert two.users == 2
    assert three.users == 3
    assert torch.equal(three.rows[NOBODY], two.rows[NOBODY])
    for user in ("ann", "bo"):
        assert torch.equal(three.numbers_of(id_bytes(user)), two.numbers_of(id_bytes(user)))
    dee = three.numbers_of(id_bytes("dee"))
    assert not torch.allclose(dee.flatten(), two.rows[NOBODY], atol=1e-3)  # trained, from nobody's numbers
    assert before.users_key == after.users_key


def test_only_rows_have_a_gradient(joined: tuple[Path, Path]) -> None:
    assert training_record(joined[0].parent / "alone").gradients == ["model.mappers.user.rows"]


def test_the_users_model_serves_the_one_who_joined(joined: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = (mmprefix.load(directory, device="cpu") for directory in joined)
    with UserStore(tmp_path / "users.db", create=True) as store:
        export_users(after, store, ["dee"])
        before.users = store
        red = torch.zeros(32, 32, 3, dtype=torch.uint8)
        own, theirs = (model.score(red.numpy(), "the red hill", user="dee") for model in (before, after))
        assert own == pytest.approx(theirs, abs=1e-4)
        assert own != pytest.approx(before.score(red.numpy(), "the red hill", user="ann"), abs=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PrefixLM:
    parts = frozen_parts(tmp_path_factory.mktemp("parts"))
    return mmprefix.load(save_personal(parts["decoder"].parent / "saved", parts, "ulpt", "ann"), device="cpu").model


@pytest.mark.parametrize("name", ["users", "user.row", "mappers.user", ""])
def test_a_name_of_no_part_is_refused(model: PrefixLM, name: str) -> None:
    with pytest.raises(InputError, match=f"model.train_only {name}: no such part is trained; give any of image, user"):
        trained_alone(model, [name])


def test_optimizers_that_move_others_are_refused(model: PrefixLM) -> None:
    rows, image = (trained_alone(model, [name]).values() for name in ("user.rows", "image"))
    with pytest.raises(InputError, match="AdamW: moves users who are not in a batch"):
        require_rows_alone(model, torch.optim.AdamW(rows))
    require_rows_alone(model, RowAdam(rows))
    require_rows_alone(model, torch.optim.AdamW(image))
    assert default_optimizer(model) is RowAdam


def test_parts_that_are_not_trained_are_calm(model: PrefixLM) -> None:
    model.train()
    assert set(trained_alone(model, ["user.rows"])) == {"mappers.user.rows"}
    assert not model.mappers["image"].training
    assert model.mappers["user"].training
    assert cast(UserRows, model.mappers["user"]).nobody == 0  # nobody's row is no user's
    model.train()
    assert len(trained_alone(model, None)) == len(trained_alone(model, ["image", "user"]))
    assert model.mappers["image"].training
