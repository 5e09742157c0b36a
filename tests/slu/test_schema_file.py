"""Files of options: texts by key, errors that name key, value and line, YAML and JSON alike."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmprefix.errors import InputError
from mmprefix.slu.schema_file import SchemaSection, read_options


def written(folder: Path, text: str | bytes, name: str = "a.yaml") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refused(call: Callable[[], Any], message: str) -> None:
    """Raise unless ``call`` is refused with exactly this message."""
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == message


SECTION = SchemaSection(
    {
        "word": " two \n words ",
        "blank": " \t",
        "list": ["a", " b  c "],
        "empty": [],
        "mixed": ["a", ["b"]],
        "holes": ["a", " "],
        "on": "true",
        "off": "false",
        "yes": True,
        "inner": {"x": {"y": "z"}, "nothing": None},
        "none": None,
        "map": {},
        "number": "07",
    },
    "top.",
)


# ------------------------------------------------------------------------------------------------------- one section


def test_a_text_has_single_spaces_and_a_default() -> None:
    assert SECTION.text("word", "x") == "two words"
    assert SECTION.text("number", "x") == "07"
    assert SECTION.text("missing", " as it  is ") == " as it  is "
    refused(lambda: SECTION.text("blank", "x"), "top.blank: is empty")  # a default is for a missing key alone
    refused(lambda: SECTION.text("none", "x"), "top.none: must be a text, found nothing")
    refused(lambda: SECTION.text("list", "x"), 'top.list: must be a text, found a list (["a", " b  c "])')
    refused(lambda: SECTION.text("yes", "x"), "top.yes: must be a text, found a truth value (true)")


def test_a_list_of_texts() -> None:
    assert SECTION.texts("list") == ("a", "b c")
    assert SECTION.texts("missing") == ()
    assert SECTION.texts("missing", ("a", "b")) == ("a", "b")
    refused(
        lambda: SECTION.texts("empty", ("a",)), "top.empty: the list is empty; give at least one, or leave empty out"
    )
    refused(lambda: SECTION.texts("word"), 'top.word: must be a list of texts, found a text (" two \\n words ")')
    refused(lambda: SECTION.texts("mixed"), 'top.mixed: must be a text, found a list (["b"])')
    refused(lambda: SECTION.texts("holes"), "top.holes: is empty")


def test_a_truth_value() -> None:
    assert [SECTION.flag(key) for key in ("on", "yes", "off", "missing")] == [True, True, False, False]
    refused(lambda: SECTION.flag("word"), 'top.word: must be true or false, found a text (" two \\n words ")')
    refused(lambda: SECTION.flag("none"), "top.none: must be true or false, found nothing")


def test_a_section_knows_its_place() -> None:
    inner = SECTION.inside("inner")
    assert inner.place == "top.inner."
    assert inner.inside("x").text("y", "") == "z"
    refused(lambda: inner.text("x", ""), 'top.inner.x: must be a text, found options ({"y": "z"})')
    for key in ("missing", "none", "map"):
        assert SECTION.inside(key).values == {}
    refused(lambda: SECTION.inside("list"), 'top.list: must hold options, found a list (["a", " b  c "])')
    refused(lambda: SECTION.inside("number"), 'top.number: must hold options, found a text ("07")')


def test_each_entry_below_a_key() -> None:
    entries = dict(SECTION.each("inner"))
    assert [(name, section.place) for name, section in entries.items()] == [
        ("x", "top.inner.x."),
        ("nothing", "top.inner.nothing."),
    ]
    assert entries["nothing"].values == {}
    assert list(SECTION.each("missing")) == []
    for key in ("map", "none"):
        refused(lambda key=key: SECTION.each(key), f"top.{key}: is empty; name at least one, or leave {key} out")


def test_keys_that_are_not_allowed() -> None:
    section = SchemaSection({"color": "a", "size": "b"}, "x.")
    assert section.allow(("size", "color", "more")) is section
    refused(lambda: section.allow(("size", "colour")), "x.color: not known; did you mean 'x.colour'?")
    refused(lambda: section.allow(("color", "zzz")), "x.size: not known; options: color, zzz")
    assert "color" in section
    assert "zzz" not in section


def test_a_long_value_is_cut_in_the_message() -> None:
    long = SchemaSection({"a": ["é" * 100]})
    with pytest.raises(InputError) as error:
        long.text("a", "")
    assert str(error.value) == f'a: must be a text, found a list (["{"é" * 38})'


# ------------------------------------------------------------------------------------------------------------- files

WORDS = (
    "yes",
    "no",
    "on",
    "off",
    "null",
    "~",
    "0",
    "007",
    "1e3",
    ".5",
    "0x1F",
    "1_000",
    "12:30:45",
    "2024-01-01",
    "NaN",
)


@pytest.mark.parametrize("word", WORDS)
def test_words_stay_texts(tmp_path: Path, word: str) -> None:
    read = read_options(written(tmp_path, f"a: {word}\n{word}: b\nc: [{word}, {{d: {word}}}]\n"))
    assert read.values == {"a": word, word: "b", "c": [word, {"d": word}]}


@pytest.mark.parametrize("number", ["0", "-7", "1.50", "1e3", "123456789012345678901234567890", "NaN", "-Infinity"])
def test_numbers_of_json_stay_texts(tmp_path: Path, number: str) -> None:
    assert read_options(written(tmp_path, f'{{"a": [{number}]}}', "a.json")).values == {"a": [number]}


def test_json_is_read_as_json_and_all_else_as_yaml(tmp_path: Path) -> None:
    for value in (True, False, None):
        read = read_options(written(tmp_path, json.dumps({"a": value}), "a.json"))
        assert read.values == {"a": value}  # unlike words, these have a type in JSON
    text = '{"a": {"b": ["c", "d"]}, "e": "f"}'
    assert read_options(written(tmp_path, text, "a.yaml")).values == json.loads(text)
    assert read_options(written(tmp_path, text, "a.txt")).values == json.loads(text)
    with pytest.raises(InputError, match=r"^line 1: not JSON \("):
        read_options(written(tmp_path, "a: b", "a.json"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_options(written(tmp_path, b"\xef\xbb\xbfa: b\n")).values == {"a": "b"}
    assert read_options(written(tmp_path, b'\xef\xbb\xbf{"a": "b"}', "a.json")).values == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: key 'c' is used twice"),
        ("a: {b: {c: 1, c: 2}}\n", "line 1: key 'c' is used twice"),
        ("1: a\n01: b\n1: c\n", "line 3: key '1' is used twice"),  # texts: 1 and 01 are two keys
        ("a:\n- {b: 1}\n- {b: 1, b: 2}\n", "line 3: key 'b' is used twice"),
        ("a: 1\n{b: c}: d\n", "line 2: a key must be a text"),
        ("a: b: c\n", "line 1: not YAML (mapping values are not allowed here)"),
        ("a: 1\n\tb: 2\n", "line 2: not YAML (found character '\\t' that cannot start any token)"),
        ("a: 'b\n", "line 2: not YAML (found unexpected end of stream)"),
        ("a: *b\n", "line 1: not YAML (found undefined alias 'b')"),
        ("- a\n- b\n", 'expected options, found a list (["a", "b"])'),
        ("# a remark\n", "expected options, found nothing"),
        ("a: 1\n---\nb: 2\n", "line 2: not YAML (but found another document)"),
    ],
)
def test_what_is_wrong_with_yaml_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    refused(lambda: read_options(written(tmp_path, text)), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1,\n "b": 2}}', "key 'b' is used twice"),
        ('{"a": 1\n "b": 2}', "line 2: not JSON (Expecting ',' delimiter)"),
        ("", "line 1: not JSON (Expecting value)"),
        ('"a"', 'expected options, found a text ("a")'),
        ("null", "expected options, found nothing"),
        ("true", "expected options, found a truth value (true)"),
    ],
)
def test_what_is_wrong_with_json_is_said(tmp_path: Path, text: str, message: str) -> None:
    refused(lambda: read_options(written(tmp_path, text, "a.json")), message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(lambda: read_options(tmp_path / "gone.yaml"), "no such file or directory")
    refused(lambda: read_options(tmp_path), "is a directory")
    refused(lambda: read_options(written(tmp_path, b"a: caf\xe9\n")), "not UTF-8 text (byte 6)")


def test_the_file_asks_for_no_python_object_and_no_endless_text(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    file = written(tmp_path, f"a: !!python/object/apply:os.mkdir ['{marker}']\n")
    assert read_options(file).values == {"a": [str(marker)]}  # a tag is nothing but a tag
    assert not marker.exists()
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    with pytest.raises(InputError, match=re.escape("values once its aliases are followed")):
        read_options(written(tmp_path, bomb))
    with pytest.raises(InputError, match="nested deeper than 64 levels"):
        read_options(written(tmp_path, '{"a": ' + "[" * 100 + "]" * 100 + "}", "a.json"))
    with pytest.raises(InputError, match="nested"):
        read_options(written(tmp_path, '{"a": ' + "[" * 100_000, "a.json"))
