"""Write manifests for SLURP (Bastianelli et al., EMNLP 2020): orders to a home assistant, with intents and slots.

source   texts: https://github.com/pswietojanski/slurp, folder dataset/slurp; recordings: https://zenodo.org/record/4274930
licence  texts: CC BY 4.0; recordings: CC BY-NC 4.0
needed   in ROOT: train.jsonl, devel.jsonl (here val), test.jsonl, and train_synthetic.jsonl for synthetic recordings;
         slurp_real/ and slurp_synth/ (the two archives unpacked): in ROOT, in audio/ of the repository, or in --audio

    mmprefix prepare slurp slurp/dataset/slurp --out slurp

A row is one recording, its id the name of the file without ending. "intent" is scenario_action, as SLURP's own scorer
forms it; the field "intent" of the jsonl files is often another and is left out. "slots" lists [type, filler]; a filler
is the words of the span in small letters. "file", "slurp_id", "scenario" and "action" are kept for scoring.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import ManifestRow, Split

# Sentences and recordings. devel, test: counted in the files of the repository; train: the sentences of MASSIVE (arXiv
# 2204.08582), which has SLURP's splits, and the recordings of copies at Hugging Face; train_synthetic: the paper.
PUBLISHED = {"train": (11514, 50628), "train_synthetic": (None, 69253), "devel": (2033, 8690), "test": (2974, 13078)}
TRAIN = {"real": ["train"], "synthetic": ["train_synthetic"], "both": ["train", "train_synthetic"]}
FOLDERS = ("slurp_real", "slurp_synth")


@dataclass(frozen=True)
class Sentence:
    """Content of one line: the names of the recordings, and the fields that all of them share."""

    recordings: Sequence[str]
    fields: Mapping[str, Any]
    renamed: bool  # its own field "intent" is not scenario_action


def read_sentences(file: Path) -> Iterator[Sentence]:
    """Read the sentences of ``file``. Raises InputError that names the line which is not of SLURP's form."""
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _sentence(json.loads(line), f"{file}:{number}")
    except OSError as error:
        raise tables.refusal(file, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8, somewhere after line {number}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{number}: not JSON ({error.msg} at column {error.colno})") from error


def _sentence(record: Any, place: str) -> Sentence:
    try:
        sentence, scenario, action = (_text(record, key, place) for key in ("sentence", "scenario", "action"))
        words = [_text(token, "surface", place) for token in record["tokens"]]
        slots = [[_text(entity, "type", place), _filler(words, entity["span"], place)] for entity in record["entities"]]
        fields = {
            "transcript": " ".join(sentence.split()),
            "intent": f"{scenario}_{action}",
            "scenario": scenario,
            "action": action,
            "slots": slots,
            "slurp_id": record["slurp_id"],
        }
        recordings = [_text(recording, "file", place) for recording in record["recordings"]]
    except KeyError as error:
        raise InputError(f"{place}: no field {error.args[0]!r}") from error
    except TypeError as error:
        raise InputError(f"{place}: not a sentence of SLURP ({error})") from error
    return Sentence(recordings, fields, record.get("intent", fields["intent"]) != fields["intent"])


def _text(record: Any, key: str, place: str) -> str:
    if not isinstance(record[key], str) or not record[key].strip():
        raise InputError(f"{place}: {key} must be a text that is not empty, not {json.dumps(record[key])}")
    return record[key]


def _filler(words: Sequence[str], span: Sequence[int], place: str) -> str:
    if not span or not all(0 <= number < len(words) for number in span):
        raise InputError(f"{place}: an entity spans the tokens {span}, but the sentence has {len(words)}")
    return " ".join(words[number] for number in span).lower()


def find_recordings(folders: Sequence[Path]) -> dict[str, str]:
    """Map name without ending → path, in the first of ``folders`` with recordings. Raises InputError without any."""
    for folder in folders:
        present = [folder / name for name in FOLDERS if (folder / name).is_dir()]
        if present:
            files = (file for path in present for file in tables.files_below(path, tables.SOUNDS))
            return {os.path.splitext(name)[0]: f"{path}/{name}" for path, name in files}
    raise InputError(f"neither {' nor '.join(FOLDERS)} is in {' or '.join(map(str, folders))}; give --audio")


def make_split(name: str, files: Mapping[str, Path], paths: Mapping[str, str], one: bool) -> Split:
    """Make the split ``name`` of the recordings in ``files`` (SLURP's name → file): ``one`` a sentence, or all.

    ``paths`` maps a recording's name without ending to its path.
    """
    rows: dict[str, ManifestRow] = {}
    again: list[str] = []
    sentences = unheard = renamed = 0
    for sentence in (sentence for file in files.values() for sentence in read_sentences(file)):
        names = {os.path.splitext(recording)[0]: recording for recording in sentence.recordings}
        present = [stem for stem in names if stem in paths]
        sentences, unheard, renamed = sentences + 1, unheard + (not present), renamed + sentence.renamed
        for stem in (present or list(names))[:1] if one else names:
            if stem in rows:
                again.append(names[stem])
            else:
                rows[stem] = ManifestRow(
                    stem, names[stem], paths.get(stem), fields={**sentence.fields, "file": names[stem]}
                )
    published = writing.published(_published(files, 0))
    notes = [f"{sentences} sentences{published}, {unheard} without any recording that is there"]
    if renamed:
        notes.append(f'{renamed} sentences whose field "intent" is not scenario_action')
    if again:
        notes.append(f"{len(again)} listed again, of no effect: {', '.join(again[:10])}{', ...' if again[10:] else ''}")
    source = Path(" and ".join(file.name for file in files.values()))
    return Split(name, source, rows.values(), published=_published(files, 0 if one else 1), notes=notes)


def _published(files: Collection[str], column: int) -> int | None:
    counts = [PUBLISHED[file][column] for file in files]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("mmprefix prepare slurp", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of the jsonl files")
    text = "where slurp_real and slurp_synth are (default: ROOT, or ../../audio from there)"
    parser.add_argument("--audio", type=Path, metavar="DIR", help=text)
    text = "recordings to train on (default: %(default)s); those of val and test are all real"
    parser.add_argument("--train", choices=list(TRAIN), default="real", help=text)
    text = "all of each sentence, or the first of each that is there (default: %(default)s)"
    parser.add_argument("--recordings", choices=["all", "one"], default="all", help=text)
    options = parser.parse_args(argv)
    parts = {"train": TRAIN[options.train], "val": ["devel"], "test": ["test"]}
    wanted = {file: options.root / f"{file}.jsonl" for part in parts.values() for file in part}
    present = tables.available(wanted)
    root = Path(os.path.abspath(options.root))
    paths = find_recordings([options.audio] if options.audio else [options.root, root.parent.parent / "audio"])
    splits = [
        make_split(name, {file: present[file] for file in part if file in present}, paths, options.recordings == "one")
        for name, part in parts.items()
        if present.keys() & set(part)
    ]
    writing.write_manifests(splits, "audio", options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_slurp", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
