"""The switch of all fast paths: the environment variable ``MMPREFIX_FAST`` names those that are used.

Unset: all. Empty: none. ``MMPREFIX_FAST=gelu,last_layer``: these alone. It is read once, at the first import.
"""

from __future__ import annotations

import os

from mmprefix.errors import InputError, did_you_mean

NAMES = ("gelu", "last_layer", "small_batch_linear", "chunked_nll", "chunked_topk", "cuda_graph")


def parse(value: str | None) -> frozenset[str]:
    """The fast paths that ``value`` of MMPREFIX_FAST names. Raises InputError for a name that is none."""
    if value is None:
        return frozenset(NAMES)
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise InputError(f"MMPREFIX_FAST: {name!r} is none of {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    return frozenset(names)


ENABLED = parse(os.environ.get("MMPREFIX_FAST"))
