"""YAML of strangers: plain data, bounded in size, depth and time, or one plain line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from mmprefix.errors import InputError
from mmprefix.trust.plain_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "values once its aliases are followed"),
        (MERGES, "values once its merge keys are followed"),
        ("a: &a [*a]\n", "aliases are followed"),
        ("[" * 5000 + "]" * 5000, "nested deeper than 64 levels"),
        ("[" * 100 + "]" * 100, "nested deeper than 64 levels"),
        ("[" * 100 + "}", "nested deeper than 64 levels"),
        ("[" + "1," * 1_000_000 + "}", "more than 200,000 keys and values"),  # it stops before the wrong end
        ("a: " + "9" * 5000, "not YAML"),
        ("a: !!python/object/apply:os.system [true]", "not YAML"),
        ("a: [", "not YAML"),
    ],
    ids=["aliases", "merges", "itself", "deep", "a little deep", "deep, wrong", "values", "number", "object", "open"],
)
def test_one_line_in_bounded_time(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        parse_yaml(text, "recipe.yaml")
    assert str(error.value).startswith("recipe.yaml: ")
    assert "\n" not in str(error.value)
    assert time.process_time() - start < 60  # some take a second, and hours without a limit


@pytest.mark.parametrize("libyaml", [True, False])
def test_plain_data_is_read_as_yaml_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libyaml: bool) -> None:
    monkeypatch.setattr(yaml, "__with_libyaml__", libyaml and yaml.__with_libyaml__)
    data = {"a": [1, 2.5, None, True, "text"], "b": {"c": {"d": ["é", "0x"]}}}
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert read_yaml(file) == data
    assert parse_yaml("x: &a [1, 2]\ny: *a\nz: {<<: {k: 1}, l: 2}", "f") == {
        "x": [1, 2],
        "y": [1, 2],
        "z": {"k": 1, "l": 2},
    }
    assert parse_yaml("day: 2026-11-29", "f") == {"day": "2026-11-29"}
    assert parse_yaml("", "f") is None
    depth = MAX_DEPTH + 1
    assert parse_yaml("[" * depth + "x" + "]" * depth, "f") == json.loads("[" * depth + '"x"' + "]" * depth)
    for text in ("[" * (depth + 1) + "]" * (depth + 1), "[" * 1_000_000):
        with pytest.raises(InputError, match="nested deeper than 64 levels"):
            parse_yaml(text, "f")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes("a: é".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_yaml(file)
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), MAX_BYTES + 1)
    with pytest.raises(InputError, match="bytes are too many"):
        read_yaml(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")
@pytest.mark.parametrize("folder", ["f04-yaml-alias-bombs", "f05-mmprefix-yaml-other-exceptions"])
def test_inputs_that_failed(folder: str) -> None:
    files = sorted((CASES / folder).glob("*.yaml"))
    results: dict[str, str] = {}
    for file in files:
        try:
            results[file.stem] = type(read_yaml(file)).__name__
        except InputError as error:
            results[file.stem] = str(error).removeprefix(f"{file}: ")
    assert results
    assert all(
        result == "dict" or "levels" in result or "values" in result or "YAML" in result for result in results.values()
    )


def test_a_key_that_stands_twice_is_refused_and_one_that_is_merged_is_not() -> None:
    with pytest.raises(InputError, match=r"name: not YAML .*b stands there twice, in lines 3 and 4"):
        parse_yaml("a:\n  c: 1\n  b: 2\n  b: 3\n", "name")
    with pytest.raises(InputError, match=r"name: not YAML .*lr stands there twice, in line 1"):
        parse_yaml("a: {lr: 1, lr: 2}", "name")
    assert parse_yaml("{1: a, '1': b}", "name") == {1: "a", "1": "b"}
    text = "base: &base {x: 1, y: 2}\ndeep: {inner: &inner {<<: *base, x: 3}}\nuse: {<<: *inner, y: 4}\n"
    assert parse_yaml(text, "name")["use"] == {"x": 3, "y": 4}
