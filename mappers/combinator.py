"""Mappers made of mappers: whatever the children read or merge, the combinator reads and merges too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

from torch import nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper
from mmprefix.mappers.observer import Observer


class Combinator(Mapper):
    """Base of mappers over others; a subclass holds them under the name of the option that gave them.

    That option is a function of ``Sizes`` (``mapper``) or a list of such (``mappers``); the attribute holds what they
    made, a ``Mapper``, an ``nn.ModuleList``, or None where the option was left out. A recipe of it holds the recipes of
    the children.
    """

    children_option: ClassVar[str] = "mapper"

    @property
    def children_mappers(self) -> list[Mapper]:
        """Mappers that it is made of, in order."""
        child = getattr(self, self.children_option)
        if child is None:
            return []
        return list(cast(Any, child)) if isinstance(child, nn.ModuleList) else [child]

    def refuse_observers(self) -> None:
        """Refuse children that observe the training data: they would be shown other numbers than they read."""
        for child in self.children_mappers:
            if inner := next((part for part in child.modules() if isinstance(part, Observer)), None):
                outer, name = type(self).__name__, type(inner).__name__
                raise InputError(f"{outer}: {name} inside it would read other numbers than it is shown; leave out one")

    def recipe_args(self) -> dict[str, Any]:
        """Own options, and the children as they were built."""
        several = isinstance(child := getattr(self, self.children_option), nn.ModuleList)
        return super().recipe_args() | {self.children_option: self.children_mappers if several else child}

    @property
    def reads_input(self) -> bool:
        """True if a child does."""
        return any(child.reads_input for child in self.children_mappers)

    @property
    def reads_frames(self) -> bool:
        """True if a child does."""
        return any(child.reads_frames for child in self.children_mappers)

    @property
    def reads_context(self) -> bool:
        """True if a child does."""
        return any(child.reads_context for child in self.children_mappers)

    def merged(self) -> Mapper:
        """Combinator of the merged children; its own tensors are shared."""
        children = self.children_mappers
        merged = [child.merged() for child in children]
        same = all(new is old for new, old in zip(merged, children, strict=True))
        return self if same else self.with_children(merged)

    def with_children(self, children: Sequence[Mapper]) -> Self:
        """Copy over other ``children``, with the tensors of its own shared."""
        clone = copy.copy(self)
        clone._modules = dict(self._modules)  # a shallow copy of a module shares this dictionary
        several = isinstance(getattr(self, self.children_option), nn.ModuleList)
        setattr(clone, self.children_option, nn.ModuleList(children) if several else children[0])
        return clone
