"""Tab "Commands": a spoken or written command and a schema in; intent and slots out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from mmprefix.demo.calls import DemoState, on_page, require_short
from mmprefix.demo.html_parts import note, table
from mmprefix.demo.limits import sentence
from mmprefix.demo.tabs.caption_tab import file_input
from mmprefix.errors import InputError
from mmprefix.slu.schema import Schema, read_schema, shipped_schemas

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor

OWN = "the schema below"
TRAINED = "the model's own"
_MOST_LABELS = 300  # intents and slots of a schema: each is a question
_EXAMPLE = """name: lamp
intents:
  switch_on: {description: switch the lamp on}
  switch_off: {description: switch the lamp off}
slots:
  room: {description: a room, values: [kitchen, bedroom]}
"""


def commands_tab(state: DemoState) -> None:
    """Lay the tab out, inside Blocks that are open, and connect it."""
    names = state.models.names
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            gr.Markdown("## Command")
            source = file_input(state, pictures=False)
            transcript = gr.Textbox(label="Transcript", info="For models that read one, beside or instead of a sound.")
            model = gr.Dropdown(names, value=names[0], label="Model", filterable=False)
            schemas = [TRAINED, *shipped_schemas(), OWN]
            schema = gr.Dropdown(schemas, value=OWN, label="Schema", filterable=False)
            own = gr.Textbox(_EXAMPLE, label="Your schema (YAML)", lines=6, max_lines=20, elem_classes="code")
            start = gr.Button("Understand", variant="primary")
        with gr.Column(min_width=300):
            gr.Markdown("## Intent and slots")
            outputs = [
                gr.HTML(note("Nothing is understood yet."), label="Timing"),
                gr.HTML(label="Intent and slots"),
                gr.Textbox(label="JSON", interactive=False, lines=4, max_lines=20, elem_classes="code"),
            ]
    start.click(
        on_page(commands_handler(state)),
        [source.file, transcript, model, schema, own],
        outputs,
        concurrency_id="write",
        concurrency_limit=1,
        api_visibility="private",
        show_progress="minimal",
    )


def commands_handler(state: DemoState) -> Callable[..., tuple[str, str, str]]:
    """Handler of the button: timing, table and JSON of what was understood."""

    def understand(request: gr.Request, *values: Any) -> tuple[str, str, str]:
        file, transcript, model_name, schema_name, own = values
        state.count(request)
        words = require_short("transcript", transcript).strip()
        path = None if words and not file else state.checked(file)
        schema = chosen_schema(schema_name, own)
        model, deadline = state.load(model_name)
        options: dict[str, Any] = {"context": words} if words else {}
        result = model.understand(path, schema=schema, **options)
        line = f"understood in {deadline.spent:.2f} s"
        if not trained_on_commands(model):
            line += "; this model was not trained on commands, so that its answers are guesses"
        return note(line), _result_table(result), json.dumps(result, indent=2, ensure_ascii=False)

    return understand


def trained_on_commands(model: Predictor) -> bool:
    """True for a model that was trained to answer a schema's questions."""
    from mmprefix.saved_model import Understanding  # it imports torch, which the page does not wait for

    return isinstance(model.settings.task, Understanding)


def chosen_schema(name: str, own: str) -> Schema | str | None:
    """Schema of the tab, None for the model's own. Raises InputError for an unknown name and a wrong text."""
    if name == TRAINED:
        return None
    if name == OWN:
        schema = _written_schema(require_short("schema", own))
        if len(schema.intents) + len(schema.slots) > _MOST_LABELS:
            raise InputError(f"your schema: more than {_MOST_LABELS} intents and slots")
        return schema
    if name not in shipped_schemas():
        raise InputError(f"schema {str(name)[:100]!r}: this page does not have it; choose one from its list")
    return read_schema(name)


def _written_schema(text: str) -> Schema:
    """Schema of a text, read as a file is: its reader bounds what YAML may do."""
    with tempfile.NamedTemporaryFile("w", prefix="mmprefix-", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            return read_schema(file.name)
        except InputError as error:
            raise InputError(sentence(error, file.name, "your schema")) from None


def _result_table(result: dict[str, Any]) -> str:
    scores = result["scores"]
    intent = scores["intent"]
    likely = f"{intent[result['intent']]:.3f}" if result["intent"] in intent else ""
    rows = [("intent", result["intent"] or "none", likely)]
    for slot, value in result["slots"].items():
        text = value if isinstance(value, str) else ", ".join(value)
        score = scores["slots"].get(slot)
        rows.append((slot, text, "" if score is None else f"{score:.3f}"))
    return table("Intent and slots", ["Name", "Value", "Log-probability"], rows)
