"""Training on Lightning: PrefixTask, its callbacks, and the optimizer of users' rows."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.training.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
    from mmprefix.training.optimization.row_adam import RowAdam as RowAdam
    from mmprefix.training.task import PrefixTask as PrefixTask
    from mmprefix.training.unfreeze import UnfreezeUntil as UnfreezeUntil

__all__ = ["AtomicCheckpointIO", "PrefixTask", "RowAdam", "UnfreezeUntil"]
__getattr__ = lazy_exports(
    __name__,
    {
        "AtomicCheckpointIO": "checkpoint_io",
        "PrefixTask": "task",
        "RowAdam": "optimization.row_adam",
        "UnfreezeUntil": "unfreeze",
    },
)
