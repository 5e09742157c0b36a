"""Prompt template: texts, context, prompt and question → what the decoder reads; prompts that name a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from urllib.parse import unquote, urlsplit

from mmprefix.errors import InputError


@dataclass(frozen=True)
class PromptTemplate:
    """Templates of context, question and earlier texts; the prompt stands behind the context as it is.

    An empty context or question, and a user without texts, are left out together with the text around them.

    Args:
        context: holds ``{context}``, as ``"transcript: {context}\\n"``; empty: it is not read as text.
        question: holds ``{question}``, such as ``"question: {question}\\nanswer:"``.
        history: holds ``{history}``, a user's earlier texts, one a line, as ``"{history}\\n"``. It stands before the
            context, within its template. Empty: earlier texts are not read in the prompt.
        history_texts: most of these texts; the newest are taken, in training others in each epoch.
    """

    context: str = ""
    question: str = "{question}"
    history: str = ""
    history_texts: int = 5

    def __post_init__(self) -> None:
        needed = {"context": bool(self.context), "question": True, "history": bool(self.history)}
        for name in (name for name, is_needed in needed.items() if is_needed):
            template = getattr(self, name)
            if template.count("{" + name + "}") != 1:
                raise InputError(f"wording.{name} {template!r}: must hold {{{name}}} once")
        if self.history and not self.context:
            raise InputError("wording.history: stands within the context; give wording.context too, as {context}")
        if self.history_texts < 1:
            raise InputError(f"wording.history_texts {self.history_texts}: give a number from 1 on")

    def with_history(self, texts: Sequence[str], context: str) -> str:
        """``context`` behind the newest ``texts`` of a user, each on one line; as it is where there are none."""
        lines = [" ".join(text.split()) for text in texts]
        newest = [line for line in lines if line][-self.history_texts :]
        return self.history.replace("{history}", "\n".join(newest)) + context if newest and self.history else context

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
