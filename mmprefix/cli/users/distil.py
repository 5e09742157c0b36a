"""``mmprefix distil MODEL``: users' histories, or any long text, as a few positions of a decoder's cache."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mmprefix.cli.inference.histories import read_history
from mmprefix.cli.inference.open_model import open_decoder, open_model
from mmprefix.cli.inference.output import prepare_output
from mmprefix.cli.inference.run import Progress
from mmprefix.cli.model_inputs import add_model
from mmprefix.cli.spellings import utf8_text
from mmprefix.errors import InputError
from mmprefix.inference.model_folder import find_model
from mmprefix.interrupt import Stopped

if TYPE_CHECKING:
    from mmprefix.distillation.user_numbers import HistoryOptions

_MODEL = (
    "with --users a saved model whose branch 'user' has a DeepUserPrefix; with --context a language model (a folder, a "
    ".gguf file, a hub name, models:NAME), or a saved model or recipe, whose decoder is taken; with --compose none"
)
_FOR_MODELS = (
    *("model", "users", "user", "context", "teacher", "positions", "start", "texts", "steps"),
    *("device", "dtype", "allow", "part"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to ``parser``."""
    add_model(parser, _MODEL, required=False)
    users = parser.add_argument_group("users", "A prefix of each user's history, kept in the store of users.")
    users.add_argument("--users", metavar="STORE", help="store of users; caption --users STORE writes with it")
    users.add_argument("--user", action="append", type=utf8_text, metavar="NAME", help="only this one; may be repeated")
    text = parser.add_argument_group("a text", "A glossary, a guide of style ... as a file that a recipe can name.")
    text.add_argument("--context", metavar="FILE", help="the text, UTF-8")
    text.add_argument("--out", metavar="FILE", help="file to write, .safetensors")
    text.add_argument(
        "--teacher",
        metavar="FILE",
        help="keeps what the decoder expects of --texts behind the text, so that it is not computed again",
    )
    files = parser.add_argument_group("files", "Prefixes that were made apart, one behind the other.")
    files.add_argument(
        "--compose",
        nargs="+",
        metavar="FILE",
        help="files of --context and of one decoder, joined into --out; their numbers stay, and no model is read",
    )
    parser.add_argument(
        "--positions", type=int, metavar="P", help="of the cache (default 16); fewer for a shorter history"
    )
    parser.add_argument(
        "--start",
        choices=["compact", "text", "random"],
        help="closed form (default), the first tokens, or random numbers, which need --texts",
    )
    parser.add_argument("--texts", metavar="FILE", help="texts to train on, one a line, like those to be written later")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of training on --texts")
    parser.add_argument("--overwrite", action="store_true", help="make anew what is there: prefixes of users, --out")


def run(args: argparse.Namespace) -> int:
    """Make the prefixes and say what was made; returns the exit code 0. Raises InputError."""
    if args.compose is not None:
        return _compose(args)
    if (args.users is None) == (args.context is None):
        raise InputError("distil: give --users STORE, or --context FILE with --out FILE, or --compose FILE FILE")
    if args.model is None:
        raise InputError("distil: MODEL is missing; only --compose needs none")
    for option, other in (("user", "users"), ("out", "context"), ("teacher", "context")):
        if getattr(args, option) is not None and getattr(args, other) is None:
            raise InputError(f"--{option} belongs to --{other}, which is missing")
    if args.teacher is not None and args.texts is None:
        raise InputError("--teacher belongs to --texts, which is missing")
    if args.teacher is not None and args.out is not None and Path(args.teacher).resolve() == Path(args.out).resolve():
        raise InputError(f"--teacher {args.teacher}: is --out too; give a file of its own")
    texts = [] if args.texts is None else read_history(args.texts, "--texts")
    return _distil_users(args, texts) if args.context is None else _distil_text(args, texts)


def _options(args: argparse.Namespace, texts: list[str]) -> HistoryOptions:
    from mmprefix.distillation import DistilOptions
    from mmprefix.distillation.user_numbers import HistoryOptions

    training = DistilOptions(batch_size=args.batch_size)
    positions = 16 if args.positions is None else args.positions
    return HistoryOptions(positions, args.start or "compact", texts, args.steps or 0, training=training)


def _distil_users(args: argparse.Namespace, texts: list[str]) -> int:
    from mmprefix.inference.user_prefixes import distil_users
    from mmprefix.users.store import UserStore

    find_model(args.model)
    options = _options(args, texts)
    with UserStore(args.users) as store:
        users = list(dict.fromkeys(args.user)) if args.user else [user.user for user in store.users()]
        for user in args.user or ():
            store.history(user)  # refuses one who is not there, before the model is loaded
        model, began = open_model(args), time.monotonic()
        made: list[tuple[int, int]] = []  # positions and bytes
        left_out: list[str] = []
        progress = Progress(len(users), shown=True, noun="users")
        try:
            for result in distil_users(model, store, users, options, overwrite=args.overwrite):
                if isinstance(result, str):
                    left_out.append(result)
                else:
                    made.append((len(result), result.nbytes))
                progress.step(failed=False)
        except Stopped as stop:
            stop.advice = stop.advice or f"{len(made)} users have their prefix; the same command goes on"
            raise
        finally:
            progress.end()
    sys.stdout.write(f"{_summary(made, left_out)}; {time.monotonic() - began:.1f} s\n")
    return 0


def _summary(made: list[tuple[int, int]], left_out: list[str]) -> str:
    """How many users have a prefix now, of how many positions and bytes, and why others were left out."""
    line = f"{len(made)} users distilled"
    if made:
        fewest, most = min(made)[0], max(made)[0]
        positions = str(most) if fewest == most else f"{fewest} to {most}"
        line += f", {positions} positions, {sum(size for _, size in made) // len(made):,} bytes a user"
    reasons = ", ".join(f"{left_out.count(reason)} {reason}" for reason in dict.fromkeys(left_out))
    return f"{line}; left out: {reasons}" if reasons else line


def _distil_text(args: argparse.Namespace, texts: list[str]) -> int:
    if args.out is None:
        raise InputError("--context needs --out FILE.safetensors, where the prefix is written")
    out, context = _free(args), _read_context(args.context)
    options, began = _options(args, texts), time.monotonic()
    from mmprefix.distillation import distil

    cartridge = distil(
        open_decoder(args),
        context,
        texts,
        positions=options.positions,
        start=options.start,
        steps=options.steps,
        options=options.training,
        teacher=args.teacher,
    ).half()
    cartridge.save(out)
    seconds = time.monotonic() - began
    sys.stdout.write(f"{out}: {cartridge.positions} positions, {cartridge.nbytes:,} bytes, {seconds:.1f} s\n")
    return 0


def _compose(args: argparse.Namespace) -> int:
    unread = [name for name in _FOR_MODELS if getattr(args, name) not in (None, [])]
    if unread:
        names = ", ".join("MODEL" if name == "model" else f"--{name}" for name in unread)
        raise InputError(f"--compose joins files as they are; leave out {names}")
    if len(args.compose) < 2:
        raise InputError(f"--compose {args.compose[0]}: is one file alone; give two or more")
    if args.out is None:
        raise InputError("--compose needs --out FILE.safetensors, where the joined prefix is written")
    out = _free(args)
    from mmprefix.distillation.cartridge import load_composed

    cartridge = load_composed(args.compose)
    cartridge.save(out)
    size = f"{cartridge.positions} positions, {cartridge.nbytes:,} bytes"
    sys.stdout.write(f"{out}: {size}, of {len(args.compose)} files\n")
    return 0


def _free(args: argparse.Namespace) -> Path:
    """File of --out, whose folder is made. Raises InputError where it is there, or cannot be, before any work."""
    out = Path(args.out)
    if out.is_file() and not args.overwrite:
        raise InputError(f"--out {out}: the file is there; --overwrite writes over it")
    prepare_output(out)
    return out


def _read_context(file: str) -> str:
    """Text of ``file``, which ends with a line break; InputError where there is none."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeError) as error:
        raise InputError(f"--context {file}: cannot be read ({error})") from error
    if not text:
        raise InputError(f"--context {file}: holds no text")
    return text + "\n"
