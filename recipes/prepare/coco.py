"""Write manifests for COCO 2014 captions in the splits of Karpathy and Fei-Fei (CVPR 2015): pictures, five captions.

source   pictures: http://images.cocodataset.org/zips/train2014.zip and val2014.zip (https://cocodataset.org);
         splits: https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip
licence  captions: CC BY 4.0; pictures: Flickr's terms of use, and each its own licence (cocodataset.org/#termsofuse)
needed   in ROOT: dataset_coco.json, and the pictures unpacked, as train2014/ and val2014/

    mmprefix prepare coco coco --out coco
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import ManifestRow, Split

# Pictures: 82,783 in train and 30,504 in restval (https://www.tensorflow.org/datasets/catalog/coco_captions), together
# the 113,287 that published models are trained on.
PUBLISHED = {"train": 82783, "restval": 30504, "val": 5000, "test": 5000}
FOLDERS = ("train2014", "val2014")


def read_images(file: Path) -> list[dict[str, Any]]:
    """Read the pictures that ``file`` lists, sentences as plain texts. Raises InputError when its form is another."""

    def drop_tokens(value: dict[str, Any]) -> Any:
        return value.get("raw", value)  # most of the file is tokens

    try:
        images = list(json.loads(file.read_bytes(), object_hook=drop_tokens)["images"])
    except OSError as error:
        raise tables.refusal(file, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the file of splits by Karpathy: {error}") from error
    for place, image in enumerate(images):
        for key, kind in {"cocoid": int, "split": str, "filepath": str, "filename": str, "sentences": list}.items():
            if not isinstance(image, dict) or not isinstance(image.get(key), kind):
                raise InputError(f"{file}: picture {place} of the list has no {key}")
        if image["split"] not in PUBLISHED:
            raise InputError(f"{file}: picture {place} of the list: no split {image['split']!r} was published")
        if not all(isinstance(text, str) for text in image["sentences"]):
            raise InputError(f"{file}: picture {place} of the list has a sentence without its text (raw)")
    return images


def find_pictures(folder: Path) -> dict[str, str]:
    """Map train2014/NAME or val2014/NAME → path of the pictures in ``folder``. Raises InputError without either."""
    present = [name for name in FOLDERS if (folder / name).is_dir()]
    if not present:
        raise InputError(f"{folder}: neither {' nor '.join(FOLDERS)} is there")
    return {
        f"{name}/{picture}": f"{path}/{picture}"
        for name in present
        for path, picture in tables.files_below(folder / name, tables.PICTURES)
    }


def read_rows(file: Path, images: list[dict[str, Any]], pictures: dict[str, str]) -> list[ManifestRow]:
    """Make a row for each of ``images``. Raises InputError for one listed twice in ``file`` or without a sentence."""
    rows: dict[str, ManifestRow] = {}
    for image in images:
        number, name = str(image["cocoid"]), f"{image['filepath']}/{image['filename']}"
        if number in rows or not image["sentences"]:
            raise InputError(f"{file}: cocoid {number}: {'listed twice' if number in rows else 'no sentences'}")
        captions = [tables.tidy(f"{file}: cocoid {number}", str(text)) for text in image["sentences"]]
        rows[number] = ManifestRow(number, name, pictures.get(name), captions)
    return list(rows.values())


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("mmprefix prepare coco", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of dataset_coco.json")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="where train2014 and val2014 are (default: ROOT)")
    parser.add_argument("--no-restval", action="store_true", help="train without restval: 82783 pictures, not 113287")
    options = parser.parse_args(argv)
    file = options.root / "dataset_coco.json"
    images = read_images(file)
    pictures = find_pictures(options.pictures or options.root)
    parts = {"train": ["train"] if options.no_restval else ["train", "restval"], "val": ["val"], "test": ["test"]}
    splits = [
        Split(
            name,
            file,
            read_rows(file, [image for image in images if image["split"] in part], pictures),
            published=sum(PUBLISHED[each] for each in part),
        )
        for name, part in parts.items()
    ]
    writing.write_manifests(splits, "image", options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_coco", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
