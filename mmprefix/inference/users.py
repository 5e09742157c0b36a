"""Users of a call: the id and the earlier texts of each, from the call or a store, for the branches that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from mmprefix.data.histories import BRANCH, NOBODY, USER_BRANCH
from mmprefix.errors import InputError
from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input
from mmprefix.media.kinds import KINDS
from mmprefix.media.source import Texts
from mmprefix.users.store import UnknownUserError

if TYPE_CHECKING:
    from mmprefix.users.store import UserStore


def user_texts(
    options: CallOptions, kinds: Mapping[str, str], count: int, store: UserStore | None
) -> list[dict[str, Texts]]:
    """Texts by branch for each of ``count`` inputs: ids of users, and what they wrote.

    Raises InputError for a model that reads neither, a user whom ``store`` does not know, and other numbers of them.
    """
    users, histories = options.get("user"), options.get("history")
    reads = [name for name in (USER_BRANCH, BRANCH) if KINDS[kinds.get(name, "image")].lists == "texts"]
    if users is None and histories is None and USER_BRANCH not in reads:
        return [{} for _ in range(count)]
    if users is not None and not reads:
        raise InputError("user: this model was trained without users; leave it out")
    if histories is not None and BRANCH not in reads:
        raise InputError("history: this model was trained without users' texts; leave it out")
    names = _users(users, count)
    texts = _histories(histories, count)
    if BRANCH in reads and histories is None:
        texts = [_stored(name, store, needed=USER_BRANCH not in reads) for name in names]
    return [_by_branch(name, history, reads) for name, history in zip(names, texts, strict=True)]


def _by_branch(user: str | None, history: Sequence[str], reads: Sequence[str]) -> dict[str, Texts]:
    texts = {USER_BRANCH: (user or NOBODY,), BRANCH: tuple(history)}
    return {name: Texts(texts[name]) for name in reads if any(text.strip() for text in texts[name])}


def users_of(options: CallOptions, inputs: Sequence[Input]) -> tuple[list[str | None], list[Input]]:
    """The user of each input, from its own dictionary or the call, and the inputs without their users."""
    names, rest = _users(options.get("user"), len(inputs)), list(inputs)
    for number, value in enumerate(inputs):
        own = value.get(USER_BRANCH) if isinstance(value, dict) else None
        if isinstance(own, Texts):
            names[number] = own.joined
            rest[number] = {name: source for name, source in cast("Any", value).items() if name != USER_BRANCH}
    return names, rest


def _users(users: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    if users is None or isinstance(users, str):
        return [users] * count
    if len(users) != count:
        raise InputError(f"user: {len(users)} users for {count} inputs; give one for all, or one an input")
    return list(users)


def _histories(histories: Sequence[str] | Sequence[Sequence[str]] | None, count: int) -> list[Sequence[str]]:
    """A list of texts an input: strings are the history of all of them."""
    if histories is None or isinstance(histories, str):
        texts = () if histories is None else (histories,)
        return [texts] * count
    items = list(cast("Sequence[object]", histories))
    if all(isinstance(item, str) for item in items):
        return [cast("list[str]", items)] * count
    if len(items) != count:
        raise InputError(f"history: {len(items)} lists of texts for {count} inputs; give one for all, or one an input")
    return [[] if item is None else [item] if isinstance(item, str) else list(cast("Sequence[str]", item))
            for item in items]  # fmt: skip


def _stored(user: str | None, store: UserStore | None, *, needed: bool) -> Sequence[str]:
    """Texts of ``user`` in ``store``; InputError without a store, or for a user who is not there, if one is needed."""
    if user is None:
        return ()
    if store is None:
        if not needed:
            return ()
        raise InputError(f"user {user!r}: nothing is known of users; give history, or a store (users=FILE, --users)")
    try:
        return store.history(user)
    except UnknownUserError:  # never added, or removed by another thread
        if needed:
            raise
        return ()
