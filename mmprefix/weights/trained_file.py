"""The file of a saved model's trained tensors: names and shapes before anything is built, its hash, its tensors.

A recipe asks for sizes: a mapper of a billion columns would take all memory. Parts that are filled from the file are
therefore built without memory first (on PyTorch's meta device), and compared with the header of the file.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmprefix.errors import InputError
from mmprefix.parts import Part

M = TypeVar("M", bound=Part)
Shape = tuple[int, ...]
_SPARE = 1000  # parameters beyond those in the file that a part may have while it is built: children that it merges


@dataclass(frozen=True)
class TrainedFile:
    """A safetensors file and the shapes in its header."""

    path: Path
    shapes: Mapping[str, Shape]

    @classmethod
    def open(cls, path: Path) -> TrainedFile:
        """Read the header. Raises InputError for a file that is missing or damaged."""
        try:
            with safe_open(path, "pt") as file:
                return cls(path, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error

    def tensors(self, sha256: str | None) -> dict[str, Tensor]:
        """All tensors by name. Raises InputError for a damaged file, or one with another hash than ``sha256``."""
        require_hash(self.path, sha256)
        try:
            return load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path}: cannot be read ({error})") from error

    def checked(self, build: Callable[..., M], start: str) -> Callable[..., M]:
        """``build``, but a part is compared with the tensors named ``start`` ... first (see ``compare``)."""

        def build_checked(*sizes: Any) -> M:
            self.compare(build, start, *sizes)
            return build(*sizes)

        return build_checked

    def compare(self, build: Callable[..., Part], start: str, *sizes: Any) -> None:
        """Build a part without memory, by ``build`` (``sizes``), and compare it with the tensors named ``start`` ...

        Raises InputError for options that no part can have, and for sizes other than those in the file.
        """
        saved = {name: shape for name, shape in self.shapes.items() if name.startswith(start)}
        title, count = start.rstrip("."), len(saved)
        try:
            with torch.device("meta"), _at_most(count + _SPARE, f"{self.path}: holds {count} tensors of {title}"):
                part = build(*sizes)
        except InputError:
            raise
        except Exception as error:  # sizes below 0, of another type, beyond 64 bits: each raises its own kind
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"recipe: {title} cannot be built with its options ({reason})") from error
        own = _shapes_of(part) if isinstance(part, nn.Module) else {}
        require_same_shapes({start + name: shape for name, shape in own.items()}, saved, self.path)

    def require_dimension(self, start: str, option: str, size: int) -> None:
        """Raise InputError unless a tensor named ``start`` ... has a dimension of ``size``."""
        if not any(size in shape for name, shape in self.shapes.items() if name.startswith(start)):
            raise InputError(f"recipe: {option}={size}: no tensor of {self.path} is of this size")


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_hash(path: Path, sha256: str | None) -> None:
    """Raise InputError unless ``sha256`` is the hash of the file (None: of an earlier version, without one)."""
    if sha256 is not None and (actual := file_hash(path)) != sha256:
        raise InputError(
            f"{path}: is not the file that was saved here (its sha256 is {actual[:12]}..., the recipe "
            f"beside it says {sha256[:12]}...); copy the whole directory again, or save the model again"
        )


def require_same_shapes(own: Mapping[str, Shape], saved: Mapping[str, Shape], file: Path | str) -> None:
    """Raise InputError that names the first tensor which only one of model and file has, or of another shape."""
    for name in sorted(own.keys() | saved.keys()):
        if name not in saved:
            raise InputError(f"{file}: holds no tensor {name!r}, which this model trains")
        if name not in own:
            raise InputError(f"{file}: holds a tensor {name!r}, which this model does not have")
        if own[name] != saved[name]:
            raise InputError(
                f"{file}: tensor {name!r} has the shape {saved[name]}, this model's {own[name]}; is it the same "
                "mapper, with the same sizes?"
            )


def copy_into(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: Path | str) -> None:
    """Copy ``tensors`` into those of a model.

    Raises InputError for the first that is missing, foreign or misshapen, of another type, or holds NaN or infinity.
    """
    require_same_shapes(_shapes(own), _shapes(tensors), file)
    for name in sorted(own):
        if tensors[name].is_floating_point() != own[name].is_floating_point() or tensors[name].is_complex():
            types = f"{tensors[name].dtype}, this model's {own[name].dtype}".replace("torch.", "")
            raise InputError(f"{file}: tensor {name!r} is of type {types}")
        if not tensors[name].isfinite().all():
            raise InputError(f"{file}: tensor {name!r} holds NaN or infinity; take a checkpoint of before it diverged")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bits of ``tensors``, in order of name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def require_digest(tensors: Mapping[str, Tensor], sha256: str | None, file: Path | str) -> None:
    """Raise InputError unless ``sha256`` is the digest of ``tensors`` (None: of an earlier version, without one)."""
    if sha256 is not None and digest(tensors) != sha256:
        raise InputError(
            f"{file}: its trained tensors are not those that were written (their sha256 differs); take another "
            "checkpoint of the run, or copy this one again"
        )


def _shapes_of(module: nn.Module) -> dict[str, Shape]:
    """Shapes of a module's state by name; tensors that are tied count once, under their first name."""
    names: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: tuple(state[name].shape) for name in names.values()}


@contextmanager
def _at_most(count: int, reason: str) -> Generator[None, None, None]:
    """Raise InputError once more than ``count`` parameters are made in this thread: layers ask for time, not memory."""
    made, thread = 0, threading.get_ident()

    def on_parameter(*_: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > count:
            raise InputError(f"{reason}, and its recipe asks for more than {count}")

    handle = register_module_parameter_registration_hook(on_parameter)
    try:
        yield
    finally:
        handle.remove()
