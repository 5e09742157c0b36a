"""Style: recognition of writers, chance and ceiling, and the reference figures of the data's own page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mmprefix.errors import InputError
from mmprefix.metrics.style import FEATURES, StyleClassifier, other_users, style
from tiny.recorded import SHARED

HABITS = {
    "calm": "a {} sits on a {}.",
    "loud": "WOW A {} BY A {}!!!",
    "tags": "{} #{}",
    "formal": "One sees a {}; a {}.",
}
THINGS = ["dog", "cat", "bench", "boat", "bird", "kite", "tree", "lamp", "cup", "train"]


def texts_of(user: str, shift: int) -> list[str]:
    """Ten texts by the habit of ``user``."""
    return [HABITS[user].format(thing, THINGS[(n + shift) % len(THINGS)]) for n, thing in enumerate(THINGS)]


def known(shift: int) -> tuple[list[str], list[str]]:
    """Texts of all users, and their users."""
    pairs = [(text, user) for user in HABITS for text in texts_of(user, shift)]
    return [text for text, _ in pairs], [user for _, user in pairs]


@pytest.mark.parametrize("features", sorted(FEATURES))
def test_habits_are_recognised_by_case_and_punctuation_alone(features: str) -> None:
    """All users write of the same things: what is left is form, which a classifier in small letters would miss."""
    classifier = StyleClassifier(*known(1), features)
    assert classifier.users == sorted(HABITS)
    assert style(classifier, *known(3)) == {"accuracy": 1.0, "macro": 1.0, "best_five": 1.0, "together": 1.0}
    texts, users = known(3)
    assert style(classifier, texts, other_users(users)) == {
        "accuracy": 0.0,
        "macro": 0.0,
        "best_five": 1.0,  # there are four users
        "together": 0.0,
    }


def test_a_text_that_says_nothing_of_its_user_is_at_chance() -> None:
    classifier = StyleClassifier(*known(1))
    _, users = known(3)
    assert style(classifier, ["dog"] * len(users), users)["accuracy"] == 1 / len(HABITS)
    scores = classifier.log_probabilities(["", "🐶 …", "\n"])
    assert scores.shape == (3, 4)
    assert np.exp(scores).sum(1) == pytest.approx(np.ones(3))


def test_figures_by_hand() -> None:
    """Three texts of one user, one of which is another's; one of a second user, right."""
    classifier = StyleClassifier(*known(1))
    texts = [*texts_of("calm", 3)[:2], texts_of("loud", 3)[0], texts_of("tags", 3)[0]]
    figures = style(classifier, texts, ["calm", "calm", "calm", "tags"])
    assert (figures["accuracy"], figures["macro"]) == (0.75, (2 / 3 + 1) / 2)
    assert figures["together"] in (0.5, 1.0)


@pytest.mark.parametrize(
    ("texts", "users", "message"),
    [
        (["a"], [], "1 texts but 0 users"),
        (["a", "b"], ["u", "u"], "texts of 1 users; a classifier needs those of two or more"),
        ([], [], "texts of 0 users"),
        (["", " "], ["u", "v"], "hold nothing to tell them by"),
    ],
)
def test_texts_that_tell_nobody_apart_are_refused(texts: list[str], users: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StyleClassifier(texts, users)


def test_what_cannot_be_scored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = StyleClassifier(*known(1))
    with pytest.raises(InputError, match="has read no text of user 'new'"):
        style(classifier, ["a"], ["new"])
    with pytest.raises(InputError, match="0 texts and 0 users"):
        style(classifier, [], [])
    with pytest.raises(InputError, match="features='letters': no such classifier; use one of word, char"):
        StyleClassifier(*known(1), "letters")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match=r"scikit-learn is missing; pip install 'mmprefix\[personal\]'"):
        StyleClassifier(*known(1))


@pytest.mark.parametrize("users", [["a", "b"], list("aabbcc"), list("abacabad"), list("aaabbbb"[:6]), ["u"] * 0])
def test_other_users_are_others_and_as_many(users: list[str]) -> None:
    others = other_users(users)
    assert sorted(others) == sorted(users)
    assert all(one != other for one, other in zip(users, others, strict=True))


def test_other_users_where_one_has_most_texts() -> None:
    users = list("baabaacaaa")
    others = other_users(users)
    assert all(one != other for one, other in zip(users, others, strict=True))
    assert set(others) == {"a", "b", "c"}
    with pytest.raises(InputError, match="all 2 texts are those of one user"):
        other_users(["a", "a"])


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize(
    ("folder", "field", "accuracy", "together", "chance"),
    [("personal_alfred", "target", 0.465, 0.965, 0.018), ("personal_kilogram", "captions", 0.148, None, 0.011)],
)
def test_reference_points_of_the_data_sets(
    folder: str, field: str, accuracy: float, together: float | None, chance: float
) -> None:
    """Figures of the data's own README for the goal sentence and the caption: seen users' test texts, from train."""
    manifest = Path(SHARED, "data", folder, "manifest.jsonl")
    if not manifest.is_file():
        pytest.skip(f"../shared/data/{folder} is not here")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    pairs = {
        split: [
            (row[field] if field == "target" else row[field][0], row["user"])
            for row in rows
            if row["split"] == split and row["user_seen"]
        ]
        for split in ("train", "test")
    }
    classifier = StyleClassifier([text for text, _ in pairs["train"]], [user for _, user in pairs["train"]])
    figures = style(classifier, [text for text, _ in pairs["test"]], [user for _, user in pairs["test"]])
    assert round(1 / len(classifier.users), 3) == chance
    assert figures["accuracy"] == pytest.approx(accuracy, abs=0.0015)  # one text of 853 or 583
    if together is not None:
        assert figures["together"] == pytest.approx(together, abs=0.001)
