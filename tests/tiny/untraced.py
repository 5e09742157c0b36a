"""Functions of libraries that coverage leaves out: they take three times as long when traced, and call none of ours."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import jsonargparse
import torch
import transformers
import yaml

FUNCTIONS: list[tuple[Any, str]] = [
    *((jsonargparse.ArgumentParser, name) for name in ("parse_args", "dump", "add_class_arguments")),
    (yaml, "load"),
    (yaml, "dump_all"),
    (torch, "load"),
    (torch, "save"),
    (transformers.PreTrainedModel, "save_pretrained"),
    (transformers.PreTrainedTokenizerBase, "save_pretrained"),
    (transformers.PreTrainedTokenizerBase, "from_pretrained"),
    (transformers.AutoConfig, "from_pretrained"),
]


def leave_out() -> None:
    """Let ``FUNCTIONS`` run without a trace function, which is there again after each call."""
    for owner, name in FUNCTIONS:
        function = vars(owner)[name]
        if isinstance(function, classmethod):
            setattr(owner, name, classmethod(untraced(function.__func__)))
        else:
            setattr(owner, name, untraced(function))


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` without a trace function."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        trace = sys.gettrace()
        if trace is None:
            return function(*args, **options)
        sys.settrace(None)
        try:
            return function(*args, **options)
        finally:
            sys.settrace(trace)

    return call
