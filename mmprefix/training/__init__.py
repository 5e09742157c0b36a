"""Training on Lightning: PrefixTask and its callbacks."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.training.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
    from mmprefix.training.task import PrefixTask as PrefixTask
    from mmprefix.training.unfreeze import UnfreezeUntil as UnfreezeUntil

__all__ = ["AtomicCheckpointIO", "PrefixTask", "UnfreezeUntil"]
__getattr__ = lazy_exports(
    __name__, {"AtomicCheckpointIO": "checkpoint_io", "PrefixTask": "task", "UnfreezeUntil": "unfreeze"}
)
