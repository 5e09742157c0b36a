"""``mmprefix demo [MODEL ...]``: a page that captions pictures and sounds with local models."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import threading
from typing import Any

from mmprefix.errors import InputError

log = logging.getLogger(__name__)
_LIMITS = ("max_mb", "max_seconds", "max_pixels", "max_files", "queue", "rate", "timeout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="saved models to choose from, besides those in runs/*/model and the embedded one",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--users", metavar="STORE", help="store of users: visitors may choose any of them")
    group = parser.add_argument_group("limits", "Most that a visitor may ask for (docs/demo.md).")
    group.add_argument("--max-mb", type=float, metavar="N", help="size of a file (default: 50)")
    group.add_argument("--max-seconds", type=float, metavar="N", help="length of a sound (default: 120)")
    group.add_argument("--max-pixels", type=float, metavar="N", help="pixels of a picture (default: 50,000,000)")
    group.add_argument("--max-files", type=int, metavar="N", help="files of a batch (default: 500)")
    group.add_argument("--queue", type=int, metavar="N", help="calls that wait for their turn (default: 32)")
    group.add_argument("--rate", type=int, metavar="N", help="calls a minute from one address (default: 60)")
    group.add_argument(
        "--timeout", type=float, metavar="N", help="seconds of a call; ten times of a batch (default: 60)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is stopped; returns the exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError('demo: the page needs gradio, which is not installed: pip install "mmprefix[demo]"')
    if args.port is not None and not 1 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: give a number from 1 to 65535")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no request leaves the machine; before the libraries are imported
    from mmprefix.demo.limits import DemoLimits
    from mmprefix.demo.models import ModelShelf, local_models

    limits: dict[str, Any] = {name: value for name in _LIMITS if (value := getattr(args, name)) is not None}
    checked, places = DemoLimits(**limits), local_models(args.models)
    users = _user_ids(args.users)
    log.info("starting the page; the first start takes a while")
    from mmprefix.demo.calls import DemoState
    from mmprefix.demo.page import serving

    state = DemoState(ModelShelf(places, users=args.users, device=args.device), checked, users)
    with serving(state, args.host, args.port) as address:
        sys.stdout.write(f"the page is at {address} (Ctrl-C stops it)\n")
        sys.stdout.flush()
        threading.Thread(target=state.models.warm_up, daemon=True).start()
        threading.Event().wait()
    return 0


def _user_ids(store: str | None) -> list[str]:
    if store is None:
        return []
    from mmprefix.users.store import UserStore

    with UserStore(store) as users:
        return [user.user for user in users.users()]
