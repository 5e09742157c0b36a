"""``mmprefix users COMMAND STORE``: the store of users for personalised models. Torch is imported by encode alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from mmprefix.atomic import write_atomically
from mmprefix.cli.evaluation.jsonl import format_table
from mmprefix.cli.inference.histories import read_history, read_manifest
from mmprefix.cli.inference.output import prepare_output
from mmprefix.cli.spellings import utf8_text
from mmprefix.errors import InputError
from mmprefix.users.checks import checked_texts, require_user
from mmprefix.users.store import UserStore
from mmprefix.users.summary import UserSummary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of ``mmprefix users`` and their options to ``parser``."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.add_argument("store", metavar="STORE", help="the store, one SQLite file")
        return parser

    add = command("add", "add users with their texts; the store is made where there is none")
    add.add_argument("user", metavar="USER", nargs="?", type=utf8_text, help="id of one user")
    add.add_argument(
        "--history",
        metavar="FILE",
        help="texts of USER: one a line, or .jsonl whose rows have history, captions, caption or text; - reads lines "
        "from standard input; without it there are none",
    )
    add.add_argument("--manifest", metavar="FILE", help='many users: lines {"user": "u07", "history": ["a text", ...]}')
    present = add.add_mutually_exclusive_group()
    present.add_argument("--append", action="store_true", help="texts of users who are there go behind theirs")
    present.add_argument("--replace", action="store_true", help="texts of users who are there replace theirs")
    remove = command("remove", "remove users: no byte of them stays in the file or beside it")
    remove.add_argument("users", metavar="USER", nargs="+", type=utf8_text)
    rows = command("list", "users, their number of texts, bytes, and which tensors are kept of them")
    rows.add_argument("--json", action="store_true", help="print one JSON object a line")
    show = command("show", "texts of a user, and which tensors are kept")
    show.add_argument("user", metavar="USER", type=utf8_text)
    show.add_argument("--json", action="store_true", help="print one JSON object, without the tensors' numbers")
    encode = command("encode", "encode users' texts once for a model that reads them; dropped when the texts change")
    encode.add_argument("model", metavar="MODEL", help="a saved model with a branch history")
    encode.add_argument("--user", metavar="NAME", action="append", type=utf8_text, help="of these alone; several times")
    export = command("export", "all that is held of a user, as JSON; tensors are safetensors files in base64")
    export.add_argument("user", metavar="USER", type=utf8_text)
    export.add_argument("--out", metavar="FILE", help="file to write (default: standard output)")
    export.add_argument("--overwrite", action="store_true", help="write over FILE where it is there")


def run(args: argparse.Namespace) -> int:
    """Run one command; returns the exit code 0. Raises InputError."""
    commands = {"add": _add, "remove": _remove, "list": _list, "show": _show, "encode": _encode, "export": _export}
    commands[args.command](args)
    return 0


def _add(args: argparse.Namespace) -> None:
    if (args.user is None) == (args.manifest is None):
        raise InputError("users add: give USER, with --history FILE, or --manifest FILE for many")
    if args.manifest is not None and args.history is not None:
        raise InputError("--history belongs to USER; the rows of --manifest bring their own")
    if args.manifest is not None:
        histories = read_manifest(args.manifest)
    else:
        histories = {args.user: [] if args.history is None else read_history(args.history)}
    for user, texts in histories.items():  # before a store is made
        require_user(user)
        try:
            checked_texts(texts)
        except InputError as error:
            raise InputError(f"user {user!r}: {error}") from error
    with UserStore(args.store, create=True) as store:
        new = _write(store, histories, args)
        if args.replace and new < len(histories):
            store.erase()
        total = len(store)
    texts, changed = sum(map(len, histories.values())), len(histories) - new
    done = ", ".join(f"{count} {word}" for count, word in ((new, "added"), (changed, "changed")) if count) or "none"
    sys.stdout.write(f"users {done} ({texts} texts); {args.store} holds {total}\n")


def _write(store: UserStore, histories: Mapping[str, list[str]], args: argparse.Namespace) -> int:
    """Write all users or none; the number of new ones."""
    new = 0
    with store.transaction():
        for user, texts in histories.items():
            present = user in store
            if present and not (args.append or args.replace):
                raise InputError(f"{args.store}: user {user!r} is there already; give --append or --replace")
            if present:
                store.update(user, texts, append=args.append)
            else:
                store.add(user, texts)
            new += not present
    return new


def _remove(args: argparse.Namespace) -> None:
    with UserStore(args.store) as store:
        store.remove(*args.users)
        total = len(store)
    users = list(dict.fromkeys(args.users))
    sys.stdout.write(f"users {len(users)} removed, every byte of them; {args.store} holds {total}\n")


def _list(args: argparse.Namespace) -> None:
    with UserStore(args.store) as store:
        users = store.users()
    if args.json:
        for user in users:
            row = user._asdict() | {"held": [tensors._asdict() for tensors in user.held]}
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    elif users:
        sys.stdout.write(format_table([["user", "texts", "bytes", "held"], *map(_row, users)]))
    else:
        sys.stdout.write("no users\n")


def _row(user: UserSummary) -> list[str]:
    names = list(dict.fromkeys(tensors.name for tensors in user.held))
    return [user.user, str(user.texts), str(user.bytes), ", ".join(map(_one_line, names))]


def _show(args: argparse.Namespace) -> None:
    with UserStore(args.store) as store:
        held = store.export(args.user)
    texts, tensors = held["history"], held["tensors"]
    if args.json:
        kept = [{key: value for key, value in one.items() if key != "safetensors_base64"} for one in tensors]
        sys.stdout.write(json.dumps({"user": args.user, "history": texts, "tensors": kept}, ensure_ascii=False) + "\n")
        return
    lines = [f"{args.user}: {len(texts)} texts, {len(tensors)} kept tensors"]
    lines += [f"  {number}. {_one_line(text)}" for number, text in enumerate(texts, start=1)]
    for kept in tensors:
        origin = "computed from the texts" if kept["computed"] else "trained"
        shapes = ", ".join(f"{name} {shape}" for name, shape in kept["shapes"].items()) or "damaged"
        key = f", key {_one_line(kept['key'])}" if kept["key"] else ""
        lines.append(f"  {_one_line(kept['name'])}: {origin}{key}: {_one_line(shapes)}")
    sys.stdout.write("\n".join(lines) + "\n")


def _encode(args: argparse.Namespace) -> None:
    from mmprefix.inference.loading import load
    from mmprefix.inference.users import encode_histories

    with UserStore(args.store) as store:
        users = list(dict.fromkeys(args.user)) if args.user else [user.user for user in store.users()]
        for user in args.user or ():
            store.history(user)  # refuses one who is not there, before the model is loaded
        results = list(encode_histories(load(args.model), store, users))
    sizes = [result for result in results if isinstance(result, int)]
    reasons = [result for result in results if isinstance(result, str)]
    line = f"{len(sizes)} users encoded" + (f", {sum(sizes) // len(sizes):,} bytes a user" if sizes else "")
    left_out = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
    sys.stdout.write(line + (f"; left out: {left_out}" if reasons else "") + "\n")


def _one_line(text: str) -> str:
    """``text`` with control characters and line breaks as JSON escapes them."""
    return "".join(c if c.isprintable() or c == " " else json.dumps(c)[1:-1] for c in text)


def _export(args: argparse.Namespace) -> None:
    with UserStore(args.store) as store:
        text = json.dumps(store.export(args.user), ensure_ascii=False, indent=2) + "\n"
    if args.out is None:
        sys.stdout.write(text)
        return
    out = Path(args.out)
    if out.is_file() and not args.overwrite:
        raise InputError(f"--out {out}: the file is there; --overwrite writes over it")
    prepare_output(out)
    write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))
    sys.stdout.write(f"{out}: {len(text.encode())} bytes\n")
