"""Switch of the fast paths: the environment variable ``MMPREFIX_FAST`` names those in use.

Unset: all. Empty: none. ``MMPREFIX_FAST=gelu,last_layer``: only these two. It is read once, at the first import.
"""

from __future__ import annotations

import os

from mmprefix.errors import InputError, did_you_mean

NAMES = ("gelu", "last_layer", "small_batch_linear", "fused_layer", "chunked_nll", "chunked_topk", "cuda_graph")


def parse(value: str | None) -> frozenset[str]:
    """Fast paths named by ``value`` of MMPREFIX_FAST. Raises InputError for an unknown name."""
    if value is None:
        return frozenset(NAMES)
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise InputError(f"MMPREFIX_FAST: {name!r} is none of {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    return frozenset(names)


ENABLED = parse(os.environ.get("MMPREFIX_FAST"))
