"""Classes that stand in for the protocols of a search have their methods, with the same arguments."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.fast.cuda_graph import CudaGraphTree
from mmprefix.generation.search import EagerTree
from mmprefix.kv_cache.protocols import TokenTree, TreeModel


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        (TreeModel, ComposedDecoder),
        (TreeModel, WordDecoder),
        (TreeModel, CrossDecoder),
        (TokenTree, EagerTree),
        (TokenTree, CudaGraphTree),
    ],
    ids=lambda one: one.__name__,
)
def test_methods_take_the_arguments_of_the_protocol(protocol: Any, kind: type) -> None:
    methods = {name: method for name, method in vars(protocol).items() if inspect.isfunction(method)}
    methods = {name: method for name, method in methods.items() if not name.startswith("_")}
    assert methods
    for name, method in methods.items():
        asked, own = inspect.signature(method).parameters, inspect.signature(getattr(kind, name)).parameters
        assert [(p.name, p.kind) for p in asked.values()] == [(p.name, p.kind) for p in own.values()][: len(asked)]
        assert all(p.default is not p.empty for p in list(own.values())[len(asked) :]), name
