"""Command line in this process: words in; exit code, output and errors out."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprefix.cli.main import TRAINING, main


class Shell:
    """Callable that runs ``mmprefix WORDS`` and returns exit code, standard output and standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = main([str(word) for word in words])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def refuses(self, *words: str | Path) -> str:
        """Message, one line, of a run that is refused with exit code 2; a training's log may stand before it."""
        code, out, err = self(*words)
        assert code == 2, err
        assert "Traceback" not in out + err
        lines = [line for line in err.splitlines() if "Loading weights" not in line and line.strip()]
        if words[0] in TRAINING:
            assert not any(line.startswith("mmprefix: ") for line in lines[:-1]), err
            lines = lines[-1:]
        assert len(lines) == 1, err
        assert lines[0].startswith("mmprefix: ")
        return lines[0].removeprefix("mmprefix: ")
