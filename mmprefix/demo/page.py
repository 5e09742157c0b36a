"""The page: three tabs over one state, and how it is served: offline, bounded, with nothing but its own files."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.middleware import Middleware
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from mmprefix.demo.calls import DemoState
from mmprefix.demo.components import refuse_addresses
from mmprefix.demo.limits import UploadRoom
from mmprefix.demo.look import CSS, HEAD, theme
from mmprefix.demo.tabs.batch_tab import batch_tab
from mmprefix.demo.tabs.caption_tab import caption_tab
from mmprefix.demo.tabs.commands_tab import commands_tab
from mmprefix.errors import InputError
from mmprefix.trust.hosts import is_own_name
from mmprefix.trust.limits import environment, limits_set

_KEEP = 3600  # seconds of an upload
_MOST_UPLOADS = 100  # files of the largest size that may lie on the disk at once, of all visitors
_INTRODUCTION = """# mmprefix
A frozen encoder looks at a picture or listens to a sound, a small trained network maps what it finds to a *prefix*, and
a frozen language model reads the prefix and writes. All of it runs on the machine that serves this page."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def build_page(state: DemoState) -> gr.Blocks:
    """The page over ``state``, not yet served."""
    with gr.Blocks(title="mmprefix", analytics_enabled=False, delete_cache=(300, _KEEP), fill_width=True) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Tabs():
            with gr.Tab("Caption"):
                caption_tab(state)
            with gr.Tab("Commands"):
                commands_tab(state)
            with gr.Tab("Many files"):
                batch_tab(state)
    page.queue(max_size=state.limits.queue, api_open=False)
    refuse_addresses(page)
    return page


@contextmanager
def serving(
    state: DemoState, host: str = "127.0.0.1", port: int | None = None, origins: Collection[str] = ()
) -> Iterator[str]:
    """Serve the page while the block runs; yields its address. Uploads are deleted an hour later, and at the end.

    Without ``port`` it is the first free one from 7860 on. ``origins``: addresses by which a browser reaches the page
    through a proxy, such as ``https://captions.example.org``. Raises InputError where the port is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mmprefix-demo-") as folder,
        environment(GRADIO_TEMP_DIR=folder),
        limits_set(**state.limits.of_readers),
    ):
        page, room = build_page(state), UploadRoom(Path(folder), _MOST_UPLOADS * state.limits.max_bytes)
        page.GRADIO_CACHE = folder
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=state.limits.max_bytes,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=theme(),
                css=CSS,
                head=HEAD,
                app_kwargs={
                    "middleware": [Middleware(PageHeaders, origins=frozenset(origins), room=room)],
                    "docs_url": None,
                    "redoc_url": None,
                },
            )
        except OSError as error:
            page.close(verbose=False)
            place = "a free port from 7860 on" if port is None else f"port {port}"
            raise InputError(f"{host}, {place}: cannot listen there; give --host and --port ({error})") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


class PageHeaders:
    """ASGI middleware that lets the browser fetch from this server alone, and send no address on.

    A page of another site whose name leads here for a moment (DNS rebinding) is refused: its calls have an ``Origin``,
    and a ``Host`` that is not this machine's.

    Gradio asks for the progress of an upload that is over already, or that it has refused itself: that is answered with
    "done" instead of an error.
    """

    def __init__(self, app: Any, origins: Collection[str] = (), room: UploadRoom | None = None) -> None:
        self.app, self.origins, self.room = app, origins, room

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on the call, and change its answer as the class says."""
        if scope["type"] == "http" and self._is_of_another_site(Headers(scope=scope)):
            text = "this page is not reached by that name (--allow-origin)"
            await PlainTextResponse(text, 403)(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"].endswith("/upload") and self.room and self.room.is_full:
            text = "the files of all visitors take all the room there is; try again later"
            await PlainTextResponse(text, 413)(scope, receive, send)
            return
        asks_progress = scope["type"] == "http" and scope["path"].endswith("/upload_progress")
        over = False

        async def answer(message: Any) -> None:
            nonlocal over
            if message["type"] == "http.response.start":
                over = asks_progress and message["status"] == 404
                if over:
                    message |= {"status": 200, "headers": [(b"content-type", b"text/event-stream")]}
                added = {b"content-security-policy": _POLICY.encode(), b"referrer-policy": b"no-referrer"}
                message["headers"] = [*message.get("headers", []), *added.items()]
            elif over:
                message["body"] = b'data: {"msg": "done"}\n\n'
            await send(message)

        await self.app(scope, receive, answer)

    def _is_of_another_site(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        return origin is not None and origin not in self.origins and not is_own_name(headers.get("host", ""))
