"""Prompt templates: context, prompt and question rendered to text; templates without their field are refused."""

from __future__ import annotations

import pytest

from mmprefix.errors import InputError
from mmprefix.prompt_template import PromptTemplate


def test_texts_replace_the_fields_of_a_template() -> None:
    template = PromptTemplate("said: {context}\n", "question: {question}\nanswer:")
    assert template.render_prompt("turn {it} on", "be brief. ") == "said: turn {it} on\nbe brief. "
    assert template.render_prompt("", "be brief. ") == "be brief. "
    assert template.render_question("which {context}?") == "question: which {context}?\nanswer:"
    assert template.render_question("") == ""
    assert PromptTemplate().render_prompt("never read", "p") == "p"
    assert PromptTemplate().render_question("which?") == "which?"


@pytest.mark.parametrize(("templates", "message"), [
    ({"context": "said:"}, r"wording.context 'said:': must hold \{context\} once"),
    ({"context": "{context}{context}"}, "wording.context"),
    ({"question": ""}, r"wording.question '': must hold \{question\} once"),
    ({"question": "{context}"}, "wording.question"),
])  # fmt: skip
def test_a_template_without_its_field_is_refused(templates: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptTemplate(**templates)
