"""Calls of visitors: counted, bounded in time, and their errors turned into sentences on the page."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from mmprefix.demo.limits import Deadline, DemoLimits, RateLimit, check_file, sentence
from mmprefix.demo.models import ModelShelf
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor

log = logging.getLogger(__name__)
Handler = Callable[..., Any]
_SHOWN = 20.0  # seconds of a message on the page
MAX_TEXT = 20_000  # characters of a prompt, a history or a schema


@dataclass
class DemoState:
    """State that all tabs share: models, limits, the count of calls, the ids of the store of users, if there is one."""

    models: ModelShelf
    limits: DemoLimits = field(default_factory=DemoLimits)
    users: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.rate = RateLimit(self.limits.rate)

    def count(self, request: gr.Request | None) -> None:
        """Count a call of the visitor behind ``request``. Raises InputError for one too many."""
        client = getattr(request, "client", None) if request is not None else None
        self.rate.count(str(getattr(client, "host", "local")))

    def load(self, model: str, times: float = 1.0) -> tuple[Predictor, Deadline]:
        """The model of that name, and the time limit of a call, which begins once it is loaded."""
        return self.models.get(model), Deadline(times * self.limits.timeout)

    def checked(self, file: str | None) -> str:
        """The uploaded ``file`` once its header is checked. Raises InputError for none, and as ``check_file``."""
        if not file:
            raise InputError("no file yet: drop a picture or a sound, record one, or take a sample")
        check_file(file, Path(file).name, self.limits)
        return str(file)


def require_short(option: str, text: str | None, most: int = MAX_TEXT) -> str:
    """``text`` of a box of the page. Raises InputError for more than ``most`` characters."""
    if text and len(text) > most:
        raise InputError(f"{option}: {len(text):,} characters; this page takes at most {most:,}")
    return text or ""


def on_page(handler: Handler) -> Handler:
    """``handler``, a function or a generator, whose InputError is a sentence on the page.

    What nobody foresaw is logged, and the page says so without its details. Names of files are shown as text.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generate(*values: Any) -> Iterator[Any]:
            try:
                yield from handler(*values)
            except Exception as error:
                raise _shown(error) from None

        return generate

    @functools.wraps(handler)
    def run(*values: Any) -> Any:
        try:
            return handler(*values)
        except Exception as error:
            raise _shown(error) from None

    return run


def _shown(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, InputError):
        text = sentence(error)
    else:
        log.error("a call of the page failed", exc_info=error)
        text = f"this failed ({type(error).__name__}); the log of the page's server says more"
    return gr.Error(html.escape(text, quote=False), duration=_SHOWN, title="Not done", print_exception=False)
