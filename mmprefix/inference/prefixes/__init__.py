"""Models made of loaded ones: several that write together, and one whose prefix takes fewer bytes."""

from mmprefix.inference.prefixes.compressed import compress_prefix
from mmprefix.inference.prefixes.joined import join_models

__all__ = ["compress_prefix", "join_models"]
