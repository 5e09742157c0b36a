"""Tab "Caption": one picture or sound in; its caption as it is written, candidates, and a look inside the prefix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components import Component

from mmprefix.demo.calls import DemoState, on_page
from mmprefix.demo.components import camera, microphone
from mmprefix.demo.html_parts import note, player, table
from mmprefix.demo.inside import ALL, Inside, heat, look_inside
from mmprefix.demo.previews import preview, sample_file
from mmprefix.demo.writing import MAX_CANDIDATES, MAX_TOKENS, Timing, Wishes, candidates, write
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.types import Candidate

Update = Any
_KEEP = 3600  # seconds of the maps of a visitor
_ALT = "The input under colours: the warmer, the more the prefix changes when that part is hidden"


@dataclass(frozen=True)
class FileInput:
    """The one place for a file, and what fills it: drop or browse, camera, microphone, a sample."""

    file: gr.File
    picture: gr.Image
    sound: gr.HTML


def caption_tab(state: DemoState) -> None:
    """Lay the tab out, inside Blocks that are open, and connect it."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            gr.Markdown("## Input")
            source = file_input(state)
            wishes = _wishes(state)
            start = gr.Button("Write the caption", variant="primary")
            stop = gr.Button("Stop")
        with gr.Column(min_width=300):
            gr.Markdown("## Output")
            outputs = [
                gr.Textbox(label="Caption", elem_id="caption", interactive=False, lines=2),
                gr.HTML(note("Nothing is written yet."), label="Timing"),
                gr.HTML(label="Candidates"),
            ]
            gr.Markdown("## Inside the prefix")
            kept = gr.State(time_to_live=_KEEP)
            position = gr.Dropdown([ALL], value=ALL, label="Where it looks: position", filterable=False)
            picture = gr.Image(label="Heat over the input", interactive=False, buttons=[], alt_text=_ALT, visible=False)
            words = gr.HTML(label="Positions of the prefix")
            outputs += [kept, position, picture, words]
    call = start.click(
        on_page(caption_handler(state)),
        [source.file, *wishes],
        outputs,
        concurrency_id="write",
        concurrency_limit=1,
        api_visibility="private",
        show_progress="minimal",
    )
    position.input(
        on_page(_heat),
        [kept, position],
        picture,
        concurrency_id="look",
        api_visibility="private",
        show_progress="hidden",
    )
    stop.click(None, cancels=[call], api_visibility="private")


def file_input(state: DemoState, *, pictures: bool = True) -> FileInput:
    """Components for one file, without ``pictures`` for a sound. Its header is checked before it is shown."""
    own: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    label = "Picture or sound: drop it here, or browse" if pictures else "Sound: drop it here, or browse"
    file = gr.File(label=label, height=150)
    with gr.Row():
        if pictures:
            gr.Button("Sample picture", size="sm").click(lambda: sample_file("image"), None, file, **own)
        gr.Button("Sample sound", size="sm").click(lambda: sample_file("audio"), None, file, **own)
    with gr.Accordion("Camera and microphone" if pictures else "Microphone", open=False):
        if pictures:
            photograph = camera()
            photograph.input(lambda path: path, photograph, file, **own)
        recording = microphone()
        recording.input(lambda path: path, recording, file, **own)
    picture = gr.Image(
        label="The picture", alt_text="The picture", interactive=False, visible=False, height=240, buttons=[]
    )
    sound = gr.HTML(label="The sound", visible=False)
    look: dict[str, Any] = {**own, "queue": True, "concurrency_id": "look", "concurrency_limit": 4}
    file.change(on_page(_shower(state)), file, [picture, sound], **look)
    return FileInput(file, picture, sound)


def _shower(state: DemoState) -> Callable[[str | None], tuple[Update, Update]]:
    def show(file: str | None) -> tuple[Update, Update]:
        hidden = gr.update(value=None, visible=False)
        if not file:
            return hidden, hidden
        kind, value = preview(state.checked(file))
        shown = gr.update(value=value if kind == "image" else player("The sound", value), visible=True)
        return (shown, hidden) if kind == "image" else (hidden, shown)

    return show


def _wishes(state: DemoState) -> list[Component]:
    """Model, candidates, look inside, then the fields of ``Wishes`` in their order."""
    names = state.models.names
    model = gr.Dropdown(names, value=names[0], label="Model", filterable=False)
    prompt = gr.Textbox(label="Prompt", info="Text before the caption; empty: the model's own.", max_length=2000)
    with gr.Accordion("User", open=False):
        info = "Whom to write for; for models that were trained with users."
        user = gr.Dropdown(["nobody", *state.users], value="nobody", label="User", info=info)
        history = gr.Textbox(label="History", info="The user's earlier texts, one a line.", lines=3)
    with gr.Accordion("Search", open=False):
        count = gr.Slider(1, MAX_CANDIDATES, value=3, step=1, label="Candidates")
        longest = gr.Slider(1, MAX_TOKENS, value=30, step=1, label="Longest caption, in tokens")
        start = gr.Textbox(label="Begins with", max_length=200)
        hold = gr.Textbox(label="Must hold", info="Words, with commas between them.", max_length=200)
        avoid = gr.Textbox(label="Avoids", info="Words, with commas between them.", max_length=200)
        look = gr.Checkbox(True, label="Look inside the prefix", info="Hides one part of the input after the other.")
    return [model, count, look, prompt, user, history, longest, start, hold, avoid]


def caption_handler(state: DemoState) -> Callable[..., Iterator[tuple[Update, ...]]]:
    """Handler of the button: caption, timing, candidates, then what lies inside, as they come."""

    def write_caption(request: gr.Request, *values: Any) -> Iterator[tuple[Update, ...]]:
        file, model_name, count, look, *wishes = values
        state.count(request)
        path = state.checked(file)
        options = Wishes(*wishes).options()
        yield "", note("Loading the model ..."), "", *_NOTHING_INSIDE
        (model, deadline), timing = state.load(model_name), Timing()
        text, same = "", [gr.skip()] * len(_NOTHING_INSIDE)
        for text in write(model, path, options, deadline=deadline, timing=timing):
            yield text, note("Writing ..."), "", *same
        yield text, note(timing.line()), note("Searching ..."), *same
        with timing.of("candidates", deadline):
            rows = candidate_table(candidates(model, path, options, count))
        yield text, note(timing.line()), rows, *same
        if look:
            with timing.of("the look inside", deadline):
                inside = look_inside(model, path, options, deadline)
            yield text, note(timing.line()), rows, *_shown_inside(inside, path)

    return write_caption


_NOTHING_INSIDE = (None, gr.update(choices=[ALL], value=ALL), gr.update(value=None, visible=False), "")


def _shown_inside(inside: Inside, path: str) -> tuple[Update, ...]:
    """State, positions, heat and table of what was found."""
    positions = gr.update(choices=inside.positions, value=ALL)
    drawn = None if inside.maps is None else heat(path, inside.maps, ALL)
    return (path, inside.maps), positions, gr.update(value=drawn, visible=drawn is not None), inside.words


def _heat(kept: tuple[str, Any] | None, position: str) -> Any:
    """Heat of another position of the same input."""
    if kept is None or kept[1] is None:
        raise InputError("nothing to look at yet: write a caption first")
    return heat(*kept, position)


def candidate_table(rows: list[Candidate]) -> str:
    """Table of texts, their scores, and the probability of a token where the score is a mean log-probability."""
    cells = [
        (rank, row.text, f"{row.score:.3f}", f"{math.exp(min(0.0, row.score)):.0%}")
        for rank, row in enumerate(rows, start=1)
    ]
    return table("Candidates, the best first", ["Rank", "Text", "Score", "Probability a token"], cells)
