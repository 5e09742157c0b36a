"""Prompt templates: context, prompt and question rendered to text; templates without their field are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmprefix.errors import InputError
from mmprefix.prompt_template import PromptTemplate, fill_file_variables


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
def test_a_template_without_its_field_is_refused(templates: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptTemplate(**templates)


@pytest.mark.parametrize(
    ("path", "filled"),
    [
        ("photos/cats/tom 1.tar.gz", "cats/tom 1.tar.gz/tom 1.tar {}"),
        (Path("photos/cats/a.jpg"), "cats/a.jpg/a {}"),
        ("all.zip::in/b.png", "in/b.png/b {}"),
        ("all.zip::b.png", "all.zip/b.png/b {}"),
        ("https://host/pictures/c%20d.jpg?size=3", "pictures/c d.jpg/c d {}"),
    ],
)
def test_names_of_a_file_are_filled_into_a_prompt(path: str | Path, filled: str) -> None:
    assert fill_file_variables("{folder}/{name}/{stem} {{}}", path) == filled


def test_a_file_alone_lies_in_the_working_directory() -> None:
    assert fill_file_variables("{folder}", "a.jpg") == Path.cwd().name


def test_a_prompt_without_variables_needs_no_file() -> None:
    assert fill_file_variables("A photo: {{x}}", None) == "A photo: {x}"


@pytest.mark.parametrize("prompt", ["{user}", "{", "a } b", "{}", "{name.__class__}", "{name!r}", "{stem:>9}", "{0}"])
def test_other_variables_are_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="brace") as refused:
        fill_file_variables(prompt, "a.jpg")
    assert "\n" not in str(refused.value)


def test_a_variable_without_a_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"\{folder\} is filled from a file's name"):
        fill_file_variables("{folder}", None)
