"""``mmprefix demo [MODEL ...]``: a page that captions pictures and sounds with local models."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import threading
from pathlib import Path

from mmprefix.cli.inference.neighbour_options import add_neighbours
from mmprefix.cli.inference.open_model import add_device
from mmprefix.cli.serving.limit_options import LimitOption, add_limits
from mmprefix.errors import InputError

log = logging.getLogger(__name__)
_LIMITS = [
    LimitOption("max-mb", float, 50.0, "N", "most megabytes of a file"),
    LimitOption("max-seconds", float, 120.0, "S", "most seconds of a sound"),
    LimitOption("max-pixels", float, 50e6, "N", "most pixels of a picture"),
    LimitOption("max-files", int, 500, "N", "most files of a batch"),
    LimitOption("queue", int, 32, "N", "most calls that wait for their turn"),
    LimitOption("rate", int, 60, "N", "most calls a minute from one address"),
    LimitOption("timeout", float, 60.0, "S", "most seconds of a call; ten times as many of a batch"),
]


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
    add_device(parser)
    parser.add_argument("--users", metavar="STORE", help="store of users: visitors may choose any of them")
    add_neighbours(parser)
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="address by which browsers reach the page through a proxy, such as https://captions.example.org",
    )  # fmt: skip
    group = parser.add_argument_group("limits", "Most that a visitor may ask for (docs/demo.md).")
    add_limits(group, _LIMITS)


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is stopped; returns the exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError('demo: the page needs gradio, which is not installed: pip install "mmprefix[demo]"')
    if args.neighbours is not None and not args.models:
        raise InputError(f"--neighbours {args.neighbours}: go with the models that are named, and none is; name one")
    if args.neighbours is not None and not Path(args.neighbours).is_file():
        raise InputError(f"--neighbours {args.neighbours}: no such file")
    if args.port is not None and not 1 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: give a number from 1 to 65535")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no request leaves the machine; before the libraries are imported
    from mmprefix.demo.limits import DemoLimits
    from mmprefix.demo.models import ModelShelf, local_models

    limits = DemoLimits(**{option.destination: getattr(args, option.destination) for option in _LIMITS})
    places = local_models(args.models)
    users = _user_ids(args.users)
    log.info("starting the page; the first start takes a while")
    from mmprefix.demo.calls import DemoState
    from mmprefix.demo.page import serving

    neighbours = dict.fromkeys(args.models, args.neighbours)
    shelf = ModelShelf(places, users=args.users, neighbours=neighbours, device=args.device)
    state = DemoState(shelf, limits, users)
    with serving(state, args.host, args.port, args.allow_origin) as address:
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
