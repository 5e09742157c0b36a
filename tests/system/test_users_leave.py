"""Sixteen threads caption for users who join and leave the store meanwhile: nobody else fails, and nothing stays."""

from __future__ import annotations

import random
import threading

import pytest
import torch

import mmprefix
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.user_prefixes import NAME, TENSOR, export_users, remove_users, rows_of_users
from mmprefix.users.store import UnknownUserError, UserStore
from tiny.models import frozen_parts
from tiny.user_traces import bytes_on_disk, random_text, traces
from tiny.users import picture, save_personal

THREADS, GUESTS = 16, 6
STAYS = ("ann", "bo")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Model without users; those who stay are in its store."""
    folder = tmp_path_factory.mktemp("model")
    directory = save_personal(folder / "saved", frozen_parts(folder / "parts"), "soft", *STAYS)
    model = mmprefix.load(directory, device="cpu")
    model.users = UserStore(folder / "users.db", create=True)
    export_users(model, model.users, STAYS)
    remove_users(model, STAYS)
    return model


class Guests:
    """Users who come and go, with random ids, words and numbers that occur in no file by chance."""

    def __init__(self, model: Predictor) -> None:
        assert model.users is not None
        self.model, self.store, self.draw = model, model.users, random.Random(0)
        self.ids = [f"guest {number} {random_text(self.draw, 30)}" for number in range(GUESTS)]
        self.words = [random_text(self.draw, 400) for _ in self.ids]
        table = rows_of_users(model.model)
        assert table is not None
        torch.manual_seed(0)
        self.numbers = torch.randn(GUESTS, table.length, table.rows.shape[1] // table.length)

    def come(self, number: int) -> None:
        """Add a guest with texts and a prefix, at once."""
        user, key = self.ids[number], self.model.users_key or ""
        with self.store.transaction():
            self.store.add(user, [self.words[number], self.words[number][:50]])
            self.store.put(user, NAME, {TENSOR: self.numbers[number]}, key=key)

    def traces(self) -> list[bytes]:
        """Fragments of ids, words and numbers on the disk."""
        numbers = [tensor.numpy().tobytes() for tensor in self.numbers]
        return traces(self.store.path, [*self.ids, *self.words, *numbers])


def test_nobody_fails_but_who_is_removed_and_nothing_stays(model: Predictor) -> None:
    guests, errors, captions = Guests(model), list[BaseException](), dict[str, set[str]]()
    expected = {user: model(picture(), user=user) for user in STAYS}
    begun, over = threading.Barrier(THREADS + 1), threading.Event()

    def caption(seed: int) -> None:
        draw = random.Random(seed)
        begun.wait()
        calls = 0
        while calls < 4 or not over.is_set():
            calls += 1
            stays, guest = draw.choice(STAYS), draw.choice(guests.ids)
            try:
                assert model(picture(), user=stays) == expected[stays]
                text = model(picture(), user=guest)
                captions.setdefault(guest, set()).add(text)
            except UnknownUserError as error:
                if stays in str(error):
                    errors.append(error)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=caption, args=(seed,)) for seed in range(THREADS)]
    for number in range(GUESTS):
        guests.come(number)
    assert guests.traces()  # what is searched for is there
    for thread in threads:
        thread.start()
    begun.wait()
    for number in (0, 1, 2):  # one leaves and comes again while all others go on
        guests.store.remove(guests.ids[number])
        guests.come(number)
    guests.store.remove(*guests.ids)
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert guests.traces() == []
    assert STAYS[0].encode() in bytes_on_disk(guests.store.path)
    assert all(len(texts) == 1 for texts in captions.values())  # of one prefix one text
    with pytest.raises(UnknownUserError, match="is neither in"):
        model(picture(), user=guests.ids[0])
