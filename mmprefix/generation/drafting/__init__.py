"""Several tokens a pass: drafts that the frozen model itself verifies, so that texts stay those of greedy search."""

from mmprefix.generation.drafting.bita import Drafter, Drafts

__all__ = ["Drafter", "Drafts"]
