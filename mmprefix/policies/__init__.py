"""Policies over the features of a model: cloned from demonstrations."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.policies.cloning import Demonstrations as Demonstrations
    from mmprefix.policies.cloning import PolicyHead as PolicyHead
    from mmprefix.policies.cloning import clone as clone
    from mmprefix.policies.cloning import observation as observation

_FILES = {**dict.fromkeys(("Demonstrations", "PolicyHead", "clone", "observation"), "cloning")}
__all__ = ["Demonstrations", "PolicyHead", "clone", "observation"]
__getattr__ = lazy_exports(__name__, _FILES)
