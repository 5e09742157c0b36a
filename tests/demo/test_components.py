"""Components of the page: files go on as they are, and no address is fetched in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr
from gradio.data_classes import FileData, ImageData

from mmprefix.demo.components import camera, microphone, refuse_addresses
from mmprefix.errors import InputError
from tiny import demo_files


@pytest.mark.parametrize(("make", "data"), [(camera, ImageData), (microphone, FileData)])
def test_a_recording_goes_on_undecoded(make: Callable[[], Any], data: Any, tmp_path: Path) -> None:
    """Gradio's own components would raise here for what is no picture and no sound."""
    file = demo_files.text_file(tmp_path / "recording.wav")
    component = make()
    assert component.preprocess(data(path=str(file))) == str(file)
    assert component.preprocess(None) is None
    assert component.buttons == []  # one of Gradio's own would share it on another site
    assert component.sources == (["webcam"] if make is camera else ["microphone"])


def test_an_address_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with gr.Blocks() as page:
        file, picture = gr.File(), gr.Image(type="filepath")
    refuse_addresses(page)
    for block in (file, picture):
        for address in ("http://127.0.0.1:1/x.png", "https://example.org/x.png", "file:///etc/passwd"):
            with pytest.raises(InputError, match="this page fetches nothing"):
                asyncio.run(block.async_move_resource_to_block_cache(address))
    kept = asyncio.run(file.async_move_resource_to_block_cache(str(demo_files.text_file(tmp_path / "a.txt"))))
    assert kept is not None
    assert Path(kept).read_text() == (tmp_path / "a.txt").read_text()
