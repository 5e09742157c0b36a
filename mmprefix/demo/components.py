"""Gradio components that hand a file on as it is: nothing of a visitor's is decoded before its header is checked.

They have no buttons of Gradio's own: "share" would send a recording to another site.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from mmprefix.errors import InputError


def camera() -> gr.Image:
    """Camera whose picture is handed on as the path of a file; Gradio's own would decode it."""
    component = gr.Image(sources=["webcam"], type="filepath", label="Camera", height=240, buttons=[])
    component.preprocess = _path
    return component


def microphone() -> gr.Audio:
    """Microphone whose sound is handed on as the path of a file; Gradio's own would decode it."""
    component = gr.Audio(sources=["microphone"], type="filepath", label="Microphone", format="wav", buttons=[])
    component.preprocess = _path
    return component


def _path(payload: Any) -> str | None:
    return None if payload is None else payload.path


def refuse_addresses(page: gr.Blocks) -> None:
    """Let no component of ``page`` fetch an address that a visitor gives in the place of a file."""
    for block in page.blocks.values():
        own = block.async_move_resource_to_block_cache

        async def move(place: Any, own: Any = own) -> str | None:
            if isinstance(place, str) and "://" in place:
                raise InputError("an address in the place of a file: this page fetches nothing")
            return await own(place)

        vars(block)["async_move_resource_to_block_cache"] = move  # in the place of the class's method
