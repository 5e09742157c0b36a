"""Write manifests for Speech Commands (Warden, arXiv 1804.03209): single words of one second from many speakers.

source   http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz, and v0.01;
         for --official-test: speech_commands_test_set_v0.02.tar.gz there, and v0.01
licence  CC BY 4.0
needed   in ROOT, the unpacked archive: a folder of recordings for each word, validation_list.txt, testing_list.txt, and
         for --silence the folder _background_noise_

    mmprefix prepare speech_commands speech_commands_v0.02 --out speech_commands

"label" and "transcript" are the word, "user" is the speaker. The lists split the recordings; without them the rule does
by which they were made (SHA-1 of the speaker: 10 % val, 10 % test). With --official-test, the labels are the twelve of
the official test: ten commands, _unknown_ for all other words (the transcript still says which), and _silence_.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError
from mmprefix.media.audio import sound_seconds
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import ManifestRow, Split

# Recordings of words: of v0.02 in the paper, of v0.01 as its lists and its README say; "official": in the test archive.
PUBLISHED = {
    "v0.01": {"train": 51088, "val": 6798, "test": 6835, "official": 3081},
    "v0.02": {"train": 84843, "val": 9981, "test": 11005, "official": 4890},
}
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
COMMANDS = frozenset({"yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"})
NOISE, SILENCE, UNKNOWN = "_background_noise_", "_silence_", "_unknown_"
NOISE_OF_VAL = "running_tap.wav"  # the others are for train, as in TensorFlow Datasets
# Clips of it: what https://www.tensorflow.org/datasets/catalog/speech_commands has more than the paper has words.
CLIPS = {"v0.01": {}, "v0.02": {"train": 668, "val": 121}}


def find_clips(folder: Path) -> dict[str, str]:
    """Map WORD/NAME → path of the recordings below ``folder``, without noise. Raises InputError without any."""
    clips = {
        f"{os.path.basename(path)}/{name}": f"{path}/{name}"
        for path, name in tables.files_below(folder, tables.SOUNDS)
        if os.path.dirname(path) == str(folder) and os.path.basename(path) != NOISE
    }
    if not clips:
        raise InputError(f"{folder}: no folders of words with recordings in them")
    return clips


def split_by_rule(name: str) -> str:
    """Split of the recording ``name`` by Warden's rule: all of a speaker fall in one, whatever else is recorded."""
    digest = hashlib.sha1(name.partition("_nohash_")[0].encode(), usedforsecurity=False).hexdigest()
    percentage = int(digest, 16) % 2**27 * (100 / (2**27 - 1))
    return "val" if percentage < 10 else "test" if percentage < 20 else "train"


def read_lists(root: Path) -> dict[str, str]:
    """Map WORD/NAME → split of the recordings in the two lists; empty without lists.

    Raises InputError when one list is missing, or a recording stands in them twice.
    """
    splits: dict[str, str] = {}
    present = {split: root / name for split, name in LISTS.items() if (root / name).exists()}
    if len(present) == 1:
        raise InputError(f"{root}: of {' and '.join(LISTS.values())} only one is there; give both or none")
    for split, file in present.items():
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise tables.refusal(file, error) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error.reason})") from error
        for number, name in enumerate(map(str.strip, lines), start=1):
            if not name:
                continue
            if name.count("/") != 1:
                raise InputError(f"{file}:{number}: {name!r} is not WORD/NAME of a recording")
            if name in splits:
                raise InputError(f"{file}:{number}: {name!r} stands in the lists twice")
            splits[name] = split
    return splits


def split_clips(root: Path) -> dict[str, dict[str, str | None]]:
    """Map split → WORD/NAME → path of its recordings; None for one that is listed and missing."""
    clips, listed = find_clips(root), read_lists(root)
    if not listed:
        print(f"no lists in {root}: split by the rule by which they were made")
    parts: dict[str, dict[str, str | None]] = {"train": {}, "val": {}, "test": {}}
    for clip in sorted(clips.keys() | listed.keys()):
        split = listed.get(clip, "train") if listed else split_by_rule(os.path.basename(clip))
        parts[split][clip] = clips.get(clip)
    return parts


def make_rows(clips: Mapping[str, str | None], twelve: bool) -> Iterator[ManifestRow]:
    """Make the rows of recordings of words; ``twelve``: with the labels of the official test."""
    for clip, path in clips.items():
        word, name = clip.split("/")
        speaker, known, _ = name.partition("_nohash_")
        if word == UNKNOWN:  # such a file is called WORD_SPEAKER_nohash_NUMBER
            word, _, speaker = speaker.rpartition("_")
        fields: dict[str, Any] = {"label": UNKNOWN if twelve and word not in COMMANDS else word, "transcript": word}
        if word == SILENCE:
            fields = {"label": SILENCE, "transcript": ""}
        elif known:
            fields["user"] = speaker
        yield ManifestRow(clip, clip, path, fields=fields)


def silence(root: Path) -> dict[str, list[ManifestRow]]:
    """Map split → clips of the background noise: one second from each half second on, if the file lasts longer.

    TensorFlow Datasets cuts them in the same way. Raises InputError when there is no noise.
    """
    rows: dict[str, list[ManifestRow]] = {"train": [], "val": []}
    for folder, name in tables.files_below(root / NOISE, tables.SOUNDS):
        noise, path = f"{NOISE}/{name}", f"{folder}/{name}"
        try:
            clips = math.ceil(2 * sound_seconds(path)) - 2
        except InputError:
            rows["train"].append(ManifestRow(noise, noise, path))  # listed as unreadable when it is opened again
            continue
        fields = {"label": SILENCE, "transcript": ""}
        rows["val" if name == NOISE_OF_VAL else "train"] += [
            ManifestRow(f"{noise}@{start}", noise, path, fields=fields, part=(start, start + 1))
            for start in (number / 2 for number in range(clips))
        ]
    if not any(rows.values()):
        raise InputError(f"--silence: no sound in {root / NOISE}")
    return rows


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("mmprefix prepare speech_commands", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of the folders of words")
    text = "which Speech Commands (default: %(default)s)"
    parser.add_argument("--version", choices=list(PUBLISHED), default="v0.02", help=text)
    text = "add clips of the background noise, labelled _silence_, to train and val"
    parser.add_argument("--silence", action="store_true", help=text)
    text = "the unpacked archive of the official test, which becomes test, with its twelve labels for all"
    parser.add_argument("--official-test", type=Path, metavar="DIR", help=text)
    options = parser.parse_args(argv)
    official: Path | None = options.official_test
    published = PUBLISHED[options.version]
    parts = split_clips(options.root)
    if official is not None:
        parts["test"] = dict(find_clips(official))
    quiet = silence(options.root) if options.silence else {}
    splits: list[Split] = []
    for name, clips in parts.items():
        source = official if official is not None and name == "test" else options.root
        count = published["official" if source is official else name]
        noise = quiet.get(name, [])
        known = writing.published(CLIPS[options.version].get(name))
        note = f"{len(clips)} words and {len(noise)} clips of silence{known}"
        rows = [*make_rows(clips, official is not None), *noise]
        splits.append(Split(name, source, rows, published=count, lasts=(0, 1), notes=[note] if noise else []))
    writing.write_manifests([split for split in splits if split.rows], "audio", options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_speech_commands", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
