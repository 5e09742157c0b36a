"""A user's id as numbers, for mappers that keep something of each user."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmprefix.data.histories import NOBODY
from mmprefix.encoders.base import Encoder
from mmprefix.media.source import Source, read_text
from mmprefix.types import Features, Media
from mmprefix.weights.source import Provenance

BYTES = 8
"""Bytes of the hash of an id: two of a million users share one with a probability of 3e-8."""


def id_bytes(user: str) -> Tensor:
    """Hash of a user's id, (8,), float32: each number is a byte, which half precision holds exactly.

    That of "-", who is nobody, is zero.
    """
    if user == NOBODY:
        return torch.zeros(BYTES)
    digest = hashlib.blake2b(user.encode(), digest_size=BYTES).digest()
    return torch.tensor(list(digest), dtype=torch.float32)


@dataclass(frozen=True)
class ReadUserId:
    """Preprocessing of ``UserId``: the text in the manifest's column ``user``."""

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """Id → its hash (8,), float32. InputError for an empty one."""
        return id_bytes(read_text(source))


class UserId(Encoder):
    """Summary (B 8) that holds the hash of a user's id; there are no frames, and no id is kept anywhere."""

    input_kind = "text"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.pooled_dim = 0, BYTES
        self.preprocess = ReadUserId()
        self.identity = Provenance("user_id", None, hashlib.sha256(b"blake2b 8").hexdigest())
        self.freeze()

    def encode(self, media: Media) -> Features:
        """Hashes (B 8) → summary (B 8)."""
        values = media.values.float()
        return replace(Features.empty(len(values), values.device), pooled=values)
