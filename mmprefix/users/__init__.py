"""Store of users: the texts of each, and tensors that were computed of them or trained for them."""

from typing import TYPE_CHECKING

from mmprefix.parts import lazy_exports

if TYPE_CHECKING:
    from mmprefix.users.store import UserStore as UserStore

__all__ = ["UserStore"]
__getattr__ = lazy_exports(__name__, {"UserStore": "store"})
