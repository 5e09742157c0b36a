"""METEOR and SPICE: reference programs in Java that come with ``pip install mmprefix[metrics]`` (pycocoevalcap 1.2).

METEOR 1.5 (Denkowski and Lavie 2014, https://aclanthology.org/W14-3348) needs only Java 8 or newer. SPICE (Anderson et
al. 2016, https://arxiv.org/abs/1607.08822) needs Java 8 to 15 and two archives of Stanford CoreNLP 3.6.0 that no
package contains. If anything is missing, ``NotAvailable`` names it; the score is never silently 0.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from mmprefix.errors import InputError
from mmprefix.metrics.ngrams import Tokens

_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class NotAvailable(InputError):  # noqa: N818 (a public name)
    """Error of a requested metric that this machine cannot compute; the message says what it needs."""


def _java(metric: str) -> str:
    """Path of the Java program."""
    program = shutil.which("java")
    if program is None:
        raise NotAvailable(f"{metric} is not available: no java on the PATH; install a Java runtime or leave it out")
    return program


def _java_version(program: str) -> int:
    """Major version of Java: 8 for 1.8.0, 17 for 17.0.2, 0 if unknown."""
    report = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', report)
    return int(version[1]) if version else 0


def _folder(metric: str) -> Path:
    """Folder of the metric's archives in pycocoevalcap, which is not imported."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise NotAvailable(f"{metric} is not available: pycocoevalcap is missing; pip install 'mmprefix[metrics]'")
    return Path(next(iter(spec.submodule_search_locations))) / metric


def _joined(tokens: Tokens) -> str:
    """Text for the Java program: one line, without the separator of its protocol."""
    return " ".join(token for token in tokens if token != "|||")


def _exchange(lines: Sequence[str], stdin: IO[str], stdout: IO[str]) -> list[str]:
    """Send each line and read its answer; fewer answers than lines mean that the program has ended."""
    answers = []
    for line in lines:
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            break
        answers.append(answer.strip())
    return answers


def _run_meteor(command: Sequence[str], questions: Sequence[str]) -> list[float]:
    """Scores of the items and, last, of the set; raises ``NotAvailable`` if the program stops before."""
    scores: list[float] = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
        )
        asked, answered = cast(IO[str], process.stdin), cast(IO[str], process.stdout)  # both are pipes
        try:
            counts = _exchange(questions, asked, answered)
            if len(counts) == len(questions):
                asked.write(" ||| ".join(["EVAL", *counts]) + "\n")
                asked.flush()
                scores = [float(answered.readline() or "nan") for _ in range(len(questions) + 1)]
        except BrokenPipeError:
            scores = []
        finally:
            process.kill()
            process.communicate()
        if len(scores) != len(questions) + 1 or any(score != score for score in scores):
            errors.seek(0)
            raise NotAvailable(f"meteor is not available: its Java program stopped: {errors.read()[-200:].strip()}")
    return scores


def meteor(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, list[float]]:
    """METEOR 1.5 of the set and of each item, English, with paraphrases, as the COCO evaluation runs it (``-norm``).

    Raises ``NotAvailable`` without Java or pycocoevalcap. The program first reads 60 MB of paraphrases: a few seconds.
    """
    command = [_java("meteor"), "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar"]
    archive = _folder("meteor") / "meteor-1.5.jar"
    if not archive.is_file():
        raise NotAvailable(f"meteor is not available: {archive} is missing; reinstall pycocoevalcap==1.2")
    command += [str(archive), "-", "-", "-stdio", "-l", "en", "-norm"]
    questions = [
        " ||| ".join(["SCORE", *(_joined(text) for text in texts), _joined(tokens)])
        for tokens, texts in zip(predictions, references, strict=True)
    ]
    scores = _run_meteor(command, questions)
    return scores[-1], scores[:-1]


def read_spice(report: str, items: int) -> list[float]:
    """F-score of each item from the JSON report of SPICE, in the order of ``image_id`` 0, 1, ... ``items`` - 1.

    SPICE writes null where neither side has a tuple (0 / 0); it counts as 0.
    """
    scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(report)}
    return [float(scores[index]) if isinstance(scores[index], int | float) else 0.0 for index in range(items)]


def spice(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, list[float]]:
    """SPICE 1.0 of the set (the mean) and of each item.

    Raises ``NotAvailable`` without Java 8 to 15, pycocoevalcap, or CoreNLP's archives in its folder ``spice/lib``.
    """
    folder = _folder("spice")
    missing = [name for name in _CORENLP if not (folder / "lib" / name).is_file()]
    if missing:
        raise NotAvailable(
            f"spice is not available: {' and '.join(missing)} not in {folder / 'lib'}; "
            "they are in Stanford's stanford-corenlp-full-2015-12-09.zip"
        )
    program = _java("spice")
    version = _java_version(program)
    if not 8 <= version <= 15:
        raise NotAvailable(f"spice is not available: it needs Java 8 to 15, {program} is Java {version}")
    items = [
        {"image_id": index, "test": _joined(tokens), "refs": [_joined(text) for text in texts]}
        for index, (tokens, texts) in enumerate(zip(predictions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        source, report = Path(scratch, "in.json"), Path(scratch, "out.json")
        source.write_text(json.dumps(items), encoding="utf-8")
        command = [program, "-Xmx8G", "-jar", str(folder / "spice-1.0.jar"), str(source), "-out", str(report)]
        ended = subprocess.run(
            [*command, "-subset", "-silent"], cwd=scratch, capture_output=True, text=True, check=False
        )
        if ended.returncode or not report.is_file():
            raise NotAvailable(f"spice is not available: its Java program stopped: {ended.stderr[-200:].strip()}")
        scores = read_spice(report.read_text(encoding="utf-8"), len(items))
    return sum(scores) / len(scores), scores
