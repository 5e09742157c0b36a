"""A page of your own: one model, a file in, its caption piece by piece. To be read and copied.

    pip install "mmprefix[demo]"
    python demos/own_page.py [MODEL]

Without MODEL it is the embedded one. ``mmprefix demo`` is the whole page, with limits for strangers (docs/demo.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import gradio as gr

import mmprefix


def build(model: mmprefix.Predictor) -> gr.Interface:
    """The page of ``model``, not yet served."""

    def write(file: str) -> Iterator[str]:
        text = ""
        try:
            for piece in model.stream(file):
                text += piece
                yield text
        except mmprefix.InputError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return gr.Interface(write, gr.File(label="Picture or sound"), gr.Textbox(label="Caption"), flagging_mode="never")


if __name__ == "__main__":
    build(mmprefix.load(*sys.argv[1:2])).launch()
