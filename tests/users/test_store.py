"""Users, histories and tensors that go into a store come out of it, by any thread and process, or are refused."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.users import UserStore
from mmprefix.users.store import UnknownUserError
from mmprefix.users.summary import HeldTensors, UserSummary
from tiny.user_traces import bytes_on_disk, fragments, random_history, traces

HISTORIES = {
    "u07": ["a dog runs", "my dog again"],
    "nobody": [],
    "one": ["dog"],
    "Zoë 👩‍👩‍👧 小明": ["snow ❄️ on the hill", "", "two\nlines\t\0and a zero", "e\u0301 is not é"],
    "x" * 255: ["ß" * 5000],
    "'; DROP TABLE users; --": ["%s"],
}
TENSORS: dict[str, Tensor] = {
    "embeds": torch.linspace(-1, 1, 70).reshape(10, 7).half(),
    "scale": torch.tensor(3.0),
    "ids": torch.arange(12).reshape(3, 4).T,  # not contiguous
    "none": torch.zeros(0, 5, dtype=torch.bfloat16),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UserStore]:
    with UserStore(tmp_path / "users.db", create=True) as store:
        store.add_many(HISTORIES)
        yield store


def same(kept: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> bool:
    """True where names, dtypes, shapes and bits are the same."""
    return (
        kept is not None
        and kept.keys() == expected.keys()
        and all(kept[n].dtype == t.dtype and torch.equal(kept[n], t) for n, t in expected.items())
    )


def test_tensors_of_many_users_are_those_of_each(store: UserStore) -> None:
    for number, user in enumerate(("u07", "one")):
        store.put(user, "prefix", {"numbers": torch.full((2, 3), float(number))}, key="model")
    store.put("nobody", "prefix", TENSORS, key="another")
    users = ["one", "u07", "zoe", "nobody", "one"]
    held = store.tensors_of(users, "prefix", key="model")
    assert list(held) == ["one", "u07", "nobody"]  # zoe is not there
    assert held["nobody"] is None
    for user in ("u07", "one"):
        assert same(held[user], store.tensors(user, "prefix", key="model") or {})
    store.remove("one")
    assert list(store.tensors_of(users, "prefix", key="model")) == ["u07", "nobody"]
    assert store.tensors_of([], "prefix") == {}
    with pytest.raises(InputError, match="an id has 1 to 255 characters"):
        store.tensors_of(["u07", ""], "prefix")


def test_tensors_of_many_users_are_of_one_state(store: UserStore) -> None:
    pair, wrong = ("one", "u07"), list[object]()
    ended = threading.Event()

    def write() -> None:
        for number in range(60):
            with store.transaction():
                for user in pair:
                    store.put(user, "prefix", {"numbers": torch.tensor(number)})
        ended.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not ended.is_set():
            held = store.tensors_of(pair, "prefix")
            values = {None if tensors is None else int(tensors["numbers"]) for tensors in held.values()}
            wrong += [values] if len(values) != 1 else []
            if writing.done():
                break
        writing.result()
    assert wrong == []


def test_histories_come_back_after_the_store_was_closed(store: UserStore) -> None:
    store.close()
    with UserStore(store.path) as again:
        assert {user: again.history(user) for user in HISTORIES} == HISTORIES
        assert [summary.user for summary in again.users()] == sorted(HISTORIES)
        assert len(again) == len(HISTORIES)
        assert "one" in again
        assert "One" not in again


def test_update_replaces_and_appends(store: UserStore) -> None:
    store.update("u07", ["a cat"], append=True)
    assert store.history("u07") == [*HISTORIES["u07"], "a cat"]
    store.update("u07", ["b", "a"])
    assert store.history("u07") == ["b", "a"]
    store.update("u07", [])
    store.update("nobody", ["x"], append=True)
    assert (store.history("u07"), store.history("nobody")) == ([], ["x"])
    assert store.history("one") == ["dog"]


def test_tensors_are_kept_by_name_and_key(store: UserStore) -> None:
    assert store.put("u07", "prefix", TENSORS, key="model 1")
    assert store.put("u07", "prefix", {"embeds": torch.ones(2)}, key="model 2")
    assert same(store.tensors("u07", "prefix", key="model 1"), TENSORS)
    assert same(store.tensors("u07", "prefix", key="model 2"), {"embeds": torch.ones(2)})
    assert store.tensors("u07", "prefix") is None
    assert store.tensors("u07", "context", key="model 1") is None
    assert store.tensors("one", "prefix", key="model 1") is None
    assert store.tensors("unknown", "prefix", key="model 1") is None
    store.put("u07", "prefix", {"other": torch.zeros(3)}, key="model 1")
    assert same(store.tensors("u07", "prefix", key="model 1"), {"other": torch.zeros(3)})
    assert store.drop("u07", "prefix", key="model 3") == 0
    assert store.drop("u07", "prefix") == 2
    assert store.tensors("u07", "prefix", key="model 1") is None


@pytest.mark.parametrize("append", [False, True])
def test_an_update_drops_what_was_computed_and_keeps_what_was_trained(append: bool, store: UserStore) -> None:
    store.put("u07", "context", TENSORS, computed_from=HISTORIES["u07"])
    store.put("one", "context", TENSORS, computed_from=HISTORIES["one"])
    store.put("u07", "prefix", TENSORS)
    store.update("u07", ["new"], append=append)
    assert store.tensors("u07", "context") is None
    assert same(store.tensors("u07", "prefix"), TENSORS)
    assert same(store.tensors("one", "context"), TENSORS)
    store.update("u07", ["newer"], append=append, drop_trained=True)
    assert store.tensors("u07", "prefix") is None


def test_what_was_computed_of_an_older_history_is_not_kept(store: UserStore) -> None:
    texts = store.history("u07")
    store.update("u07", ["new"])
    assert not store.put("u07", "context", TENSORS, computed_from=texts)
    assert store.tensors("u07", "context") is None
    store.remove("u07")
    assert not store.put("u07", "context", TENSORS, computed_from=["new"])
    with pytest.raises(InputError, match=r"users\.db: no user 'u07'; mmprefix users list .* shows those there are"):
        store.put("u07", "prefix", TENSORS)


def test_a_user_who_comes_back_finds_nothing_of_before(store: UserStore) -> None:
    store.put("u07", "prefix", TENSORS)
    store.remove("u07")
    store.add("u07")
    assert store.tensors("u07", "prefix") is None
    assert store.users()[-1 - sorted(HISTORIES, reverse=True).index("u07")] == UserSummary("u07", 0, 0, [])


def test_summaries_count_texts_and_bytes(store: UserStore) -> None:
    store.put("one", "prefix", TENSORS, key="k")
    store.put("one", "context", {"a": torch.zeros(1)}, computed_from=["dog"])
    summary = {row.user: row for row in store.users()}
    sizes = [len(base64.b64decode(t["safetensors_base64"])) for t in store.export("one")["tensors"]]
    assert summary["one"].held == [
        HeldTensors("context", "", True, sizes[0]),
        HeldTensors("prefix", "k", False, sizes[1]),
    ]
    assert summary["one"].bytes == 3 + sum(sizes)
    assert (summary["x" * 255].texts, summary["x" * 255].bytes) == (1, 10000)
    assert summary["nobody"] == UserSummary("nobody", 0, 0, [])


def test_export_is_all_that_is_held_and_json_takes_it(store: UserStore) -> None:
    user = "Zoë 👩‍👩‍👧 小明"
    store.put(user, "prefix", TENSORS, key="k")
    exported: dict[str, Any] = json.loads(json.dumps(store.export(user)))
    (kept,) = exported.pop("tensors")
    assert exported == {"user": user, "history": HISTORIES[user]}
    assert same(load(base64.b64decode(kept["safetensors_base64"])), TENSORS)
    assert kept["shapes"]["embeds"] == "float16 10 x 7"
    assert kept["shapes"]["scale"] == "float32"
    assert (kept["name"], kept["key"], kept["computed"]) == ("prefix", "k", False)


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("", "an id has 1 to 255 characters, not 0"),
        ("x" * 256, "an id has 1 to 255 characters, not 256"),
        ("a\nb", r"'a\\nb' holds a control character"),
        ("a\x7f", "holds a control character"),
        ("a\x85", "holds a control character"),
        ("a\u2028b", "line break"),
        ("\0", "holds a control character"),
        ("a\udcff", "not UTF-8"),
        (7, "7 is no text"),
    ],
)
def test_ids_that_are_refused(user: Any, reason: str, store: UserStore) -> None:
    calls = (
        lambda: store.add(user),
        lambda: store.update(user, []),
        lambda: store.remove("one", user),
        lambda: store.history(user),
        lambda: store.export(user),
        lambda: store.put(user, "a", TENSORS),
        lambda: store.tensors(user, "a"),
        lambda: user in store,
    )
    for call in calls:
        with pytest.raises(InputError, match=reason):
            call()
    assert len(store) == len(HISTORIES)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ("one text", "one text; a list of texts is needed"),
        (["a", 3], "text 2 is 3; texts are needed"),
        (["a", "b\udcff"], "text 2: .* not UTF-8"),
    ],
)
def test_histories_that_are_refused(texts: Any, reason: str, store: UserStore) -> None:
    for call in (lambda: store.add("new", texts), lambda: store.update("one", texts)):
        with pytest.raises(InputError, match=reason):
            call()
    assert "new" not in store
    assert store.history("one") == ["dog"]


def test_unknown_and_doubled_users_change_nothing(store: UserStore) -> None:
    before = store.users()
    with pytest.raises(InputError, match="'one' is there already"):
        store.add_many({"new": ["a"], "one": ["b"]})
    with pytest.raises(InputError, match="no user 'unknown'"):
        store.remove("one", "unknown")
    for call in (store.history, store.export, lambda user: store.update(user, [])):
        with pytest.raises(UnknownUserError, match="no user 'unknown'"):
            call("unknown")
    with pytest.raises(InputError, match="at least one"):
        store.put("one", "prefix", {})
    assert store.users() == before


def test_a_transaction_is_kept_whole_or_not_at_all(store: UserStore) -> None:
    before = store.users()

    def change_and_fail() -> None:
        with store.transaction():
            store.add("new", ["a"])
            store.update("one", ["b"])
            store.remove("u07")
            assert ("new" in store, store.history("one"), "u07" in store) == (True, ["b"], False)  # it sees its changes
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        change_and_fail()
    assert store.users() == before
    with store.transaction():
        for number in range(3):
            store.add(f"new {number}")
        with pytest.raises(InputError, match="is there already"):
            store.add_many({"newer": ["a"], "one": ["b"]})  # its own changes alone are taken back
        with pytest.raises(RuntimeError, match="stop"):
            change_and_fail()
        store.erase()
    assert {summary.user for summary in store.users()} == {*HISTORIES, "new 0", "new 1", "new 2"}


def test_a_removal_within_a_transaction_is_erased_at_its_end(store: UserStore) -> None:
    with store.transaction():
        store.remove("u07")
        store.remove("one")
    assert traces(store.path, HISTORIES["u07"]) == []


def test_damaged_tensors_are_one_line(store: UserStore) -> None:
    store.put("one", "prefix", TENSORS)
    with store.transaction(), store._connections.writing() as connection:  # pyright: ignore[reportPrivateUsage]
        connection.execute("UPDATE tensors SET data = x'0102'")
    with pytest.raises(InputError, match=r"users\.db: user 'one', 'prefix': its tensors are damaged"):
        store.tensors("one", "prefix")


def test_a_closed_store_says_so(store: UserStore) -> None:
    store.close()
    store.close()
    with pytest.raises(InputError, match=r"users\.db: the store is closed"):
        store.history("one")


def test_sixteen_threads_read_while_users_come_and_go(store: UserStore) -> None:
    """Threads read users who stay, and those who come and go; each sees a whole user or none."""
    draw = random.Random(0)
    stay = {f"stay {number}": random_history(draw) for number in range(20)}
    store.add_many(stay)
    prefix = {"embeds": torch.arange(30.0)}
    for user in stay:
        store.put(user, "prefix", prefix)
    done = threading.Event()

    def read(seed: int) -> int:
        draw, count = random.Random(seed), 0
        while not done.wait(0.005):
            user = draw.choice(list(stay))
            assert store.history(user) == stay[user]
            assert same(store.tensors(user, "prefix"), prefix)
            kept = store.tensors("guest", "prefix")
            assert kept is None or same(kept, prefix)
            with suppress(UnknownUserError):  # there is no such user, now and then
                assert store.history("guest") in (guest, [*guest, "more"])
            assert len(store) in (26, 27)
            count += 1
        return count

    guest = random_history(draw)
    left: list[bytes] = []
    with ThreadPoolExecutor(16) as pool:
        counts = [pool.submit(read, seed) for seed in range(16)]
        for _ in range(4):
            store.add("guest", guest)
            store.put("guest", "prefix", prefix)
            store.update("guest", ["more"], append=True)
            store.remove("guest")
            left.append(bytes_on_disk(store.path))
        done.set()
        assert all(future.result() for future in counts)
    assert guest
    assert [fragments(data, guest) for data in left] == [[]] * 4
