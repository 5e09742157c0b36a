"""Captions of all files in a folder, as a table: python demos/caption_folder.py FOLDER captions.csv [MODEL]."""

import csv
import sys
from pathlib import Path

import mmprefix


def main(folder: str, table: str, source: str | None = None) -> int:
    """Write a row for each file as it comes; a file that cannot be read is a line on standard error."""
    model = mmprefix.load() if source is None else mmprefix.load(source)
    files = sorted(file for file in Path(folder).iterdir() if file.is_file())
    failed = 0
    with Path(table).open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["file", "caption", "log_probability"])
        for file, result in zip(files, model.stream(files, num_return=1), strict=True):
            if isinstance(result, mmprefix.InputError):
                failed += 1
                print(result, file=sys.stderr)
            else:
                rows.writerow([file.name, result[0].text, f"{result[0].score:.4f}"])
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
