"""JSON logs: one object a line, with the request's id; nothing of what clients send or get is in them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

LOGGERS = ("mmprefix", "uvicorn", "uvicorn.error", "py.warnings")
log = logging.getLogger("mmprefix.serving")


class JsonLines(logging.Formatter):
    """Formatter: time (UTC), level, message, and the fields of ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON; a traceback is a field of it."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@contextmanager
def json_logs(stream: IO[str] | None = None) -> Generator[None, None, None]:
    """Send the logs of the library, the server and Python's warnings as JSON lines to ``stream`` (standard error)."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    before = {name: _state(logging.getLogger(name)) for name in LOGGERS}
    logging.captureWarnings(True)
    try:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers[:] = [] if name == "uvicorn.error" else [handler]  # that one's lines go up to uvicorn
            logger.setLevel(logging.INFO)
            logger.propagate = name == "uvicorn.error"
        yield
    finally:
        logging.captureWarnings(False)
        for name, (handlers, level, propagate) in before.items():
            logger = logging.getLogger(name)
            logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def _state(logger: logging.Logger) -> tuple[list[logging.Handler], int, bool]:
    return list(logger.handlers), logger.level, logger.propagate
