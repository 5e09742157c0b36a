"""YAML of strangers: plain data, bounded in size, depth and time, or one plain line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from mmprefix.errors import InputError
from mmprefix.trust.plain_yaml import MAX_BYTES, parse_yaml, read_yaml

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
        ("[" + "1," * 1_000_000 + "]", "more than 200,000 keys and values"),
        ("a: " + "9" * 5000, "not YAML"),
        ("a: !!python/object/apply:os.system [true]", "not YAML"),
        ("a: [", "not YAML"),
    ],
    ids=["aliases", "merge keys", "itself", "nested", "nested a little", "values", "number", "object", "open"],
)
def test_one_line_in_bounded_time(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        parse_yaml(text, "recipe.yaml")
    assert str(error.value).startswith("recipe.yaml: ")
    assert "\n" not in str(error.value)
    assert time.process_time() - start < 10  # without a limit they take hours


def test_plain_data_is_read_as_yaml_reads_it(tmp_path: Path) -> None:
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
