"""Write manifests for FlickrStyle10K (StyleNet, Gan et al., CVPR 2017): humorous and romantic captions, a style a user.

source   https://zhegan27.github.io/Papers/FlickrStyle_v0.9.zip: the 7,000 captions a style that were published; the
         3,000 of the test were not. Pictures: Flickr8k or Flickr30k
licence  captions: none is named; pictures: Flickr's terms of use, for research
needed   in ROOT: humor/train.p and humor/funny_train.txt, romantic/train.p and romantic/romantic_train.txt: line N of
         the text (Windows-1252) is about the Nth picture of the list. Or ROOT is a csv or tsv file with a column image
         and a column a style (humor, romantic ...): that layout is not the authors', and was chosen here

    mmprefix prepare flickr_style FlickrStyle_v0.9 --pictures flickr30k_images --out styles

train.p is a pickle of Python 2. It is not unpickled: its names are read from it as texts, and a file that would run
code is refused. A picture is sought by its name (1000268201_693b08cb0e.jpg) and by the number before the first _, as
Flickr30k has it (1000268201.jpg). There is no published split: pictures are held back for val and test, the same for
all styles.
"""

from __future__ import annotations

import os
import pickletools
import sys
from collections.abc import Sequence
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.personal import output
from mmprefix.recipes.prepare.personal.pictures import PictureFolder
from mmprefix.recipes.prepare.personal.posts import Post

STYLES = {"humor": "funny_train.txt", "romantic": "romantic_train.txt"}
_PLAIN = {"FRAME", "PROTO", "MARK", "LIST", "EMPTY_LIST", "APPEND", "APPENDS", "STOP"}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}


def read_names(file: Path) -> list[str]:
    """Texts of a pickled list of texts, in order, without unpickling. Raises InputError for any other pickle."""
    names: list[str] = []
    memory: dict[int, str | None] = {}
    last: str | None = None
    try:
        for code, argument, _ in pickletools.genops(file.read_bytes()):
            if code.name in _TEXTS:
                last = str(argument)
                names.append(last)
            elif code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memory[len(memory) if code.name == "MEMOIZE" else int(argument or 0)] = last
            elif code.name in ("GET", "BINGET", "LONG_BINGET"):
                last = memory.get(int(argument or 0))
                names += [] if last is None else [last]
            elif code.name in _PLAIN:
                last = None if code.name not in ("PROTO", "FRAME") else last
            else:
                raise InputError(f"{file}: not a plain list of texts: it holds {code.name}, which is not read")
    except OSError as error:
        raise tables.refusal(file, error) from error
    except ValueError as error:
        raise InputError(f"{file}: not a pickle ({error})") from error
    return names


def read_styles(root: Path) -> list[tuple[str, str, str]]:
    """Style, picture and caption of each line of ROOT's two folders. Raises InputError where lists do not fit texts."""
    present = {style: file for style, file in STYLES.items() if (root / style).is_dir()}
    if not present:
        raise InputError(f"{root}: neither {' nor '.join(STYLES)} is there; or give a csv file")
    rows: list[tuple[str, str, str]] = []
    for style, file in present.items():
        names = read_names(root / style / "train.p")
        try:
            text = (root / style / file).read_bytes().decode("windows-1252", errors="replace")
        except OSError as error:
            raise tables.refusal(root / style / file, error) from error
        lines = text.splitlines()
        if len(lines) != len(names):
            raise InputError(f"{root / style / file}: {len(lines)} lines, but train.p names {len(names)} pictures")
        rows += [(style, name, line) for name, line in zip(names, lines, strict=True)]
    return rows


def read_csv(file: Path) -> list[tuple[str, str, str]]:
    """Style, picture and caption of each cell of a table with a column image and a column a style."""
    rows = tables.read_table(file, ["image"])
    styles = [name for name in rows[0][1] if name != "image"]
    if not styles:
        raise InputError(f"{file}: no column beside image; give one a style, such as {' and '.join(STYLES)}")
    return [(style, cells["image"], cells[style]) for style in styles for _, cells in rows]


def make_posts(rows: Sequence[tuple[str, str, str]], pictures: PictureFolder) -> tuple[list[Post], list[str]]:
    """Post of each row with a text, and lines for the report."""
    posts: dict[str, Post] = {}
    empty = 0
    for style, name, text in rows:
        if not (text := " ".join(text.split())):
            empty += 1
            continue
        path = pictures.find(name) or pictures.find(f"{name.split('_')[0]}.jpg")
        identifier = f"{os.path.splitext(name)[0]}-{style}"
        identifier = identifier if identifier not in posts else f"{identifier}-{len(posts)}"
        posts[identifier] = Post(identifier, style, (text,), name, path)
    return list(posts.values()), [f"{empty} captions without a text left out"] if empty else []


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = output.new_parser("mmprefix prepare flickr_style", __doc__, rule="post")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of humor/ and romantic/, or a csv file")
    parser.add_argument("--pictures", type=Path, metavar="DIR", required=True, help="where the pictures are")
    options = parser.parse_args(argv)
    rows = read_csv(options.root) if options.root.is_file() else read_styles(options.root)
    posts, notes = make_posts(rows, PictureFolder(options.pictures))
    output.write_posts(posts, options.root, options, notes=notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_flickr_style", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
