"""Modules whose classes a recipe or a saved model may name; no other module is ever imported for one.

A class path of a stranger could name ``os.system``, or a file that lies beside the model. Importing runs code, so the
path is compared before anything is imported.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar

from mmprefix.errors import InputError

TRUSTED = ("mmprefix", "torch.optim", "lightning.pytorch", "transformers.optimization")
_allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())


@contextmanager
def allow_modules(names: Iterable[str]) -> Generator[None, None, None]:
    """Within this context class paths may also name classes of the modules ``names`` and of what lies below them."""
    token = _allowed.set((*_allowed.get(), *names))
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed_modules() -> tuple[str, ...]:
    """Modules whose classes may be named: ``TRUSTED``, ``allow_modules``, and ``MMPREFIX_ALLOW`` (commas between)."""
    names = os.environ.get("MMPREFIX_ALLOW", "").split(",")
    return (*TRUSTED, *_allowed.get(), *(name.strip() for name in names if name.strip()))


def require_allowed(path: str) -> None:
    """Raise InputError unless the class path is below an allowed module and no part of it is private."""
    names = path.split(".")
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise InputError(f"recipe: class_path {path!r} cannot be imported (give MODULE.CLASS)")
    inside = any(path.startswith(f"{module}.") for module in allowed_modules())
    if not inside or any(name.startswith("_") for name in names):
        raise InputError(f"recipe: {refusal(path)}")


def refusal(path: str) -> str:
    """Message for a class path that is not allowed."""
    return (
        f"class_path {path!r}: not imported, for it is none of {', '.join(TRUSTED)}; if you trust that module, "
        f"allow it: --allow {path.rpartition('.')[0] or path}"
    )
