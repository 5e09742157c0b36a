"""Output of the programs that prepare data of users: manifests, users.jsonl, test_shuffled.jsonl, and the report.

A row has ``user``, ``user_seen`` (train has rows of the user), ``captions``, and the picture or a ``context``.
users.jsonl has a row a user, ``user`` and ``history``: texts of train, of an unseen user texts that were put aside for
it, and never a text that the user has in val or test. test_shuffled.jsonl is the test with other users named: ``user``
is another one, ``true_user`` the row's own; seen users take the place of seen ones.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmprefix.atomic import write_atomically
from mmprefix.cli.main import CommandParser
from mmprefix.errors import InputError
from mmprefix.metrics.style import other_users
from mmprefix.recipes.prepare import writing
from mmprefix.recipes.prepare.personal.duplicates import TREATMENTS, treat_duplicates
from mmprefix.recipes.prepare.personal.posts import HISTORY, RULES, Post, SplitOptions, SplitRule, assign_splits
from mmprefix.recipes.prepare.writing import ManifestRow, Split

_SPLITS = ("train", "val", "test")


def new_parser(program: str, description: str | None, rule: SplitRule = "published") -> CommandParser:
    """Make a parser with the options of all programs and those of users; ``rule`` is the usual split."""
    parser = writing.new_parser(program, description)
    rules = [name for name in RULES if rule == "published" or name != "published"]
    text = "published: as the source; user: unseen users in test; post: held-back pictures (or prompts); both"
    parser.add_argument("--split-by", choices=rules, default=rule, help=f"{text} (default: %(default)s)")
    for name, share, what in (
        ("test", 0.1, "of users or posts held back for test"),
        ("val", 0.05, "of posts of seen users held back for val, where the source has no val"),
        ("history", 0.5, "of an unseen user's posts put aside as the history, in no split"),
    ):
        parser.add_argument(
            f"--{name}-share", type=float, default=share, metavar="SHARE", help=f"share {what} (default: %(default)s)"
        )
    parser.add_argument(
        "--history", type=int, default=50, metavar="N", help="texts a user in users.jsonl at most, 0: all (default: 50)"
    )
    text = "of a later split: refuse them all, drop those rows, or keep (default: refuse)"
    parser.add_argument("--same-text", choices=TREATMENTS, default="refuse", help=f"texts that a user repeats {text}")
    parser.add_argument("--same-picture", choices=TREATMENTS, default="refuse", help=f"pictures that recur {text}")
    return parser


def write_posts(
    posts: Sequence[Post],
    source: Path,
    options: argparse.Namespace,
    *,
    notes: Sequence[str] = (),
    histories: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Split ``posts`` of ``source`` as in ``options`` (see ``new_parser``), write everything, and print the report.

    ``notes`` are lines for the report, ``histories`` the source's own texts of users, taken for those who are not in
    train. Raises InputError for no posts, refused duplicates, and where nothing can be written.
    """
    whole = [post for post in posts if _is_text(post)]
    if len(whole) < len(posts):
        notes = [*notes, f"{len(posts) - len(whole)} posts with half a character, which no file can hold, left out"]
    posts = whole
    _require_distinct(posts, source)
    rule = SplitOptions(options.split_by, options.test_share, options.val_share, options.history_share)
    own = dict(histories or {})
    if own and rule.rule == "published":
        rule = replace(rule, history=0.0)  # the source put texts aside itself
    splits, lines = treat_duplicates(
        posts,
        assign_splits(posts, rule),
        texts=options.same_text,
        pictures=options.same_picture,
        threads=options.threads,
    )
    seen = {post.user for post, split in zip(posts, splits, strict=True) if split == "train"}
    users, left_out = _histories(posts, splits, own, options.history)
    if left_out:
        lines.append(f"{left_out} texts left out of histories, for their user has them in val or test")
    aside = splits.count(HISTORY)
    if aside:
        lines.append(f"{aside} posts of unseen users put aside as their history, in no split")
    parts = [
        Split(
            name,
            source,
            [_row(post, post.user in seen) for post, split in zip(posts, splits, strict=True) if split == name],
            notes=[*notes, *lines] if name == "train" else (),
        )
        for name in _SPLITS
        if name in splits
    ]
    writing.write_manifests(parts, "image" if any(post.picture for post in posts) else None, options)
    _write_lines(options.out / "users.jsonl", [{"user": user, "history": texts} for user, texts in users.items()])
    unseen = sum(user not in seen for user in users)
    print(f"users.jsonl: {len(users)} users, {unseen} of them unseen in train; {sum(map(len, users.values()))} texts")
    if "test" in splits:
        _write_shuffled(options.out)


def _row(post: Post, seen: bool) -> ManifestRow:
    fields = {"user": post.user, "user_seen": seen, **post.fields}
    return ManifestRow(post.id, post.picture or post.id, post.path, post.texts, fields)


def _is_text(post: Post) -> bool:
    """False where a text was cut off in the middle of an emoticon: a lone surrogate."""
    try:
        "".join((post.id, post.user, post.picture, post.prompt, *post.texts)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_distinct(posts: Sequence[Post], source: Path) -> None:
    if not posts:
        raise InputError(f"{source}: no post with a user and a text")
    name, count = Counter(post.id for post in posts).most_common(1)[0]
    if count > 1:
        raise InputError(f"{source}: id {name!r} belongs to {count} posts")


def _histories(
    posts: Sequence[Post], splits: Sequence[str], own: Mapping[str, Sequence[str]], most: int
) -> tuple[dict[str, list[str]], int]:
    """Texts of each user, sorted by user, at most ``most`` (0: all), and the number of those left out."""
    texts: dict[str, list[str]] = {post.user: [] for post in posts}
    held: dict[str, set[str]] = {post.user: set() for post in posts}
    for post, split in zip(posts, splits, strict=True):
        if split in ("train", HISTORY):
            texts[post.user] += post.texts
        elif split:
            held[post.user].update(post.texts)
    for user, lines in own.items():
        if not texts.get(user):
            texts[user] = [*lines]
    left_out = 0
    for user in texts:
        kept = [text for text in dict.fromkeys(texts[user]) if text not in held.get(user, ())]
        left_out += len(set(texts[user])) - len(kept)
        texts[user] = kept[: most or None]
    return {user: texts[user] for user in sorted(texts)}, left_out


def _write_shuffled(out: Path) -> None:
    """Write test_shuffled.jsonl from the test.jsonl in ``out``; of a single user there is none."""
    (out / "test_shuffled.jsonl").unlink(missing_ok=True)  # of an earlier test
    if not (out / "test.jsonl").is_file():
        return
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    groups = [[row for row in rows if row["user_seen"] is seen] for seen in (True, False)]
    if any(len({row["user"] for row in group}) == 1 for group in groups):
        groups = [rows]
    if len({row["user"] for row in rows}) < 2:
        print("test_shuffled.jsonl: not written, for test has one user")
        return
    others = {}
    for group in groups:
        names = other_users([row["user"] for row in group])
        others |= {row["id"]: name for row, name in zip(group, names, strict=True)}
    lines = [{**row, "user": others[row["id"]], "true_user": row["user"]} for row in rows]
    _write_lines(out / "test_shuffled.jsonl", lines)
    print(f"test_shuffled.jsonl: {len(lines)} rows of test, each with another user")


def _write_lines(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(file, lambda fresh: fresh.write_text(text, encoding="utf-8"))
