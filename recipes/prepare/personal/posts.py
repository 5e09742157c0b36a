"""Posts of users and their splits: by user, by post or as published, chosen by a hash of the name and nothing else.

No seed is drawn: a post is in the same split on every machine, whatever else is in the data. ``user``: some users are
unseen, and only test holds them. ``post``: pictures (without one: prompts) are held back, of users who are in train.
``both``: unseen users and held-back pictures. ``published``: as the source has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmprefix.errors import InputError

SplitRule = Literal["published", "user", "post", "both"]
RULES: tuple[SplitRule, ...] = ("published", "user", "post", "both")
HISTORY = "history"
"""Split of posts that stand in no manifest: earlier texts of users who are not in train."""


@dataclass(frozen=True, slots=True)
class Post:
    """Text, or texts, that a user wrote about one picture or prompt. ``split`` is the published one, "" where none is.

    ``picture`` is its name in the source, ``path`` its file (None: missing); both are empty without a picture.
    """

    id: str
    user: str
    texts: tuple[str, ...]
    picture: str = ""
    path: str | None = None
    prompt: str = ""
    split: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def subject(self) -> str:
        """Name of the picture or prompt that the post is about: posts about the same one share a split."""
        return self.picture or self.prompt or self.id


@dataclass(frozen=True)
class SplitOptions:
    """Rule, and the shares of users or posts held back for ``test`` and ``val``.

    ``history`` is the share of an unseen user's posts that are put aside as earlier texts. ``published`` needs no
    ``test``, and ``val`` only where the source has no such split.
    """

    rule: SplitRule
    test: float = 0.1
    val: float = 0.05
    history: float = 0.5

    def __post_init__(self) -> None:
        for name in ("test", "val", "history"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name}-share {getattr(self, name)}: give a number from 0 on, below 1")
        if self.test + self.val >= 1:
            raise InputError(f"--test-share {self.test} and --val-share {self.val}: nothing would be left to train on")


def hash_share(kind: str, name: str) -> float:
    """Number from 0 on, below 1, by a hash (SHA-256) of ``kind`` and ``name``."""
    return int.from_bytes(hashlib.sha256(f"{kind}\n{name}".encode()).digest()[:8], "big") / 2**64


def assign_splits(posts: Sequence[Post], options: SplitOptions) -> list[str]:
    """Split of each of ``posts``: train, val, test or history. Raises InputError where nothing is left to train on."""
    assign = _published if options.rule == "published" else _by_rule
    splits = assign(posts, options)
    if "train" not in splits:
        raise InputError(f"--split-by {options.rule}: of {len(posts)} posts none is left for train")
    return splits


def _published(posts: Sequence[Post], options: SplitOptions) -> list[str]:
    lacking = next((post for post in posts if not post.split), None)
    if lacking is not None:
        raise InputError(f"--split-by published: {lacking.id}: the source has no split; choose user, post or both")
    seen = {post.user for post in posts if post.split == "train"}
    val = 0.0 if any(post.split == "val" for post in posts) else options.val
    splits: list[str] = []
    for post in posts:
        if post.split == "train" and hash_share("post", post.subject) < val:
            splits.append("val")
        elif post.user not in seen and hash_share("history", post.id) < options.history:
            splits.append(HISTORY)
        else:
            splits.append(post.split)
    return splits


def _by_rule(posts: Sequence[Post], options: SplitOptions) -> list[str]:
    users, held = options.rule in ("user", "both"), options.test if options.rule in ("post", "both") else 0.0
    splits: list[str] = []
    for post in posts:
        place = hash_share("post", post.subject)
        if users and hash_share("user", post.user) < options.test:
            splits.append(HISTORY if hash_share("history", post.id) < options.history else "test")
        else:
            splits.append("test" if place < held else "val" if place < held + options.val else "train")
    return splits
