"""Prompt template: context, prompt and question → the text that the decoder reads."""

from __future__ import annotations

from dataclasses import dataclass

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
