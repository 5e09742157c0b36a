"""``mmprefix serve [MODEL ...]``: captions, meanings and detections over HTTP, batched across requests."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from mmprefix.cli.inference.neighbour_options import add_neighbours
from mmprefix.cli.inference.open_model import add_loading, open_model
from mmprefix.cli.serving.limit_options import LimitOption, add_limits
from mmprefix.errors import InputError
from mmprefix.inference.model_folder import EMBEDDED_MODEL
from mmprefix.interrupt import advice_if_stopped
from mmprefix.trust.limits import limit, limits_set

if TYPE_CHECKING:
    from mmprefix.serving.calls import ServedModel
    from mmprefix.serving.service import ServeOptions

MAX_PIXELS, MAX_SECONDS = 50_000_000, 600  # of an input, where neither an option nor the environment says another
_NEEDS = ("fastapi", "uvicorn", "multipart", "prometheus_client")
_NUMBERS = [
    LimitOption("max-batch", int, 32, "N", "most inputs of one computation; 1 switches batching off"),
    LimitOption("max-wait-ms", float, 5.0, "MS", "most milliseconds that an input waits for others"),
    LimitOption("queue", int, 256, "N", "most inputs inside the service; those beyond get status 429"),
    LimitOption("max-bytes", int, 32 << 20, "N", "most bytes of a request"),
    LimitOption("queue-bytes", int, 512 << 20, "N", "most bytes of all requests inside the service"),
    LimitOption("max-files", int, 16, "N", "most inputs of a request"),
    LimitOption("max-beams", int, 16, "N", "most beams, and texts an input"),
    LimitOption("max-tokens", int, 256, "N", "most tokens of a text"),
    LimitOption("timeout", float, 60.0, "S", "most seconds of a request"),
    LimitOption("streams", int, 2, "N", "threads that write streamed answers"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="saved models, hub repositories or recipes, each as PLACE or NAME=PLACE (default: the embedded example); "
        "requests name them, the first is their default",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port (default 8000; 0: any that is free)")
    parser.add_argument("--users", metavar="STORE", help="store of users, in which a request's user is looked up")
    add_neighbours(parser)
    add_loading(parser)
    limits = parser.add_argument_group("limits")
    add_limits(limits, _NUMBERS)
    limits.add_argument("--max-pixels", type=int, metavar="N", help=f"of a picture (default {MAX_PIXELS:,})")
    limits.add_argument("--max-seconds", type=float, metavar="S", help=f"of a sound (default {MAX_SECONDS})")
    limits.add_argument(
        "--drain", type=float, default=0.0, metavar="S", help="seconds of /readyz 503 before the port is closed"
    )
    access = parser.add_argument_group(
        "access", "MMPREFIX_API_KEY, where it is set, is the key that requests must bear."
    )
    access.add_argument("--allow-urls", action="store_true", help="inputs may be addresses of public hosts")
    access.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="site whose pages may use the service"
    )
    parser.add_argument(
        "--chat-text",
        choices=["auto", "prompt", "ignore"],
        default="auto",
        help="a chat message's text: the model's prompt, nothing, or (auto) prompt of decoders that answer in a chat",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal asks for the end. Raises InputError for models that cannot be loaded, and a port in use."""
    if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
        raise InputError(f"serve needs {', '.join(missing)}; pip install 'mmprefix[serve]'")
    options = options_of(args)
    with (
        limits_set(**_reader_limits(args)),
        _listening(args.host, args.port) as listening,  # before models are loaded: a port in use is said at once
    ):
        models = [_load(args, text) for text in args.models or [f"example={EMBEDDED_MODEL}"]]
        from mmprefix.serving.logs import json_logs, log
        from mmprefix.serving.server import serve

        with json_logs(), advice_if_stopped("every request that had begun is answered"):
            if options.key is None and not _is_loopback(listening):
                log.warning("anybody who reaches this port may use the service; set MMPREFIX_API_KEY")
            serve(models, options, listening, drain=args.drain)
    return 0


def options_of(args: argparse.Namespace) -> ServeOptions:
    """Options of the service. Raises InputError for those out of their bounds."""
    from mmprefix.serving.security.access import key_from_environment
    from mmprefix.serving.service import ServeOptions

    if args.drain < 0 or not args.drain < 3600:
        raise InputError(f"--drain {args.drain}: give seconds from 0 on")
    names = [option.destination for option in _NUMBERS if option.name != "max-wait-ms"]
    return ServeOptions(
        **{name: getattr(args, name) for name in names},
        max_wait=args.max_wait_ms / 1000,
        allow_urls=args.allow_urls,
        origins=tuple(args.allow_origin),
        chat_text=args.chat_text,
        key=key_from_environment(),
    )


def _reader_limits(args: argparse.Namespace) -> dict[str, float]:
    """Limits of inputs: an option's, else that of the environment, else the service's own."""
    limits: dict[str, float] = {}
    for name, option, default in (("pixels", args.max_pixels, MAX_PIXELS), ("seconds", args.max_seconds, MAX_SECONDS)):
        is_set = f"MMPREFIX_MAX_{name.upper()}" in os.environ
        limits[name] = option if option is not None else limit(name) if is_set else default
    return limits


def _load(args: argparse.Namespace, text: str) -> ServedModel:
    from mmprefix.serving.calls import ServedModel

    name, equals, place = text.partition("=")
    if not equals:
        path = Path(text)
        name, place = (path.parent.name if path.name == "model" and path.parent.name else path.name) or text, text
    return ServedModel(name, open_model(argparse.Namespace(**{**vars(args), "model": place})))


def _listening(host: str, port: int) -> socket.socket:
    """Socket bound to ``host`` and ``port``; InputError where that cannot be."""
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port {port}: give a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"--host {host} --port {port}: {reason}") from error
    return bound


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(str(listening.getsockname()[0])).is_loopback
