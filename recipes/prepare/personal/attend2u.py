"""Write manifests for InstaPIC-1.1M, or YFCC100M as Park, Kim and Kim (CVPR 2017, TPAMI 2018) split it: users' posts.

source   https://github.com/cesc-park/attend2u (InstaPIC's link was taken down there)
licence  YFCC100M: each picture its own Creative Commons licence; InstaPIC: the posts are their users'
needed   in ROOT: json/ and images/ as the archives unpack. json/yfcc-caption-train.json and -test.json map a user to a
         list of posts with "title", "description" and "page url"; json/insta-caption-train.json, -test1.json (unseen
         users) and -test2.json (seen users' other posts) map a user to a map of posts, each with "caption". Pictures
         are images/USER_POST for YFCC100M and images/USER_@_POST for InstaPIC, with or without .jpg

    mmprefix prepare attend2u data_yfcc --out yfcc

The layout is that of the authors' scripts (generate_dataset.py, generate_yfcc_dataset.py); the archives themselves were
not seen, so fields beside these are ignored. A text of YFCC100M is the title where it has 3 to 20 words, else the
description where that has, else the title; words are counted here without links and tags, at white space, which is
within a word or two of the authors' own count. Texts keep case, punctuation and emoticons, which the authors take out:
they are style. @NAME becomes @username, as theirs. Their context of an unseen user holds the very posts of the test;
half of these posts are put aside here (--history-share) and the others tested, so figures are not those of their test1.
Hashtag files are not read.
"""

from __future__ import annotations

import html
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.personal import output
from mmprefix.recipes.prepare.personal.pictures import PictureFolder
from mmprefix.recipes.prepare.personal.posts import Post

FILES = {
    "insta": {"train": "train", "test1": "test", "test2": "test"},
    "yfcc": {"train": "train", "test": "test"},
}
_MENTION = re.compile(r"@[A-Za-z0-9._]+")
_LINK = re.compile(r"<a\s[^>]*>.*?</a>|https?://\S+|</?[a-z]+>", re.IGNORECASE | re.DOTALL)
_WORDS = range(3, 21)


def read_json(file: Path) -> dict[str, Any]:
    """Read users and their posts. Raises InputError for a file that is no JSON object."""
    users = tables.read_json(file)
    if not isinstance(users, dict):
        raise InputError(f"{file}: not an object of users, as attend2u has it")
    return users


def instapic_posts(users: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, str]]:
    """User, post and text of each post. Raises InputError for another layout."""
    for user, posts in users.items():
        if not isinstance(posts, dict):
            raise InputError(f"{file}: user {user!r}: not an object of posts")
        for name, post in posts.items():
            text = post.get("caption") if isinstance(post, dict) else None
            text = " ".join(map(str, text)) if isinstance(text, list) else text
            if not isinstance(text, str):
                raise InputError(f"{file}: user {user!r}, post {name!r}: no caption")
            yield user, name, text


def yfcc_posts(users: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, str]]:
    """User, post and text of each post. Raises InputError for another layout."""
    for user, posts in users.items():
        if not isinstance(posts, list):
            raise InputError(f"{file}: user {user!r}: not a list of posts")
        for number, post in enumerate(posts):
            values = [post.get(key) if isinstance(post, dict) else None for key in ("title", "description", "page url")]
            title, description, page = (value if isinstance(value, str) else "" for value in values)
            if page.count("/") < 2:
                raise InputError(f'{file}: user {user!r}, post {number}: no "page url" that ends in POST/')
            texts = [_plain(title), _plain(description)]
            chosen = next((text for text in texts if len(text.split()) in _WORDS), texts[0])
            yield user, page.split("/")[-2], chosen


def _plain(text: str) -> str:
    """Text of a field that is written as in an address, without links and tags."""
    return " ".join(_LINK.sub(" ", html.unescape(unquote_plus(text))).split())


def read_posts(root: Path, kind: str, pictures: PictureFolder) -> tuple[list[Post], list[str]]:
    """Posts of all files of ``kind`` (insta or yfcc), and lines for the report. Raises InputError for a bad file."""
    posts: dict[str, Post] = {}
    lost: Counter[str] = Counter()
    between, read = ("_@_", instapic_posts) if kind == "insta" else ("_", yfcc_posts)
    names = {name: root / "json" / f"{kind}-caption-{name}.json" for name in FILES[kind]}
    for name, file in tables.available(names).items():
        for user, number, text in read(read_json(file), file):
            text = " ".join(_MENTION.sub("@username", text).split())
            picture = f"{user}{between}{number}"
            if not text or picture in posts:
                lost["without a text" if not text else "of a picture that an earlier post has"] += 1
                continue
            posts[picture] = Post(
                picture, user, (text,), picture, pictures.find(picture), split=FILES[kind][name], fields={"part": name}
            )
    return list(posts.values()), [f"{count} posts {what} left out" for what, count in lost.items()]


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = output.new_parser("mmprefix prepare attend2u", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of json/ and images/")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="where the pictures are (default: ROOT/images)")
    text = "open no picture, which is quick, and blind to broken files"
    parser.add_argument("--names-only", action="store_true", help=text)
    options = parser.parse_args(argv)
    kinds = [kind for kind in FILES if (options.root / "json" / f"{kind}-caption-train.json").is_file()]
    if len(kinds) != 1:
        names = " or ".join(f"{kind}-caption-train.json" for kind in FILES)
        count = "both are there" if kinds else "neither is there"
        raise InputError(f"{options.root / 'json'}: needs {names}, one of them; {count}")
    posts, notes = read_posts(options.root, kinds[0], PictureFolder(options.pictures or options.root / "images"))
    output.write_posts(posts, options.root / "json" / f"{kinds[0]}-caption", options, notes=notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_attend2u", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
