"""``mmprefix users``: users go into a store, are listed, shown, exported and removed; all else is one line."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from mmprefix.users import UserStore
from tiny.shell import Shell
from tiny.user_traces import traces

ROWS = [
    {"user": "u07", "style": "short", "history": ["a dog runs", "my dog again"]},
    {"user": "Zoë 🐕", "history": []},
    {"user": 12, "history": ["one\ntwo \x1b[31m"]},
]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    Path("users.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")
    return Shell(capsys)


@pytest.fixture
def store(shell: Shell) -> Path:
    """A store with the three users."""
    code, out, _ = shell("users", "add", "users.db", "--manifest", "users.jsonl")
    assert (code, out) == (0, "users 3 added (3 texts); users.db holds 3\n")
    return Path("users.db")


def history(store: Path, user: str) -> list[str]:
    with UserStore(store) as opened:
        return opened.history(user)


def test_users_are_listed(shell: Shell, store: Path) -> None:
    with UserStore(store) as opened:
        opened.put("u07", "prefix", {"embeds": torch.zeros(10, 7).half()}, key="k1")
        opened.put("u07", "prefix", {"embeds": torch.zeros(10, 7).half()}, key="k2")
    code, out, _ = shell("users", "list", store)
    assert code == 0
    assert out.splitlines()[0].split() == ["user", "texts", "bytes", "held"]
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["12", "1"], ["Zoë", "🐕"], ["u07", "2"]]
    assert out.splitlines()[3].split()[3:] == ["prefix"]
    code, out, _ = shell("users", "list", store, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[1] == {"user": "Zoë 🐕", "texts": 0, "bytes": 0, "held": []}
    assert [held["key"] for held in rows[2]["held"]] == ["k1", "k2"]
    shell("users", "remove", store, "12", "u07", "Zoë 🐕")
    assert shell("users", "list", store) == (0, "no users\n", "")


def test_texts_of_one_user_come_from_lines_and_json_lines(shell: Shell, store: Path) -> None:
    Path("texts.txt").write_bytes("\ufeffa ship\r\n\n  Größe 🚢 \nlast".encode())
    assert shell("users", "add", store, "u08", "--history", "texts.txt")[:2] == (
        0,
        "users 1 added (3 texts); users.db holds 4\n",
    )
    assert history(store, "u08") == ["a ship", "Größe 🚢", "last"]
    rows = ['{"text": "a"}', '{"captions": ["b", "c"]}', '"d"', '{"history": [], "text": "not read"}', '["e"]']
    Path("texts.jsonl").write_text("\n".join([*rows, '{"caption": "f"}']))
    code, out, _ = shell("users", "add", store, "u08", "--history", "texts.jsonl", "--append")
    assert (code, out) == (0, "users 1 changed (6 texts); users.db holds 4\n")
    assert history(store, "u08") == ["a ship", "Größe 🚢", "last", *"abcdef"]
    assert shell("users", "add", store, "u08", "--replace")[0] == 0
    assert history(store, "u08") == []


def test_texts_from_standard_input(shell: Shell, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ein Boot ⛵\n".encode())))
    assert shell("users", "add", store, "u08", "--history", "-")[0] == 0
    assert history(store, "u08") == ["ein Boot ⛵"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\xff\n")))
    message = shell.refuses("users", "add", store, "u09", "--history", "-")
    assert message == "--history -: line 2 of standard input is not UTF-8"


def test_a_manifest_adds_changes_or_nothing(shell: Shell, store: Path) -> None:
    with UserStore(store) as opened:
        opened.put("u07", "prefix", {"embeds": torch.zeros(3)})
    Path("more.jsonl").write_text('{"user": "new", "history": ["n"]}\n{"user": "u07", "history": ["m"]}\n')
    message = shell.refuses("users", "add", store, "--manifest", "more.jsonl")
    assert message == "users.db: user 'u07' is there already; give --append or --replace"
    assert shell.refuses("users", "show", store, "new").startswith("users.db: no user 'new'")
    code, out, _ = shell("users", "add", store, "--manifest", "more.jsonl", "--append")
    assert (code, out) == (0, "users 1 added, 1 changed (2 texts); users.db holds 4\n")
    assert history(store, "u07") == ["a dog runs", "my dog again", "m"]
    assert shell("users", "add", store, "--manifest", "more.jsonl", "--replace")[0] == 0
    assert history(store, "u07") == ["m"]
    assert traces(store, ["a dog runs", "my dog again"]) == []
    assert "prefix: trained: embeds float32 3" in shell("users", "show", store, "u07")[1]


def test_lines_of_any_kind_are_texts(shell: Shell, store: Path) -> None:
    long = "ein Wort 🚢 " * 50_000
    Path("texts.txt").write_bytes(f"\ufeffold\rmac\r\ndos\n\0zero\u2028 \n{long}\ne\u0301 é".encode())
    assert shell("users", "add", store, "u08", "--history", "texts.txt")[0] == 0
    assert history(store, "u08") == ["old", "mac", "dos", "\0zero", long.strip(), "e\u0301 é"]
    for user in ("a/b", "..", "e\u0301", "é", " é", "-", "'; DROP TABLE users; --"):
        assert shell("users", "add", store, "--", user)[0] == 0
    assert [history(store, user) for user in ("é", "e\u0301", "a/b")] == [[], [], []]
    assert shell("users", "remove", store, "--", "e\u0301", "-")[0] == 0
    assert history(store, "é") == []


@pytest.mark.parametrize("content", ["", " \n\r\n", "\ufeff"])
def test_an_empty_file_replaces_nothing(content: str, shell: Shell, store: Path) -> None:
    for file in ("empty.txt", "empty.jsonl"):
        Path(file).write_bytes(content.encode())
        message = shell.refuses("users", "add", store, "u07", "--history", file, "--replace")
        assert message == f"--history {file}: holds no text; give one a line, or leave it out"
    assert shell.refuses("users", "add", store, "--manifest", "empty.jsonl", "--replace") == "empty.jsonl: has no user"
    assert history(store, "u07") == ["a dog runs", "my dog again"]
    Path("rows.jsonl").write_text('{"history": []}\n"  "\n')
    assert "holds no text" in shell.refuses("users", "add", store, "u07", "--history", "rows.jsonl", "--replace")


def test_half_a_character_names_its_user_and_makes_no_store(shell: Shell) -> None:
    Path("half.jsonl").write_text('{"user": "a", "history": ["good", "\\ud83d"]}\n')
    message = shell.refuses("users", "add", "new.db", "--manifest", "half.jsonl")
    assert message.startswith("user 'a': history: text 2: '\\ud83d' holds bytes that are not UTF-8")
    assert not Path("new.db").exists()


def test_damaged_tensors_are_shown_and_exported(shell: Shell, store: Path) -> None:
    with UserStore(store) as opened:
        opened.put("u07", "prefix", {"embeds": torch.zeros(3)})
        with opened.transaction(), opened._connections.writing() as connection:  # pyright: ignore[reportPrivateUsage]
            connection.execute("UPDATE tensors SET data = x'0102'")
    assert shell("users", "show", store, "u07")[1].endswith("  prefix: trained: damaged\n")
    code, _, _ = shell("users", "export", store, "u07", "--out", "new/folder/u07.json")
    tensors = json.loads(Path("new/folder/u07.json").read_text(encoding="utf-8"))["tensors"]
    assert (code, tensors[0]["shapes"], tensors[0]["safetensors_base64"]) == (0, {}, "AQI=")
    assert shell.refuses("users", "export", store, "u07", "--out", "new") == "--out new: is a folder; give a file"


def test_processes_that_add_at_once_lose_nothing(shell: Shell) -> None:
    program = "import sys; from mmprefix.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "users", "add", "new.db"]
    adding = [subprocess.Popen([*words, f"u{number}"], stdout=subprocess.DEVNULL) for number in range(4)]
    assert [process.wait() for process in adding] == [0] * 4
    with UserStore("new.db") as opened:
        assert [user.user for user in opened.users()] == ["u0", "u1", "u2", "u3"]


def test_show_keeps_each_text_on_its_line(shell: Shell, store: Path) -> None:
    with UserStore(store) as opened:
        opened.put("12", "context", {"a": torch.zeros(2, 3)}, key="k", computed_from=opened.history("12"))
    code, out, _ = shell("users", "show", store, "12")
    assert code == 0
    assert out.splitlines() == [
        "12: 1 texts, 1 kept tensors",
        r"  1. one\ntwo \u001b[31m",
        "  context: computed from the texts, key k: a float32 2 x 3",
    ]


def test_export_writes_all_that_is_held(shell: Shell, store: Path) -> None:
    tensors = {"embeds": torch.arange(6.0).reshape(2, 3)}
    with UserStore(store) as opened:
        opened.put("Zoë 🐕", "prefix", tensors, key="k")
    code, out, _ = shell("users", "export", store, "Zoë 🐕")
    assert code == 0
    exported = json.loads(out)
    assert (exported["user"], exported["history"]) == ("Zoë 🐕", [])
    kept = load(base64.b64decode(exported["tensors"][0]["safetensors_base64"]))
    assert torch.equal(kept["embeds"], tensors["embeds"])
    assert shell("users", "export", store, "Zoë 🐕", "--out", "zoe.json")[0] == 0
    assert Path("zoe.json").read_text(encoding="utf-8") == out
    message = shell.refuses("users", "export", store, "u07", "--out", "zoe.json")
    assert message == "--out zoe.json: the file is there; --overwrite writes over it"
    assert shell("users", "export", store, "u07", "--out", "zoe.json", "--overwrite")[0] == 0
    assert json.loads(Path("zoe.json").read_text(encoding="utf-8"))["user"] == "u07"
    shell("users", "add", "again.db", "--manifest", "users.jsonl")
    exported = json.loads(shell("users", "export", "again.db", "u07")[1])
    Path("row.jsonl").write_text(json.dumps(exported))  # what was exported is a row of a manifest
    shell("users", "remove", "again.db", "u07")
    assert shell("users", "add", "again.db", "--manifest", "row.jsonl")[0] == 0
    assert history(Path("again.db"), "u07") == ["a dog runs", "my dog again"]


def test_remove_leaves_nothing(shell: Shell, store: Path) -> None:
    message = shell.refuses("users", "remove", store, "u07", "u00")
    assert message.startswith("users.db: no user 'u00'; mmprefix users list users.db shows")
    assert traces(store, ["my dog again"])
    assert shell("users", "remove", store, "u07", "u07", "Zoë 🐕") == (
        0,
        "users 2 removed, every byte of them; users.db holds 1\n",
        "",
    )
    assert traces(store, ["my dog again", "a dog runs", "Zoë 🐕"]) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "new.db"], "users add: give USER, with --history FILE, or --manifest FILE for many"),
        (["add", "new.db", "u", "--manifest", "users.jsonl"], "users add: give USER, with --history FILE, or"),
        (["add", "new.db", "--manifest", "users.jsonl", "--history", "-"], "--history belongs to USER"),
        (["add", "new.db", ""], "user: an id has 1 to 255 characters, not 0"),
        (["add", "new.db", "a\nb"], "user: 'a\\nb' holds a control character"),
        (["add", "new.db", "u\udcff"], "argument USER: its text"),
        (
            ["add", "new.db", "u", "--history", "none.txt"],
            "--history none.txt: cannot be read (No such file or directory)",
        ),
        (["add", "new.db", "u", "--append", "--replace"], "argument --replace: not allowed with argument --append"),
        (["add", "new.db", "--manifest", "bad.jsonl"], "bad.jsonl:1: not JSON"),
        (["add", "new.db", "--manifest", "twice.jsonl"], "twice.jsonl:2: user 'a' has a row already"),
        (["add", "new.db", "--manifest", "none.jsonl"], "none.jsonl: No such file or directory"),
        (["add", "new.db", "--manifest", "list.jsonl"], 'list.jsonl:1: a row is {"user": "u07", "history"'),
        (["add", "new.db", "--manifest", "bare.jsonl"], "bare.jsonl:1: none of history, captions, caption, text"),
        (["add", "new.db", "u", "--history", "number.jsonl"], "number.jsonl:1: a text or a list of texts is needed"),
        (["add", "none/new.db", "u"], "none/new.db: cannot be made or written (No such file or directory)"),
        (["add", ".", "u"], ".: a folder; a store of users is one file"),
        (["list", "new.db"], "new.db: no such store; mmprefix users add"),
        (["list", "users.jsonl"], "users.jsonl: no SQLite database, so no store of users"),
        (["remove", "new.db"], "the following arguments are required: USER; see mmprefix users remove --help"),
        (["forget", "new.db"], "argument COMMAND: invalid choice: 'forget'"),
        ([], "the following arguments are required: COMMAND; see mmprefix users --help"),
        (["list", "new.db", "--jsn"], "unrecognized arguments: --jsn; did you mean '--json'?"),
    ],
)
def test_errors_are_one_line_and_make_no_store(words: list[str], message: str, shell: Shell) -> None:
    Path("bad.jsonl").write_text("{")
    Path("twice.jsonl").write_text('{"user": "a", "history": []}\n{"user": "a", "history": []}\n')
    Path("list.jsonl").write_text('["a"]\n')
    Path("bare.jsonl").write_text('{"user": "a"}\n')
    Path("number.jsonl").write_text('{"text": 7}\n')
    assert shell.refuses("users", *words).startswith(message)
    assert not Path("new.db").exists()


def test_no_torch_is_imported(shell: Shell, store: Path) -> None:
    program = "import sys; from mmprefix.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for words in (["list", store], ["show", store, "u07"], ["export", store, "u07"], ["remove", store, "u07"]):
        subprocess.run([sys.executable, "-c", program, "users", *words], check=True, cwd=Path.cwd())
