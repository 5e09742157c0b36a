"""Users of a call: the id and the earlier texts of each, from the call or a store, for the branches that read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    options: CallOptions, kinds: Mapping[str, str], count: int, store: UserStore | None, *, in_prompt: bool = False
) -> list[dict[str, Texts]]:
    """Texts by branch for each of ``count`` inputs: ids of users, and what they wrote.

    With ``in_prompt`` the latter are read without a branch too, under its name.

    Raises InputError for a model that reads neither, a user whom ``store`` does not know, and other numbers of them.
    """
    users, histories = options.get("user"), options.get("history")
    reads = [name for name in (USER_BRANCH, BRANCH) if KINDS[kinds.get(name, "image")].lists == "texts"]
    reads += [BRANCH] if in_prompt and BRANCH not in reads else []
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


def prompt_histories(
    inputs: Sequence[Input], texts: Sequence[dict[str, Texts]], kinds: Mapping[str, str]
) -> tuple[list[Sequence[str]], list[Input], list[dict[str, Texts]]]:
    """Earlier texts for each input's prompt: of its own dictionary, or of the call; and both without them.

    A branch that reads them too keeps them.
    """
    named = [cast("dict[str, Any]", value).get(BRANCH) if isinstance(value, dict) else None for value in inputs]
    histories = [plain_texts(own or row.get(BRANCH)) for own, row in zip(named, texts, strict=True)]
    if BRANCH in kinds:
        return histories, list(inputs), list(texts)
    rest = [{name: text for name, text in row.items() if name != BRANCH} for row in texts]
    values: list[Input] = [
        value if own is None else {name: item for name, item in cast("Any", value).items() if name != BRANCH}
        for value, own in zip(inputs, named, strict=True)
    ]
    return histories, values, rest


def plain_texts(value: object) -> Sequence[str]:
    """Texts of a list, of one string, or of an object that holds them; none for None."""
    held = getattr(value, "texts", () if value is None else value)
    texts = list(cast("Iterable[object]", [held] if isinstance(held, str) or not isinstance(held, Iterable) else held))
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{BRANCH}: earlier texts of a user are a list of texts, not {value!r}")
    return cast("list[str]", texts)


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
    """A list of texts an input: strings are the history of all of them. InputError for what is no text."""
    if histories is None or isinstance(histories, str):
        texts = () if histories is None else (histories,)
        return [texts] * count
    items = list(cast("Sequence[object]", histories)) if isinstance(histories, Iterable) else [histories]
    if all(isinstance(item, str) for item in items):
        return [cast("list[str]", items)] * count
    if len(items) != count:
        raise InputError(f"history: {len(items)} lists of texts for {count} inputs; give one for all, or one an input")
    return [plain_texts(item) for item in items]


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
