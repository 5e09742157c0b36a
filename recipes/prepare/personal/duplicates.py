"""Duplicates across splits: the same text of the same user, and the same picture, found and refused, dropped or kept.

A picture is known by its name, and by its content: size and first 64 KiB of the file. Of two splits the earlier one of
train, val and test keeps its rows; what is dropped is dropped from the later one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import writing
from mmprefix.recipes.prepare.personal.posts import Post

Treatment = Literal["refuse", "drop", "keep"]
TREATMENTS: tuple[Treatment, ...] = ("refuse", "drop", "keep")
_ORDER = ("train", "val", "test")
_HEAD = 1 << 16


def treat_duplicates(
    posts: Sequence[Post], splits: Sequence[str], *, texts: Treatment, pictures: Treatment, threads: int
) -> tuple[list[str], list[str]]:
    """Splits of ``posts`` ("" where one is dropped), and a line for the report for each kind that occurs.

    Raises InputError where duplicates are refused.
    """
    contents = _contents(posts, threads)

    def texts_of(post: Post) -> list[str]:
        return [f"{post.user}\n{text}" for text in post.texts]

    def picture_of(post: Post) -> list[str]:
        return [contents.get(post.picture, post.picture)] if post.picture else []

    kept, notes = list(splits), list[str]()
    for option, what, keys, treatment in (
        ("--same-picture", "a picture", picture_of, pictures),
        ("--same-text", "a text of the same user", texts_of, texts),
    ):
        pairs = list(_again(posts, kept, keys))
        if not pairs:
            continue
        place, split = pairs[0]
        first = f"the first is {posts[place].id} of {kept[place]}, also in {split}"
        line = f"{len(pairs)} posts repeat {what} of an earlier split; {first}"
        if treatment == "refuse":
            raise InputError(f"{line}; {option} drop leaves them out, {option} keep lets them be")
        notes.append(f"{line}: {'left out' if treatment == 'drop' else 'kept'} ({option} {treatment})")
        for place, _ in pairs if treatment == "drop" else ():
            kept[place] = ""
    return kept, notes


def _again(
    posts: Sequence[Post], splits: Sequence[str], keys: Callable[[Post], list[str]]
) -> Iterator[tuple[int, str]]:
    """Place of each post one of whose ``keys`` an earlier split has, and the name of that split."""
    first: dict[str, str] = {}
    for split in _ORDER:
        members = [place for place, own in enumerate(splits) if own == split]
        for place in members:
            earlier = next((first[key] for key in keys(posts[place]) if key in first), None)
            if earlier is not None:
                yield place, earlier
        for place in members:
            for key in keys(posts[place]):
                first.setdefault(key, split)


def _contents(posts: Sequence[Post], threads: int) -> dict[str, str]:
    """Name of a picture → what its content is known by, of those whose files are there."""
    paths = {post.picture: post.path for post in posts if post.picture and post.path is not None}
    return dict(zip(paths, writing.side_by_side(_content, paths.values(), threads), strict=True))


def _content(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return f"{size} {hashlib.sha256(stream.read(_HEAD)).hexdigest()}"
    except OSError:
        return path  # whoever opens it next says why it cannot be read
