"""Prompt template: context, prompt and question → the text that the decoder reads; prompts that name a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from urllib.parse import unquote, urlsplit

from mmprefix.errors import InputError


@dataclass(frozen=True)
class PromptTemplate:
    """Templates of context and question; the prompt stands between the two as it is.

    An empty context or question is left out together with the text around it.

    Args:
        context: holds ``{context}``, as ``"transcript: {context}\\n"``; empty: it is not read as text.
        question: holds ``{question}``, such as ``"question: {question}\\nanswer:"``.
    """

    context: str = ""
    question: str = "{question}"

    def __post_init__(self) -> None:
        for name, needed in (("context", bool(self.context)), ("question", True)):
            template = getattr(self, name)
            if needed and template.count("{" + name + "}") != 1:
                raise InputError(f"wording.{name} {template!r}: must hold {{{name}}} once")

    def render_prompt(self, context: str, prompt: str) -> str:
        """The text before all questions: context, then prompt."""
        before = self.context.replace("{context}", context) if context and self.context else ""
        return before + prompt

    def render_question(self, question: str) -> str:
        """The text between prompt and answer."""
        return self.question.replace("{question}", question) if question else ""


FILE_VARIABLES = ("name", "stem", "folder")


def fill_file_variables(prompt: str, path: str | Path | None) -> str:
    """``prompt`` with {name}, {stem} (the name without its suffix) and {folder} of the file ``path`` filled in.

    ``path`` may be a member of an archive (``photos.zip::in/a.jpg``) or an address; None: there is no file. A literal
    brace is doubled. Raises InputError for another variable, for a single brace, and for a variable without a file.
    """
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise InputError(f"prompt {prompt!r}: a literal brace is doubled, {{{{ or }}}} ({error})") from error
    values = {} if path is None else _file_names(str(path))
    filled = ""
    for text, variable, form, conversion in parts:
        filled += text
        if variable is None:
            continue
        if variable not in FILE_VARIABLES or form or conversion:
            shown = variable + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            known = ", ".join(f"{{{name}}}" for name in FILE_VARIABLES)
            raise InputError(f"prompt {prompt!r}: no variable {{{shown}}}; there are {known}, and a brace is doubled")
        if variable not in values:
            raise InputError(f"prompt {prompt!r}: {{{variable}}} is filled from a file's name, and this input has none")
        filled += values[variable]
    return filled


def _file_names(path: str) -> dict[str, str]:
    """Values of the variables for a file, a member of an archive or an address."""
    if path.lower().startswith(("http://", "https://")):
        place = Path(unquote(urlsplit(path).path))
    else:
        archive, _, member = path.partition("::")
        place = Path(archive) / member if member else Path(os.path.abspath(path))
    return {"name": place.name, "stem": place.stem, "folder": place.parent.name}
