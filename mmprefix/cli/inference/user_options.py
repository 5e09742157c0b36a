"""Whom each row is written for: the user and the history of the command line, or the row's own user."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmprefix.cli.inference.histories import read_history
from mmprefix.cli.inference.rows import InputRow
from mmprefix.cli.spellings import utf8_text
from mmprefix.data.manifest.row import field_text
from mmprefix.errors import InputError
from mmprefix.users.checks import require_user

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor
    from mmprefix.users.store import UserStore

log = logging.getLogger(__name__)


def add_users(parser: argparse.ArgumentParser, user: str) -> None:
    """Add the options that say whom to write for; ``user`` is the sentence of ``--user``."""
    users = parser.add_argument_group("users", "For models that were trained with users (docs/personal.md).")
    users.add_argument("--user", type=utf8_text, metavar="NAME", help=user)
    users.add_argument(
        "--history", metavar="FILE", help="the user's earlier texts, one a line (- for standard input), or .jsonl"
    )
    users.add_argument("--users", metavar="STORE", help="store of users, in which users' texts are looked up")


def user_options(args: argparse.Namespace, rows: Sequence[InputRow], model: Predictor) -> dict[str, Any]:
    """``user`` and ``history`` of a Predictor's call; empty where neither the command line nor a row has one.

    A row's own user whom the store of users does not know is written for without history, which is said once.
    """
    history = None if args.history is None else read_history(args.history)
    users = [_id(row.fields.get("user")) for row in rows]
    reads_ids = "user" in model.kinds and any(users)
    if args.user is not None or (history is not None and not reads_ids):
        return {"user": args.user, "history": history}
    if reads_ids:
        return {"user": users, "history": history}
    if model.users is None or not any(users):
        return {}
    store = model.users
    names = [_known(user, store) for user in users]
    if unknown := sum(name is None for name in names):
        log.warning(
            "%s: does not know the users of %d of %d rows; they have no history", args.users, unknown, len(rows)
        )
    return {"user": names}


def _id(user: object) -> str | None:
    """Id of a row's ``user``, as manifests are read for training: a number, 0 too, is its digits."""
    return None if user is None or user == "" else field_text(user)


def _known(user: str | None, store: UserStore) -> str | None:
    """``user`` where ``store`` has one of that id; None for an id that no store takes."""
    if user is None:
        return None
    try:
        require_user(user)
    except InputError:
        return None
    return user if user in store else None
