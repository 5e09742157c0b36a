"""Log messages of a block."""

from __future__ import annotations

import logging


class warned(logging.Handler):
    """Collects what the library warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("mmprefix").addHandler(self)
        return self.said

    def __exit__(self, *_: object) -> None:
        logging.getLogger("mmprefix").removeHandler(self)
