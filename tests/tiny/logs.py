"""Warnings logged in a ``with`` block."""

from __future__ import annotations

import logging


class collect_warnings(logging.Handler):
    """Collect the library's warnings: ``with warned() as messages``."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("mmprefix").addHandler(self)
        return self.messages

    def __exit__(self, *_: object) -> None:
        logging.getLogger("mmprefix").removeHandler(self)
