"""Rows of numbers (signals): a list in JSON, an array in .npy, or values in memory → (S,)."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from mmprefix.errors import InputError
from mmprefix.media.source import Source, Waveform, name_of, open_source

_NUMBER_ERRORS = (
    *(OSError, ValueError, TypeError, EOFError, OverflowError, RecursionError, zipfile.BadZipFile),
    MemoryError,  # the header of an array announces more than is there
)


def read_numbers(source: Source) -> np.ndarray:
    """Numbers (S,), float32: the values in memory, or a list in a JSON file, or an array in an .npy file.

    Raises InputError that names the file when it is missing, holds something else, or a number is not finite.
    """
    name = name_of(source)
    try:
        if isinstance(source, tuple) and not isinstance(source, Waveform):
            values = np.asarray(source, dtype=np.float32)
        elif isinstance(source, str | Path):
            with open_source(source) as stream:
                content = np.load(stream) if str(source).endswith(".npy") else json.load(stream)
            values = np.asarray(content, dtype=np.float32)
        else:
            raise InputError(f"{name}: is no numbers; give a sequence of numbers, or a .json or .npy file")
    except _NUMBER_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: holds no list of numbers ({error})") from error
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"{name}: must hold one row of finite numbers, holds {str(values.tolist())[:60]}")
    return values
