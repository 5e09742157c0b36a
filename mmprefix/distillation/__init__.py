"""Long texts as a few positions of a decoder's cache: closed-form compaction, distillation, cartridges."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.distillation.cartridge import Cartridge as Cartridge
    from mmprefix.distillation.cartridge import compose as compose
    from mmprefix.distillation.cartridge import stack as stack
    from mmprefix.distillation.cartridge_prefix import CartridgePrefix as CartridgePrefix
    from mmprefix.distillation.compaction import compact as compact
    from mmprefix.distillation.student import DistilOptions as DistilOptions
    from mmprefix.distillation.student import distil as distil

__all__ = ["Cartridge", "CartridgePrefix", "DistilOptions", "compact", "compose", "distil", "stack"]
__getattr__ = lazy_exports(
    __name__,
    {
        "Cartridge": "cartridge",
        "CartridgePrefix": "cartridge_prefix",
        "DistilOptions": "student",
        "compact": "compaction",
        "compose": "cartridge",
        "distil": "student",
        "stack": "cartridge",
    },
)
