"""Table of limits → arguments: their names, types, defaults, and what their help says."""

from __future__ import annotations

import argparse

import pytest

from mmprefix.cli.serving.limit_options import LimitOption, add_limits

OPTIONS = [
    LimitOption("max-files", int, 1200, "N", "Files of one request."),
    LimitOption("max-seconds", float, 0.5, "S", "Seconds of one request."),
]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="serve")
    add_limits(made.add_argument_group("limits"), OPTIONS)
    return made


def test_values_have_the_type_and_the_name_of_the_option() -> None:
    assert vars(parser().parse_args([])) == {option.destination: option.default for option in OPTIONS}
    values = parser().parse_args(["--max-files", "3", "--max-seconds", "2"])
    assert (values.max_files, values.max_seconds) == (3, 2.0)
    assert isinstance(values.max_seconds, float)


def test_the_help_ends_with_the_default() -> None:
    words = " ".join(parser().format_help().split())
    assert "--max-files N Files of one request. (default 1,200)" in words
    assert "--max-seconds S Seconds of one request. (default 0.5)" in words


def test_what_is_no_number_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--max-files", "many"])
    assert "--max-files" in capsys.readouterr().err
