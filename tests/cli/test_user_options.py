"""Users of a run: the command line's user and history, a row's own user, users whom the store does not know."""

from __future__ import annotations

import argparse
import io
import logging
from pathlib import Path
from typing import Any, cast

import pytest

from mmprefix.cli.inference.rows import InputRow
from mmprefix.cli.inference.user_options import user_options
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.users.store import UserStore


class Reader:
    """The two attributes of a Predictor that tell what a model reads of users."""

    def __init__(self, store: UserStore | None, *kinds: str) -> None:
        self.users, self.kinds = store, dict.fromkeys(kinds, "text")


def options(model: Reader, *users: Any, user: str | None = None, history: Path | None = None) -> dict[str, Any]:
    rows = [InputRow(str(number), {}, "", {"user": name}) for number, name in enumerate(users)]
    args = argparse.Namespace(user=user, history=None if history is None else str(history), users="users.db")
    return user_options(args, rows, cast(Predictor, model))


@pytest.fixture
def store(tmp_path: Path) -> UserStore:
    users = UserStore(tmp_path / "users.db", create=True)
    users.add("ann", ["a dog"])
    return users


def test_a_history_is_read_by_lines_without_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "history.txt"
    file.write_text("\ufeffa dog \n\n  🐕 #hund\r\n", encoding="utf-8")
    assert options(Reader(None, "history"), "bo", history=file) == {"user": None, "history": ["a dog", "🐕 #hund"]}
    assert options(Reader(None, "history"), user="ann")["user"] == "ann"


def test_a_history_may_be_rows(tmp_path: Path) -> None:
    """The file is read as by ``mmprefix users add --history``: its JSON lines are rows, not texts."""
    file = tmp_path / "history.jsonl"
    file.write_text('{"text": "a dog"}\n{"captions": ["a cat", " "]}\n"a cow"\n', encoding="utf-8")
    assert options(Reader(None, "history"), history=file)["history"] == ["a dog", "a cat", "a cow"]
    file.write_text('{"history": []}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"--history .*history\.jsonl: holds no text"):
        options(Reader(None, "history"), history=file)


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe\xff"])
def test_a_history_without_texts_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "history.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"--history .*history\.txt: "):
        options(Reader(None, "history"), history=file)
    with pytest.raises(InputError, match="cannot be read"):
        options(Reader(None, "history"), history=tmp_path / "none.txt")


def test_a_history_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("ein\u2028text\nzwei\n".encode())))
    assert options(Reader(None, "history"), history=Path("-"))["history"] == ["ein\u2028text", "zwei"]


def test_a_history_leaves_rows_their_own_users(tmp_path: Path) -> None:
    file = tmp_path / "history.txt"
    file.write_text("a dog")
    chosen = options(Reader(None, "user", "history"), "ann", None, history=file)
    assert chosen == {"user": ["ann", None], "history": ["a dog"]}


def test_a_row_is_written_for_its_own_user_where_the_store_knows_it(
    store: UserStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert options(Reader(store, "history"), "ann", "bo", None, 3) == {"user": ["ann", None, None, None]}
    assert "does not know the users of 3 of 4 rows" in caplog.text


def test_ids_of_rows_are_those_that_users_add_takes(store: UserStore) -> None:
    """A number is its digits, and an id that no store takes is one that it does not know."""
    store.add("12", ["a cat"])
    assert options(Reader(store, "history"), 12, "12", "", "a\nb", "x" * 300, True, ["12"]) == {
        "user": ["12", "12", None, None, None, None, None]
    }


def test_rows_without_users_and_models_without_a_store_ask_for_nothing(store: UserStore) -> None:
    assert options(Reader(store, "history"), None, "") == {}
    assert options(Reader(None, "history"), "ann") == {}


def test_a_model_with_rows_of_users_gets_every_id() -> None:
    expected = {"user": ["ann", None, "7", "0", None], "history": None}
    assert options(Reader(None, "user"), "ann", None, 7, 0, "") == expected
    assert options(Reader(None, "user"), 0) == {"user": ["0"], "history": None}
    assert options(Reader(None, "user"), None) == {}
