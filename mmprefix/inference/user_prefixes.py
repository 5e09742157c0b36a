"""Users' learned prefixes between a model and a store: a model file needs no users in it, and a new one changes none.

    model = mmprefix.load("runs/alfred/model", users="users.db")
    export_users(model, model.users, ["u07"])   # the numbers of u07, kept in the store
    remove_users(model, ["u07"])                # ... and no longer in the model
    model("photo.jpg", user="u07")              # read from the store, call by call
    list(distil_users(model, model.users, ["u08"]))   # a user who joins: a prefix made of the history in the store

Numbers mean nothing to another model: in the store they stand under ``users_key``, which is the same for all copies of
a model, whatever users are in it, and for those that trained further users alone (``model.train_only: [user.rows]``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from mmprefix.data.histories import NOBODY, USER_BRANCH
from mmprefix.distillation.user_numbers import HistoryOptions, user_numbers
from mmprefix.encoders.user_id import id_bytes
from mmprefix.errors import InputError
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.mappers.user_rows import UserRows
from mmprefix.model import PrefixLM
from mmprefix.parts import to_recipe
from mmprefix.types import FeatureRow
from mmprefix.users.store import UnknownUserError
from mmprefix.weights.trained_file import digest

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor
    from mmprefix.users.store import UserStore

NAME, TENSOR = "prefix", "numbers"
"""Name of a user's tensors in a store, and of the one tensor (P n) among them."""

LeftOut = Literal["without history", "with a prefix already", "encoded already", "changed meanwhile"]
"""Why a user got no distilled prefix, or no encoded history."""


def rows_of_users(model: PrefixLM) -> UserRows | None:
    """The one table of users that the branch ``user`` reads; None for a model that keeps nothing of its users."""
    mapper = model.mapper(USER_BRANCH)
    tables = [] if mapper is None else [part for part in mapper.modules() if isinstance(part, UserRows)]
    return tables[0] if len(tables) == 1 else None


def users_key(model: PrefixLM) -> str | None:
    """Digest of all that a user's numbers belong to: frozen parts, trained tensors, options of the mappers.

    The users themselves are left out. None for a model without a table of users.
    """
    if rows_of_users(model) is None:
        return None
    model = model.merged()
    own = ("keys", "rows")
    shared = {name: tensor for name, tensor in model.trained.items() if not _is_of(name, own)}
    belongs = {
        "parts": {name: part.identity.sha256 for name, part in model.frozen_parts.items()},
        "mappers": {name: _without_sizes(to_recipe(mapper)) for name, mapper in model.mappers.items()},
        "trained": digest(shared),
    }
    return hashlib.sha256(json.dumps(belongs, sort_keys=True).encode()).hexdigest()


def export_users(predictor: Predictor, store: UserStore, users: Iterable[str]) -> None:
    """Keep the numbers of ``users``, who have rows in the model, in ``store``; users who are new to it are added.

    All of them or none. Raises InputError for a user without a row.
    """
    table, key = _table(predictor), _key(predictor)
    with store.transaction():
        for user in users:
            if not table.has(_hashed(user, table)):
                raise InputError(f"user {user!r}: has no row in {_name(predictor)}; train the user, or leave it out")
            if user not in store:
                store.add(user)
            store.put(user, NAME, {TENSOR: table.numbers_of(_hashed(user, table))}, key=key)


def import_users(predictor: Predictor, store: UserStore, users: Iterable[str]) -> None:
    """Give ``users`` rows in the model with their numbers of ``store``, so that it knows them without one.

    Not while other threads call the model. Raises InputError for a user who has none under this model's key, and for a
    prefix of another length than the model's rows have.
    """
    table = _table(predictor)
    numbers = {user: _require_numbers(predictor, store, user) for user in users}
    for user, values in numbers.items():
        if values.numel() != table.rows.shape[1]:
            raise InputError(
                f"user {user!r}: a prefix of {len(values)} positions; rows of the model have {table.length}"
            )
    new = sum(not table.has(_hashed(user, table)) for user in numbers)
    if table.users + new > len(table.keys) - 1:
        table.resize(table.users + new)
    for user, values in numbers.items():
        table.add(_hashed(user, table), values.flatten().to(table.rows.device))


def remove_users(predictor: Predictor, users: Sequence[str], store: UserStore | None = None) -> None:
    """Take ``users`` out of the model, and with ``store`` out of that too, where nothing of them is left.

    Not while other threads call the model; removing from a store alone is for any time. Raises InputError for a user
    who is in neither.
    """
    table = _table(predictor)
    present = [user for user in users if table.has(_hashed(user, table))]
    stored = [] if store is None else [user for user in users if user in store]
    for user in users:
        if user not in present and user not in stored:
            raise InputError(f"user {user!r}: has no row in {_name(predictor)}" + (" and is in no store" * bool(store)))
    for user in present:
        table.remove(_hashed(user, table))
    if store is not None:
        store.remove(*stored)


def distil_users(
    predictor: Predictor,
    store: UserStore,
    users: Iterable[str],
    options: HistoryOptions | None = None,
    *,
    overwrite: bool = False,
) -> Iterator[Tensor | LeftOut]:
    """Make each user's history in ``store`` a prefix, which is kept there until the texts change.

    The prompt of ``options`` is the model's own. Users with a prefix, in the store or as a row of the model, keep it,
    unless ``overwrite``.

    Yields the numbers (P n) that are kept, float16 where that holds them, or why there are none, user by user. Raises
    InputError for a model without a ``DeepUserPrefix``, and for histories that its decoder cannot read.
    """
    _deep_table(predictor)
    options = replace(options or HistoryOptions(), prompt=predictor.settings.prompt or "")
    return (_distil_user(predictor, store, user, options, overwrite=overwrite) for user in users)


def _distil_user(
    predictor: Predictor, store: UserStore, user: str, options: HistoryOptions, *, overwrite: bool
) -> Tensor | LeftOut:
    table, key = _deep_table(predictor), _key(predictor)
    try:
        history = store.history(user)
    except UnknownUserError:  # removed since the users were listed
        return "changed meanwhile"
    if not any(text.strip() for text in history):
        return "without history"
    if not overwrite and (table.has(_hashed(user, table)) or _stored(store, user, key) is not None):
        return "with a prefix already"
    try:
        numbers = user_numbers(predictor.model, table, history, options)
    except InputError as error:
        raise InputError(f"user {user!r}: {error}") from error
    half = numbers.half()
    kept = half if bool(half.isfinite().all()) else numbers
    is_kept = store.put(user, NAME, {TENSOR: kept}, key=key, computed_from=history)
    return kept if is_kept else "changed meanwhile"


@dataclass(frozen=True)
class UserLookup:
    """The store in which a call's users are looked up, and the keys of the model's own tensors in it.

    ``key`` is that of prefixes, ``context_key`` that of encoded histories (``mmprefix.inference.users``).
    """

    store: UserStore
    key: str | None = None
    context_key: str | None = None

    def features(self, model: PrefixLM, users: Sequence[str | None]) -> list[dict[str, FeatureRow]]:
        """Inputs of the branch ``user`` for a call: id, and the numbers of the store, which go before the model's rows.

        None of them where the model has no rows. Raises UnknownUserError for a user who is in neither.
        """
        table = rows_of_users(model)
        if table is None or self.key is None:
            return []
        held = self.store.tensors_of([user for user in users if user is not None], NAME, key=self.key)
        rows = {user: self._row(table, user, held) for user in dict.fromkeys(users)}
        return [{USER_BRANCH: rows[user]} for user in users]

    def _row(self, table: UserRows, user: str | None, held: Mapping[str, dict[str, Tensor] | None]) -> FeatureRow:
        """Id and numbers of a user, where ``held`` has what the store holds of those who are in it."""
        hashed, numbers = id_bytes(user or NOBODY), table.rows.shape[1] // table.length
        if user is not None and user not in held and not table.has(hashed.to(table.rows.device)):
            raise UnknownUserError(f"user {user!r}: is neither in {self.store.path} nor in the model")
        tensors = None if user is None else held.get(user)
        if tensors is None:
            return FeatureRow(torch.zeros(0, numbers), hashed)
        values = tensors.get(TENSOR)
        if values is None or values.ndim != 2 or values.shape[1] != numbers:
            shapes = ", ".join(f"{name} {' x '.join(map(str, tensor.shape))}" for name, tensor in tensors.items())
            raise InputError(
                f"user {user!r}: {self.store.path} holds {shapes} as a prefix; this model's is {TENSOR} P x {numbers}"
            )
        return FeatureRow(values.float(), hashed)


def _stored(store: UserStore, user: str, key: str) -> Tensor | None:
    """Numbers (P n) of a user; None where the store has none for this model, or no such user."""
    tensors = store.tensors(user, NAME, key=key)
    return None if tensors is None else tensors[TENSOR].float()


def _require_numbers(predictor: Predictor, store: UserStore, user: str) -> Tensor:
    values = _stored(store, user, _key(predictor))
    if values is None:
        store.history(user)  # refuses a user who is not there
        raise InputError(f"user {user!r}: {store.path} has no prefix for {_name(predictor)}; train it, or export it")
    return values


def _table(predictor: Predictor) -> UserRows:
    table = rows_of_users(predictor.model)
    if table is None:
        raise InputError(f"{_name(predictor)}: has no rows of users (mmprefix.mappers.user_prefix) in a branch 'user'")
    return table


def _deep_table(predictor: Predictor) -> DeepUserPrefix:
    table = predictor.model.mapper(USER_BRANCH)
    if not isinstance(table, DeepUserPrefix):
        own = "" if table is None else f" but a {type(table).__name__}"
        raise InputError(
            f"{_name(predictor)}: has no DeepUserPrefix{own} in a branch 'user'; a text becomes keys and values, so "
            "train a model with mmprefix.mappers.user_prefix.DeepUserPrefix"
        )
    return table


def _key(predictor: Predictor) -> str:
    return cast(str, predictor.users_key)


def _hashed(user: str, table: UserRows) -> Tensor:
    return id_bytes(user).to(table.rows.device)


def _name(predictor: Predictor) -> str:
    return predictor.source or "this model"


def _is_of(name: str, ends: Sequence[str]) -> bool:
    """True for the tensors of the branch of users that have one of these last names."""
    return name.startswith(f"mappers.{USER_BRANCH}.") and name.rpartition(".")[2] in ends


def _without_sizes(data: Any) -> Any:
    """Recipe of a mapper without what says how many users there are, or how they began."""
    if isinstance(data, dict):
        items = cast("dict[str, Any]", data).items()
        return {name: _without_sizes(value) for name, value in items if name not in ("capacity", "std")}
    return [_without_sizes(value) for value in cast("list[Any]", data)] if isinstance(data, list) else data
