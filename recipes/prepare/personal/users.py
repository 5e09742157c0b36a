"""Write manifests for texts of known users in one manifest: ALFRED and KiloGram with their writers, or your own.

source   your own; ALFRED: https://github.com/askforalfred/alfred, KiloGram: https://github.com/lil-lab/kilogram
licence  theirs (both: MIT for the texts; KiloGram's pictures are for education and research only)
needed   ROOT: a folder with manifest.jsonl, or the manifest itself (jsonl, csv, tsv): rows with user and captions,
         caption or target; with image, the name of a picture beside the manifest, or plan, a text that says what is to
         be written; with split, or split here. In ROOT may be users.jsonl with user and history: the earlier texts of
         users whom train does not have

    mmprefix prepare personal alfred --out alfred

plan becomes the row's context: the text before the prompt, which a model without branches reads (model.wording.context
says how). Other fields are kept as they are, but for user_seen, which is worked out anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprefix.data.manifest_file import TARGETS, RowError, manifest_rows
from mmprefix.errors import InputError
from mmprefix.media.source import missing
from mmprefix.recipes.prepare import writing
from mmprefix.recipes.prepare.personal import output
from mmprefix.recipes.prepare.personal.posts import Post

_TAKEN = {"id", "user", "image", "split", "user_seen", *TARGETS}


def read_posts(manifest: Path) -> list[Post]:
    """Posts of all rows of ``manifest``. Raises InputError for a row without user, text, picture or plan."""
    posts: list[Post] = []
    for line, row in manifest_rows(manifest):
        place = f"{manifest}:{line}"
        if isinstance(row, RowError) or not isinstance(row, Mapping):
            raise InputError(f"{place}: {row if isinstance(row, RowError) else 'not an object'}")
        posts.append(_post({**row, "id": row.get("id", line)}, place, manifest.parent))
    return posts


def _post(row: Mapping[str, Any], place: str, folder: Path) -> Post:
    user, split = row.get("user"), row.get("split") or ""
    key = next((key for key in TARGETS if key in row), None)
    texts = [row[key]] if key and isinstance(row[key], str) else row[key] if key else []
    if isinstance(user, bool) or not isinstance(user, str | int) or user == "":
        raise InputError(f"{place}: user must be a text or a whole number, not {json.dumps(user)}")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{place}: needs captions, caption or target: a text that is not empty, or a list of them")
    picture = row.get("image") or ""
    prompt = next((row[name] for name in ("plan", "context", "prompt") if row.get(name)), "")
    if not all(isinstance(value, str) for value in (picture, prompt, split)) or not (picture or prompt):
        raise InputError(f"{place}: needs image, the name of a picture, or plan, context or prompt, a text")
    path = str(folder / picture)
    plan = {"context": row["plan"]} if row.get("plan") else {}
    return Post(
        id=str(row["id"]),
        user=str(user),
        texts=tuple(" ".join(text.split()) for text in texts),
        picture=picture,
        path=path if picture and not missing(path) else None,
        prompt=prompt,
        split=split,
        fields=plan | {name: value for name, value in row.items() if name not in _TAKEN},
    )


def read_histories(file: Path) -> dict[str, list[str]]:
    """History of each user of a users.jsonl; none where there is no such file. Raises InputError for a bad row."""
    histories: dict[str, list[str]] = {}
    for line, row in manifest_rows(file) if file.is_file() else ():
        texts = row.get("history") if isinstance(row, Mapping) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or "user" not in row:
            raise InputError(f"{file}:{line}: needs user, and history, a list of texts")
        histories[str(row["user"])] = texts
    return histories


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = output.new_parser("mmprefix prepare personal", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the manifest, or its folder")
    options = parser.parse_args(argv)
    manifest = options.root / "manifest.jsonl" if options.root.is_dir() else options.root
    posts = read_posts(manifest)
    histories = read_histories(manifest.with_name("users.jsonl"))
    output.write_posts(posts, manifest, options, histories=histories)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_personal", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
