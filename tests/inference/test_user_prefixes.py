"""Users between model and store: out of the model, read from the store call by call, back again, gone from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix.encoders.user_id import id_bytes
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.user_prefixes import (
    NAME,
    TENSOR,
    export_users,
    import_users,
    remove_users,
    rows_of_users,
    users_key,
)
from mmprefix.mappers.user_rows import UserRows
from mmprefix.users.prefixes import joined_prefix
from mmprefix.users.store import UnknownUserError, UserStore
from mmprefix.weights.trained_file import digest
from tiny.users import KINDS, picture, save_personal

pytestmark = pytest.mark.numeric
USERS = ("ann", "bo", "çé 🐕")


@pytest.fixture(scope="module", params=KINDS)
def directory(request: pytest.FixtureRequest, parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_personal(tmp_path_factory.mktemp("model") / "saved", parts, request.param, *USERS)


@pytest.fixture
def store(tmp_path: Path) -> UserStore:
    return UserStore(tmp_path / "users.db", create=True)


def load(directory: Path, store: UserStore | None = None) -> Predictor:
    model = mmprefix.load(directory, device="cpu")
    model.users = store
    return model


def table(model: Predictor) -> UserRows:
    rows = rows_of_users(model.model)
    assert rows is not None
    return rows


def scores(model: Predictor, *users: str | None, **options: Any) -> list[float]:
    return model.score([picture()] * len(users), ["a dog runs"] * len(users), user=list(users), **options)


def test_a_model_without_users_reads_them_from_the_store(directory: Path, store: UserStore, tmp_path: Path) -> None:
    model = load(directory)
    expected = scores(model, *USERS, "stranger", None)
    assert len({round(value, 4) for value in expected}) == 4
    assert expected[3] == pytest.approx(expected[4])  # nobody
    export_users(model, store, USERS)
    remove_users(model, USERS)
    assert scores(model, *USERS) == pytest.approx([expected[3]] * 3, abs=1e-4)  # all are strangers now
    model.save(tmp_path / "empty")
    small = (tmp_path / "empty" / "model.safetensors").read_bytes()
    assert len(small) < len((directory / "model.safetensors").read_bytes())
    empty = load(tmp_path / "empty", store)
    assert table(empty).users == 0
    assert scores(empty, *USERS, None) == pytest.approx([*expected[:3], expected[4]], abs=1e-4)
    assert scores(empty, "bo", None, "ann", "bo") == pytest.approx([expected[i] for i in (1, 4, 0, 1)], abs=1e-4)
    by_dictionary = empty.score([{"image": picture(), "user": "bo"}], ["a dog runs"])
    assert by_dictionary == pytest.approx(expected[1:2], abs=1e-4)
    streamed = empty.stream([picture()] * 3, user=list(USERS))
    assert [row[0].text for row in streamed if not isinstance(row, InputError)] == empty([picture()] * 3, user=USERS)


def test_users_return_into_a_model_that_grows(directory: Path, store: UserStore, tmp_path: Path) -> None:
    model = load(directory)
    expected = scores(model, *USERS)
    export_users(model, store, USERS)
    remove_users(model, USERS)
    model.save(tmp_path / "empty")
    again = load(tmp_path / "empty")
    import_users(again, store, USERS)
    assert scores(again, *USERS) == pytest.approx(expected, abs=1e-4)
    again.save(tmp_path / "full")
    assert scores(load(tmp_path / "full"), *USERS) == pytest.approx(expected, abs=1e-4)


def test_exported_numbers_are_the_rows_bit_for_bit_and_small(directory: Path, store: UserStore) -> None:
    model = load(directory)
    export_users(model, store, ["ann"])
    tensors = store.tensors("ann", NAME, key=model.users_key or "")
    assert tensors is not None
    assert torch.equal(tensors[TENSOR], table(model).numbers_of(id_bytes("ann")))
    assert tensors[TENSOR].shape[0] == table(model).length


def test_the_store_goes_before_the_row(directory: Path, store: UserStore) -> None:
    model = load(directory, store)
    row = scores(load(directory), "ann")
    export_users(model, store, ["ann"])
    key = model.users_key or ""
    store.put("ann", NAME, {TENSOR: table(model).numbers_of(id_bytes("bo"))}, key=key)
    assert scores(model, "ann") == pytest.approx(scores(load(directory), "bo"), abs=1e-4)
    store.drop("ann", NAME)
    assert scores(model, "ann") == pytest.approx(row, abs=1e-4)


def test_a_longer_prefix_stands_beside_others_in_a_batch(directory: Path, store: UserStore) -> None:
    model = load(directory, store)
    ann, bo = (table(model).numbers_of(id_bytes(user)) for user in ("ann", "bo"))
    for user, numbers in {"both": joined_prefix([ann, bo]), "short": ann[:1]}.items():
        store.add(user)
        store.put(user, NAME, {TENSOR: numbers}, key=model.users_key or "")
    users = ("both", "ann", "short", "bo", "çé 🐕")
    apart = [scores(model, user)[0] for user in users]
    assert scores(model, *users) == pytest.approx(apart, abs=1e-4)
    assert len({round(value, 4) for value in apart}) == 5
    with pytest.raises(InputError, match="user 'both': a prefix of 4 positions; rows of the model have 2"):
        import_users(model, store, ["both"])


def test_numbers_of_another_form_are_refused_by_name(directory: Path, store: UserStore) -> None:
    model = load(directory, store)
    own = table(model).numbers_of(id_bytes("ann"))
    store.add("cy")
    for tensors in ({TENSOR: own[:, 1:]}, {TENSOR: own[0]}, {"keys": own}):
        store.put("cy", NAME, tensors, key=model.users_key or "")
        with pytest.raises(InputError, match=rf"user 'cy': .* as a prefix; this model's is numbers P x {own.shape[1]}"):
            scores(model, "ann", "cy")
    store.put("cy", NAME, {TENSOR: own}, key=model.users_key or "")
    assert scores(model, "cy") == pytest.approx(scores(load(directory), "ann"), abs=1e-4)


def test_who_is_nowhere_is_refused_where_a_store_knows_users(directory: Path, store: UserStore) -> None:
    model = load(directory, store)
    with pytest.raises(UnknownUserError, match=r"user 'dee': is neither in .*users\.db nor in the model"):
        scores(model, "ann", "dee")
    store.add("dee", ["a text, but nothing trained yet"])
    assert scores(model, "dee") == pytest.approx(scores(load(directory), "stranger"), abs=1e-4)
    for refused in (
        lambda: export_users(model, store, ["ann", "eve"]),
        lambda: import_users(model, store, ["dee"]),
        lambda: import_users(model, store, ["eve"]),
        lambda: remove_users(model, ["ann", "eve"], store),
    ):
        with pytest.raises(InputError, match=r"'(dee|eve)'"):
            refused()
    assert "ann" not in store  # all or none
    assert table(model).has(id_bytes("ann"))


def test_removed_from_model_and_store(directory: Path, store: UserStore) -> None:
    model = load(directory, store)
    before = scores(model, "ann", "çé 🐕")
    export_users(model, store, USERS)
    remove_users(model, ["bo"], store)
    with pytest.raises(UnknownUserError):
        scores(model, "bo")
    assert scores(model, "ann", "çé 🐕") == pytest.approx(before, abs=1e-4)


def test_the_key_is_of_what_all_users_share(directory: Path, parts: dict[str, Path]) -> None:
    model = load(directory)
    key = model.users_key
    remove_users(model, ["bo"])
    table(model).resize(30)
    assert users_key(model.model) == key
    with torch.no_grad():
        next(p for p in model.model.mappers["image"].parameters()).add_(1e-3)
    assert users_key(model.model) != key


def test_a_model_without_a_table_is_refused(saved: dict[str, Path], store: UserStore) -> None:
    plain = load(saved["image"])
    assert plain.users_key is None
    with pytest.raises(InputError, match="has no rows of users"):
        export_users(plain, store, ["ann"])


def test_reading_users_of_the_store_changes_nothing(directory: Path, store: UserStore) -> None:
    model = load(directory, store)
    export_users(model, store, USERS)
    before = digest(model.model.trained)
    scores(model, *USERS)
    assert digest(model.model.trained) == before
