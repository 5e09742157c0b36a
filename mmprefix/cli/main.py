"""Entry point of the command line: imports a verb when it is called, prints errors as one plain line.

Exit codes: 0 done, 1 failed while working, 2 wrong usage or bad input, 3 some inputs could not be read and the others
are done, 130 stopped by Ctrl-C, 141 the reader of standard output has gone (``| head``), 143 by SIGTERM.

Results go to standard output, log and progress to standard error.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mmprefix.cli.help.examples import epilog
from mmprefix.cli.output_encoding import escape_what_cannot_be_written
from mmprefix.cli.spellings import known_spelling, recipe_as_option, with_known_spellings, with_underscores
from mmprefix.errors import InputError, did_you_mean
from mmprefix.interrupt import Stopped, stop_signals
from mmprefix.version import __version__

TRAINING = {
    "fit": "train the mappers of a recipe",
    "validate": "metrics and captions on a recipe's validation data",
    "test": "metrics and captions on a recipe's test data",
    "predict": "write captions for a manifest, as JSON lines",
    "encode": "run a recipe's frozen encoders and store their features",
}
VERBS = {
    "caption": ("mmprefix.cli.caption", "caption files, folders and manifests with a saved model"),
    "understand": ("mmprefix.cli.understand", "intent and slots of spoken or written commands"),
    "detect": ("mmprefix.cli.detect", "score utterances: log odds of what the model was trained to detect"),
    "transcribe": (
        "mmprefix.cli.transcribe",
        "transcribe with Whisper: text, and its confidence as signals for other models",
    ),
    "serve": ("mmprefix.cli.serving.serve", "answer requests over HTTP, OpenAI's chat form among them"),
    "inspect": ("mmprefix.cli.inspection.inspect", "look inside a prefix: its words, its norms, and where it looks"),
    "demo": ("mmprefix.cli.demo.demo", "a page that captions pictures and sounds in your browser"),
    "distil": ("mmprefix.cli.users.distil", "make a prefix of a long text: users' histories, a glossary"),
    "evaluate": ("mmprefix.cli.evaluate", "score a file of predictions"),
    "report": ("mmprefix.cli.reports.report", "draw the page of a run again: curves, captions, warnings"),
    "import": ("mmprefix.cli.import_checkpoint", "turn a checkpoint of ClipCap or Prefix-AAC into a saved model"),
    "prepare": ("mmprefix.cli.prepare", "make manifests of your own files and captions, or of a known data set"),
    "check-data": ("mmprefix.cli.check_data", "find every bad row of a manifest before training does"),
    "users": ("mmprefix.cli.users.commands", "the store of users: add, remove, list, show and export them"),
    "parts": ("mmprefix.cli.parts", "encoders, mappers, decoders ... that a recipe can name, and their options"),
    "recipes": ("mmprefix.cli.system.recipes", "recipes of the package: what each is, what it needs, a copy to edit"),
    "doctor": ("mmprefix.cli.system.doctor", "versions, devices, folders, and what is missing for which feature"),
    "completion": ("mmprefix.cli.system.completion", "script that completes verbs, options and recipes in a shell"),
}
PRINTING = (  # rows, tables
    *("caption", "understand", "detect", "transcribe", "inspect", "evaluate", "check-data", "users", "parts"),
    *("report", "recipes", "doctor", "completion", "serve"),
)
_SHIPPED = Path(__file__).parents[1] / "recipes"


class CommandParser(argparse.ArgumentParser):
    """Argument parser that raises wrong usage as InputError; ``main`` prints it and picks the exit code."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{self._nearest(message)}; see {self.prog} --help")

    def _nearest(self, message: str) -> str:
        """``; did you mean --OPTION?`` where ``message`` names an unknown one."""
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        return did_you_mean(unknown[1], self.known_options()) if unknown else ""

    def known_options(self) -> set[str]:
        """Options of this parser and of those of its commands."""
        choices = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        inside = (parser.known_options() for parsers in choices for parser in parsers.values())
        return set(self._option_string_actions).union(*inside)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb in ``argv`` (default: the process's arguments) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    escape_what_cannot_be_written()
    _log_plainly(words[0] if words else "")
    try:
        with stop_signals():
            code = _run(words)
            sys.stdout.flush()
            return code
    except Stopped as stop:
        print(f"mmprefix: {stop}", file=sys.stderr)  # noqa: T201
        return stop.exit_code
    except InputError as error:
        if debug:
            raise
        print(f"mmprefix: {plain(error)}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141
        if debug or error.filename is None:
            return _failed(error, debug)
        print(f"mmprefix: {_short(str(error.filename))}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("mmprefix: stopped", file=sys.stderr)  # noqa: T201
        return 130
    except Exception as error:
        return _failed(error, debug)


def _failed(error: Exception, debug: bool) -> int:
    """Print an error that nobody foresaw; the exit code."""
    if debug:
        raise error
    message = f"failed: {type(error).__name__}: {plain(error)} (--debug shows the traceback)"
    print(f"mmprefix: {message}", file=sys.stderr)  # noqa: T201
    return 1


def _reader_is_gone() -> bool:
    """True where nobody reads standard output any more; what is left goes nowhere, so that Python's end is silent."""
    try:
        number, poll = sys.stdout.fileno(), select.poll()
    except (OSError, ValueError):  # no file: of a test, of a notebook
        return False
    poll.register(number, select.POLLOUT)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return gone


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:100]}...{name[-50:]}"


def plain(error: BaseException) -> str:
    """Message of ``error``, without the traceback that a data loader's worker process wraps around it."""
    message = str(error)
    if message.startswith("Caught "):  # raised in a worker: "... Original Traceback ...\nKind: message"
        _, _, message = message.rpartition(f"{type(error).__name__}: ")
    return message.strip()


def _run(words: list[str]) -> int:
    verb = known_spelling(f"--{words[0]}", [f"--{name}" for name in VERBS])[2:] if words else ""
    if verb in TRAINING:
        return _train(verb, words[1:])
    if verb in VERBS:
        module = importlib.import_module(VERBS[verb][0])
        if verb == "prepare" and (code := module.run_data_set(words[1:])) is not None:
            return code
        parser = verb_parser(verb)
        return module.run(parser.parse_args(with_known_spellings(words[1:], parser.known_options())))
    return _top(words)


def verb_parser(verb: str) -> CommandParser:
    """Parser of a verb of ``VERBS``, whose help ends with an example."""
    parser = CommandParser(
        f"mmprefix {verb}",
        description=VERBS[verb][1],
        epilog=epilog(verb),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    importlib.import_module(VERBS[verb][0]).add_arguments(parser)
    return parser


def _train(verb: str, words: list[str]) -> int:
    """Run a training verb; names in the words and the recipe are checked before Lightning is imported."""
    from mmprefix.cli.class_names import check_class_names, with_full_names
    from mmprefix.cli.training.part_help import part_help, verb_help
    from mmprefix.cli.training.recipe_errors import recipes_of

    if {"-h", "--help"} & set(words):
        sys.stdout.write(f"{verb_help(verb, TRAINING[verb])}\n\n{epilog(verb)}\n")
        return 0
    words = find_recipes(recipe_as_option(with_underscores(words)))
    if (text := part_help(words)) is not None:
        sys.stdout.write(text + "\n")
        return 0
    if not any(word.startswith("-") for word in words):
        raise InputError(f"{verb}: no recipe; give one, as mmprefix {verb} RECIPE.yaml; shipped: {_shipped_names()}")
    check_class_names(recipes_of(words))
    from mmprefix.cli.training.train import train

    return train([verb, *with_full_names(words)])


def _top(words: list[str]) -> int:
    lines = [f"  {name:12} {text}" for name, text in [*TRAINING.items(), *((n, v[1]) for n, v in VERBS.items())]]
    verbs = "\n".join(["verbs (details: mmprefix VERB --help):", *lines])
    parser = CommandParser(
        "mmprefix",
        usage="mmprefix VERB ... [--debug] | --help | --version",
        description="Captions of pictures and sounds: train, use and evaluate prefix mappers.",
        epilog=f"{verbs}\n\n  --debug      show the traceback of an error",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmprefix {__version__}")
    if words and not words[0].startswith("-"):
        close = difflib.get_close_matches(words[0], [*TRAINING, *VERBS], n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"verbs: {', '.join([*TRAINING, *VERBS])}"
        raise InputError(f"no verb {words[0]!r}; {advice}")
    parser.parse_args(words or ["--help"])
    return 0


def find_recipes(words: list[str]) -> list[str]:
    """``words`` with each ``--config NAME`` that is not a file replaced by the shipped recipe of that name.

    Raises InputError for a name that is neither.
    """
    replaced = list(words)
    for i, word in enumerate(words):
        flag, equals, name = word.partition("=")
        if flag not in ("--config", "-c"):
            continue
        at = i if equals else i + 1
        name = name if equals else words[at] if at < len(words) else ""
        if not name or Path(name).is_file():
            continue
        path = Path(name.replace("-", "_")).with_suffix(".yaml")
        room = _SHIPPED / path.parent.name  # a folder of recipes, such as methods
        candidate = (room if path.parent.name and room.is_dir() else _SHIPPED) / path.name
        if not candidate.is_file():
            near = did_you_mean(Path(name).stem, _shipped_names().split(", "))
            raise InputError(f"--config {name}: no such file{near}; shipped recipes: {_shipped_names()}")
        replaced[at] = f"{flag}={candidate}" if equals else str(candidate)
    return replaced


def _shipped_names() -> str:
    return ", ".join(sorted(file.stem for file in _SHIPPED.glob("*.yaml")))


class _Lines(logging.Handler):
    """Log handler that looks standard output and error up at each line: a notebook or a test may replace them."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if getattr(record, "result", False) else sys.stderr
        with suppress(BrokenPipeError):  # a training does not end with the terminal that it is shown on
            stream.write(self.format(record) + "\n")


def _log_plainly(verb: str) -> None:
    """Send the library's log to standard error, and records with ``extra={"result": True}`` to standard output.

    Of a verb that prints rows or tables only warnings and errors are shown: nothing comes between its lines.
    """
    warnings.filterwarnings("ignore", "Image size .* decompression bomb")  # one line of our own names the limit
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # else torchao, where installed, is warned of
    logger = logging.getLogger("mmprefix")
    if not logger.handlers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(_Lines())
    for handler in logger.handlers:
        if isinstance(handler, _Lines):
            handler.setLevel(logging.WARNING if verb.replace("_", "-") in PRINTING else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
