"""Users of a call: the id and the earlier texts of each, from the call or a store, for the branches that read them.

list(encode_histories(model, model.users, ["u07"]))  # the texts of u07, encoded once; dropped when they change
model("photo.jpg", user="u07")                       # reads what was encoded, and writes the same
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from mmprefix.data.collate import collate_inputs
from mmprefix.data.histories import BRANCH, NOBODY, USER_BRANCH
from mmprefix.encoders.base import Encoder, part_read
from mmprefix.errors import InputError, require_text
from mmprefix.features.store import store_description
from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input
from mmprefix.inference.user_prefixes import LeftOut, UserLookup
from mmprefix.media.kinds import KINDS
from mmprefix.media.source import Texts
from mmprefix.model import PrefixLM
from mmprefix.types import FeatureRow
from mmprefix.users.store import UnknownUserError

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor
    from mmprefix.users.store import UserStore

CONTEXT = "context"
"""Name of the features of a user's texts in a store: ``frames`` (T D) and ``pooled`` (G,)."""


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
    for text in cast("list[str]", texts):
        require_text(BRANCH, text)
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
    value = cast("object", users)  # whatever a caller gives
    names = list(cast("Collection[object]", value)) if isinstance(value, Collection) else [value]
    if unfit := [name for name in names if not (name is None or isinstance(name, str))]:
        raise InputError(f"user: {unfit[0]!r} is no text; give the id of a user, or one an input")
    if len(names) != count:
        raise InputError(f"user: {len(names)} users for {count} inputs; give one for all, or one an input")
    return cast("list[str | None]", names)


def _histories(histories: Sequence[str] | Sequence[Sequence[str]] | None, count: int) -> list[Sequence[str]]:
    """A list of texts an input: strings are the history of all of them. InputError for what is no text."""
    if histories is None or isinstance(histories, str):
        return [plain_texts(histories)] * count
    value = cast("object", histories)  # whatever a caller gives
    items = list(cast("Iterable[object]", value)) if isinstance(value, Iterable) else [value]
    if all(isinstance(item, str) for item in items):
        return [plain_texts(items)] * count
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


# ---------------------------------- texts that are encoded once


def context_key(model: PrefixLM) -> str | None:
    """Digest of what the features of a history belong to: the encoder of the branch ``history``, and how it reads.

    None for a model without such a branch, and where its encoder was trained.
    """
    if BRANCH not in model.encoders:
        return None
    encoder = model.encoder(BRANCH)
    if encoder.saved or not encoder.identity.sha256 or KINDS[encoder.input_kind].lists != "texts":
        return None
    description = json.dumps(store_description(encoder, "float32"), sort_keys=True)
    return hashlib.sha256(description.encode()).hexdigest()


def _context_key(key: str, encoder: Encoder, texts: Texts) -> str:
    """``key``, or another one where the encoder reads a part of ``texts`` alone: a part of as many is the same."""
    read = part_read(encoder.preprocess, texts)
    if read == texts or not isinstance(read, Texts):
        return key
    return hashlib.sha256(f"{key} of the last {len(read.texts)}".encode()).hexdigest()


def encode_histories(
    predictor: Predictor, store: UserStore, users: Iterable[str], *, overwrite: bool = False
) -> Iterator[int | LeftOut]:
    """Encode each user's texts in ``store`` once for all calls; what was computed goes when they change, or the user.

    Yields the bytes that are kept, or why there are none, user by user. Raises InputError for a model without a branch
    ``history`` whose encoder is frozen, and for a user who is not there.
    """
    key = predictor.context_key
    if key is None:
        raise InputError(f"{predictor.source or 'this model'}: has no branch 'history' with a frozen encoder of texts")
    chosen = list(users)
    for user in chosen:
        store.history(user)  # refuses one who is not there
    return (_encode(predictor, store, user, key, overwrite=overwrite) for user in chosen)


def _encode(predictor: Predictor, store: UserStore, user: str, key: str, *, overwrite: bool) -> int | LeftOut:
    try:
        history = store.history(user)
    except UnknownUserError:  # removed since
        return "changed meanwhile"
    if not any(text.strip() for text in history):
        return "without history"
    encoder, texts = predictor.model.encoder(BRANCH), Texts(tuple(history))
    key = _context_key(key, encoder, texts)
    if not overwrite and store.tensors(user, CONTEXT, key=key) is not None:
        return "encoded already"
    with torch.inference_mode():
        features = encoder(collate_inputs([encoder.preprocess(texts, 0.0, None)]).to(predictor.device))
    tensors = {"frames": features.frames[0].float().cpu(), "pooled": features.pooled[0].float().cpu()}
    is_kept = store.put(user, CONTEXT, tensors, key=key, computed_from=history)
    return sum(tensor.nbytes for tensor in tensors.values()) if is_kept else "changed meanwhile"


def encoded_histories(
    model: PrefixLM,
    lookup: UserLookup,
    options: CallOptions,
    inputs: Sequence[Input],
    *,
    texts: Sequence[dict[str, Texts]],
) -> tuple[list[dict[str, FeatureRow]], list[dict[str, Texts]]]:
    """Features of the texts that the store would give each input, where it has them, and the texts without those."""
    features: list[dict[str, FeatureRow]] = [{} for _ in inputs]
    if lookup.context_key is None or options.get("history") is not None:
        return features, list(texts)
    rest, users = list(texts), _users(options.get("user"), len(inputs))
    for number, (user, row) in enumerate(zip(users, texts, strict=True)):
        own = inputs[number]
        if user is None or BRANCH not in row or (isinstance(own, dict) and BRANCH in own):
            continue
        key = _context_key(lookup.context_key, model.encoder(BRANCH), row[BRANCH])
        tensors = lookup.store.tensors(user, CONTEXT, key=key)
        if tensors is not None:
            features[number] = {BRANCH: FeatureRow(tensors["frames"], tensors["pooled"])}
            rest[number] = {name: text for name, text in row.items() if name != BRANCH}
    return features, rest
