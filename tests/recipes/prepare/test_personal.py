"""Programs that prepare data of known users: a small folder in each layout, splits, histories, duplicates, faults."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmprefix.cli import main as cli
from mmprefix.data.manifest import read_manifest
from mmprefix.errors import InputError
from mmprefix.recipes.prepare.personal.flickr_style import read_names
from mmprefix.recipes.prepare.personal.posts import Post, SplitOptions, SplitRule, assign_splits
from tiny.datasets import Shell, missing_rows, read_json_lines, write_picture, write_table
from tiny.recorded import SHARED


def prepare(name: str, root: Path, out: Path, *words: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Run ``mmprefix prepare``: rows by split, and those of users.jsonl; manifests must be read without a fault."""
    assert cli.main(["prepare", name, str(root), "--out", str(out), *map(str, words)]) == 0
    files = {name: out / f"{name}.jsonl" for name in ("train", "val", "test", "users", "test_shuffled")}
    rows = {name: read_json_lines(file) if file.exists() else [] for name, file in files.items()}
    for split in ("train", "val", "test"):
        if rows[split]:
            examples, faults = read_manifest(files[split], split)
            assert (len(examples), faults) == (len(rows[split]), [])
    return rows


def refusal(capsys: Shell, name: str, root: Path, *words: str | Path) -> str:
    """Message of a refused run, one line."""
    capsys.readouterr()
    assert cli.main(["prepare", name, str(root), "--out", str(root / "refused"), *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not list((root / "refused").glob("*.jsonl"))
    return message


def write_json(file: Path, value: Any) -> None:
    """Write ``value`` as JSON; a folder that is lacking is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def write_different(file: Path, number: int) -> None:
    """Write a picture whose bytes differ by ``number``, as no two photographs are alike."""
    write_picture(file.with_suffix(".png"))
    file.with_suffix(".png").rename(file)
    file.write_bytes(file.read_bytes() + bytes([number]))


# ------------------------------------------------------------------------------------------------------------ splits


def posts(users: int = 40, subjects: int = 30) -> list[Post]:
    """A post of each user about each subject."""
    return [
        Post(f"u{user}-{number}", f"u{user}", (f"text {user} {number}",), prompt=f"plan {number}")
        for user in range(users)
        for number in range(subjects)
    ]


def by_split(rule: SplitRule, rows: list[Post], **shares: float) -> dict[str, list[Post]]:
    parts: dict[str, list[Post]] = {}
    for post, split in zip(rows, assign_splits(rows, SplitOptions(rule, **shares)), strict=True):
        parts.setdefault(split, []).append(post)
    return parts


def test_a_split_by_user_keeps_users_apart() -> None:
    parts = by_split("user", posts(), test=0.2)
    seen, unseen = ({post.user for post in parts[name]} for name in ("train", "test"))
    assert not seen & unseen
    assert {post.user for post in parts["history"]} == unseen
    assert {post.user for post in parts["val"]} <= seen
    assert not {post.id for post in parts["history"]} & {post.id for post in parts["test"]}
    assert 0.05 < len(unseen) / 40 < 0.45


def test_a_split_by_post_keeps_subjects_apart_and_users_together() -> None:
    parts = by_split("post", posts(), test=0.2, val=0.2)
    subjects = {name: {post.prompt for post in part} for name, part in parts.items()}
    assert set(subjects) == {"train", "val", "test"}
    assert sum(map(len, subjects.values())) == 30 == len(set().union(*subjects.values()))
    assert {post.user for post in parts["test"]} == {post.user for post in parts["train"]}


def test_both_has_unseen_users_and_seen_users_other_posts() -> None:
    parts = by_split("both", posts(), test=0.2)
    seen = {post.user for post in parts["train"]}
    kinds = {post.user in seen for post in parts["test"]}
    assert kinds == {True, False}
    held = {post.prompt for post in parts["test"] if post.user in seen}
    assert not held & {post.prompt for post in parts["train"]}


def test_a_posts_split_depends_on_nothing_but_its_names() -> None:
    """Neither order nor other posts nor a seed: as many as there are, a post stays where it is."""
    rules: tuple[SplitRule, ...] = ("user", "post", "both")
    for rule in rules:
        parts = by_split(rule, posts())
        fewer = by_split(rule, posts()[::-3])
        places = {post.id: name for name, part in parts.items() for post in part}
        assert all(places[post.id] == name for name, part in fewer.items() for post in part)


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"--test-share 1\.5: give a number from 0 on, below 1"):
        SplitOptions("user", test=1.5)
    with pytest.raises(InputError, match="nothing would be left to train on"):
        SplitOptions("post", test=0.6, val=0.4)
    with pytest.raises(InputError, match="--split-by published: u0-0: the source has no split; choose user"):
        by_split("published", posts(1, 1))
    with pytest.raises(InputError, match="--split-by post: of 1 posts none is left for train"):
        by_split("post", posts(1, 1), test=0.99, val=0.0)


# -------------------------------------------------------------------------------------------------- attend2u's layout


@pytest.fixture
def instapic(tmp_path: Path) -> Path:
    """Two users in train and test2, an unseen one in test1; names with dots, captions as texts or lists of words."""
    root = tmp_path / "data"
    seen = {"jo.e": ["Sunset :) #sea", "with @ann.b!"], "kim": [["morning", "coffee"], "ÉTÉ ☀️", "  ", "cut \ud83d"]}
    files = {
        "train": {user: {f"p{n}": {"caption": text, "tags": []} for n, text in enumerate(seen[user])} for user in seen},
        "test1": {"new": {f"n{n}": {"caption": f"hello {n}"} for n in range(6)}},
        "test2": {"kim": {"q0": {"caption": "late coffee"}}},
    }
    for number, (name, users) in enumerate(files.items()):
        write_json(root / "json" / f"insta-caption-{name}.json", users)
        for user, entries in users.items():
            for n, post in enumerate(entries):
                write_different(root / "images" / f"{user}_@_{post}", 16 * number + n)
    return root


def test_instapic(instapic: Path, tmp_path: Path, capsys: Shell) -> None:
    (instapic / "images" / "kim_@_p1").unlink()
    rows = prepare("attend2u", instapic, tmp_path / "out", "--val-share", "0")
    assert [(row["id"], row["user"], row["captions"]) for row in rows["train"]] == [
        ("jo.e_@_p0", "jo.e", ["Sunset :) #sea"]),
        ("jo.e_@_p1", "jo.e", ["with @username!"]),
        ("kim_@_p0", "kim", ["morning coffee"]),
    ]
    assert rows["train"][0]["image"] == "../data/images/jo.e_@_p0"
    assert [fault[:3] for fault in missing_rows(tmp_path / "out")] == [["train", "missing", "kim_@_p1"]]
    tested = [(row["user"], row["user_seen"], row["part"]) for row in rows["test"]]
    assert ("kim", True, "test2") in tested
    assert {("new", False, "test1")} == set(tested) - {("kim", True, "test2")}
    history = {row["user"]: row["history"] for row in rows["users"]}
    assert history["kim"] == ["morning coffee", "ÉTÉ ☀️"]
    assert 0 < len(history["new"]) < 6
    assert not set(history["new"]) & {text for row in rows["test"] for text in row["captions"]}
    out = capsys.readouterr().out
    assert "1 posts without a text left out" in out
    assert "1 posts with half a character, which no file can hold, left out" in out
    assert f"{len(history['new'])} posts of unseen users put aside as their history, in no split" in out
    assert "users.jsonl: 3 users, 1 of them unseen in train" in out


def test_yfcc100m(tmp_path: Path) -> None:
    """Title with 3 to 20 words, else such a description, else the title; fields are written as in an address."""
    cases = [
        ("The+old+mill", "no", "The old mill"),
        ("IMG_1", "Boats%2C+many+boats+%28<b>here</b>%29+http://x.org/a", "Boats, many boats ( here )"),
        ("Two words", "", "Two words"),
        ("", "too short", None),
    ]
    posts = [
        {"title": title, "description": text, "page url": f"http://www.flickr.com/photos/1@N00/{n}/"}
        for n, (title, text, _) in enumerate(cases)
    ]
    root = tmp_path / "data"
    write_json(root / "json" / "yfcc-caption-train.json", {"1@N00": posts})
    write_json(root / "json" / "yfcc-caption-test.json", {"1@N00": []})
    for number in range(4):
        write_different(root / "images" / f"1@N00_{number}.jpg", number)
    rows = prepare("attend2u", root, tmp_path / "out", "--val-share", "0")
    assert [row["captions"][0] for row in rows["train"]] == [text for *_, text in cases if text]
    assert (rows["train"][0]["id"], rows["train"][0]["user"]) == ("1@N00_0", "1@N00")


def test_other_layouts_than_attend2us_are_refused(instapic: Path, tmp_path: Path, capsys: Shell) -> None:
    assert "neither is there" in refusal(capsys, "attend2u", tmp_path)
    write_json(instapic / "json" / "insta-caption-train.json", {"kim": {"p": {"tags": []}}})
    assert "user 'kim', post 'p': no caption" in refusal(capsys, "attend2u", instapic)
    write_json(instapic / "json" / "insta-caption-train.json", [1])
    assert "not an object of users" in refusal(capsys, "attend2u", instapic)
    write_json(instapic / "json" / "yfcc-caption-train.json", {"u": [{"title": "a b c"}]})
    assert "one of them; both are there" in refusal(capsys, "attend2u", instapic)
    (instapic / "json" / "insta-caption-train.json").unlink()
    assert 'no "page url" that ends in POST/' in refusal(capsys, "attend2u", instapic)
    assert "no such folder of pictures" in refusal(capsys, "attend2u", instapic, "--pictures", tmp_path / "none")


# -------------------------------------------------------------------------------------------------------- FlickrStyle


@pytest.fixture
def flickr_style(tmp_path: Path) -> Path:
    """Twelve pictures in two styles; pickles as Python 2 wrote them, texts in Windows-1252."""
    root = tmp_path / "FlickrStyle_v0.9"
    names = [f"{1000 + n}_a{n}.jpg" for n in range(12)]
    for style, file in (("humor", "funny_train.txt"), ("romantic", "romantic_train.txt")):
        (root / style).mkdir(parents=True)
        listed = "".join(f"S'{name}'\np{n}\na" if n else f"(lp0\nS'{name}'\np1\na" for n, name in enumerate(names))
        (root / style / "train.p").write_text(f"{listed}.")
        lines = [f"{style} {n} caf\xe9 \x97 dogs ." for n in range(12)]
        (root / style / file).write_bytes("\n".join(lines).encode("latin-1") + b"\n")
    for n, name in enumerate(names):
        write_different(tmp_path / "pictures" / (name if n % 2 else f"{1000 + n}.jpg"), n)
    return root


def test_flickr_style(flickr_style: Path, tmp_path: Path) -> None:
    words = ["--pictures", tmp_path / "pictures", "--test-share", "0.3"]
    rows = prepare("flickr_style", flickr_style, tmp_path / "out", *words)
    every = [row for split in ("train", "val", "test") for row in rows[split]]
    assert len(every) == 24
    assert rows["test"]
    row = next(row for row in every if row["id"] == "1000_a0-humor")
    assert (row["user"], row["captions"]) == ("humor", ["humor 0 café — dogs ."])
    assert row["image"] == "../pictures/1000.jpg"
    images = {split: {row["image"] for row in rows[split]} for split in ("train", "val", "test")}
    assert not images["train"] & images["test"]
    assert [row["user"] for row in rows["users"]] == ["humor", "romantic"]
    for row, own in zip(rows["test_shuffled"], rows["test"], strict=True):
        assert row["user"] != row["true_user"] == own["user"]
        assert {**row, "user": own["user"]} == {**own, "true_user": own["user"]}


def test_flickr_style_as_a_table(tmp_path: Path) -> None:
    for number in range(3):
        write_different(tmp_path / "p" / f"{number}.jpg", number)
    write_table(
        tmp_path / "s.csv",
        ["image", "humor", "romantic"],
        [[f"{n}.jpg", f"ha {n}", "" if n else "oh"] for n in range(3)],
    )
    words = ["--pictures", tmp_path / "p", "--test-share", "0", "--val-share", "0"]
    rows = prepare("flickr_style", tmp_path / "s.csv", tmp_path / "out", *words)
    assert [(row["user"], row["captions"][0]) for row in rows["train"]] == [
        ("humor", "ha 0"), ("humor", "ha 1"), ("humor", "ha 2"), ("romantic", "oh"),
    ]  # fmt: skip


class Harm:
    """Object whose pickle calls a function when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("harm",)


def test_a_pickle_is_read_and_never_run(tmp_path: Path, capsys: Shell) -> None:
    names = ["a.jpg", "ä.jpg", "a.jpg"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "p").write_bytes(pickle.dumps([*names, names[0]], protocol=protocol))
        assert read_names(tmp_path / "p") == [*names, names[0]]
    for value in ([Harm()], Harm(), [1], {"a": "b"}):
        (tmp_path / "p").write_bytes(pickle.dumps(value))
        with pytest.raises(InputError, match="p: not a plain list of texts: it holds"):
            read_names(tmp_path / "p")
    (tmp_path / "p").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="p: not a p"):
        read_names(tmp_path / "p")
    assert capsys.readouterr().out == ""


def test_lists_of_other_lengths_are_refused(flickr_style: Path, tmp_path: Path, capsys: Shell) -> None:
    (flickr_style / "humor" / "funny_train.txt").write_text("one line\n")
    message = refusal(capsys, "flickr_style", flickr_style, "--pictures", tmp_path / "pictures")
    assert "funny_train.txt: 1 lines, but train.p names 12 pictures" in message


# ------------------------------------------------------------------------------------------------ Personality-Captions


def test_personality_captions(tmp_path: Path) -> None:
    root = tmp_path / "pc"
    for number in range(4):
        write_different(root / "yfcc_images" / f"h{number}.jpg", number)

    def comment(number: int, who: str, text: str, **more: Any) -> dict[str, Any]:
        return {"image_hash": f"h{number}", "personality": who, "comment": text, "candidates": ["x"], **more}

    write_json(
        root / "train.json", [comment(0, "Sweet", "So  cute!"), comment(1, "Cruel", "Ugly."), comment(1, "Old", " ")]
    )
    write_json(root / "val.json", [comment(2, "Sweet", "Aww")])
    write_json(root / "test.json", [comment(3, "Cruel", "Bah", additional_comments=["Meh", ""])])
    for words in (("json", []), ("csv", ["--split-by", "published"])):
        rows = prepare("personality_captions", root, tmp_path / words[0], *words[1])
        assert [(row["user"], row["captions"]) for row in rows["train"]] == [
            ("Sweet", ["So cute!"]),
            ("Cruel", ["Ugly."]),
        ]
        assert (rows["val"][0]["captions"], rows["test"][0]["captions"]) == (["Aww"], ["Bah", "Meh"])
        assert rows["users"] == [{"user": "Cruel", "history": ["Ugly."]}, {"user": "Sweet", "history": ["So cute!"]}]
        assert "candidates" not in rows["test"][0]
        for name in ("train", "val", "test") if words[0] == "json" else ():  # the same again as tables
            fields = ["image_hash", "personality", "comment", "additional_comments"]
            lines = json.loads((root / f"{name}.json").read_text())
            write_table(root / f"{name}.csv", fields, [[line.get(field, "") for field in fields] for line in lines])
            (root / f"{name}.json").unlink()


def test_faults_of_personality_captions_are_named(tmp_path: Path, capsys: Shell) -> None:
    (tmp_path / "yfcc_images").mkdir()
    assert "neither train.json nor train.csv is there" in refusal(capsys, "personality_captions", tmp_path)
    for value, message in (
        ({}, "train.json: not a list of comments"),
        ([{"image_hash": "h", "comment": "c"}], "train.json: comment 0: no personality"),
        (
            [{"image_hash": "h", "personality": "p", "comment": "c", "additional_comments": 3}],
            "must be a list of texts",
        ),
        ([], "no post with a user and a text"),
    ):
        write_json(tmp_path / "train.json", value)
        assert message in refusal(capsys, "personality_captions", tmp_path)


# ------------------------------------------------------------------------------------------- one manifest with users


@pytest.fixture
def writers(tmp_path: Path) -> Path:
    """ALFRED's form: a plan, a target, a writer; two writers in train, one in test alone with a history."""
    root = tmp_path / "alfred"
    rows = [
        {"id": f"{user}-{n}", "plan": f"plan {n}", "target": f"{user} does {n}.", "steps": ["s"], "user": user,
         "split": split, "user_seen": user != "c", "task": f"t{n}"}
        for user, split, numbers in (
            ("a", "train", "12"), ("b", "train", "12"), ("a", "val", "3"), ("b", "test", "4"), ("c", "test", "45"),
        )
        for n in numbers
    ]  # fmt: skip
    root.mkdir()
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    users = [{"user": "c", "history": ["c did this.", "c does 5."]}, {"user": "a", "history": ["not in train"]}]
    (root / "users.jsonl").write_text("".join(json.dumps(row) + "\n" for row in users))
    return root


def test_writers_of_plans(writers: Path, tmp_path: Path, capsys: Shell) -> None:
    rows = prepare("personal", writers, tmp_path / "out")
    assert rows["train"][0] == {
        "id": "a-1", "captions": ["a does 1."], "user": "a", "user_seen": True, "context": "plan 1", "plan": "plan 1",
        "steps": ["s"], "task": "t1", "split": "train",
    }  # fmt: skip
    assert [(row["id"], row["user_seen"]) for row in rows["test"]] == [("b-4", True), ("c-4", False), ("c-5", False)]
    assert rows["users"] == [
        {"user": "a", "history": ["a does 1.", "a does 2."]},
        {"user": "b", "history": ["b does 1.", "b does 2."]},
        {"user": "c", "history": ["c did this."]},  # of its own file, without what it is tested on
    ]
    assert "1 texts left out of histories, for their user has them in val or test" in capsys.readouterr().out
    assert [row["user"] for row in rows["test_shuffled"]] == ["c", "b", "b"]
    assert cli.main(["check-data", str(tmp_path / "out" / "train.jsonl")]) == 0
    rows = prepare("personal", writers / "manifest.jsonl", tmp_path / "1", "--history", "1")
    assert [row["history"] for row in rows["users"]] == [["a does 1."], ["b does 1."], ["c did this."]]


def test_a_repeated_text_and_a_repeated_picture_are_found(writers: Path, tmp_path: Path, capsys: Shell) -> None:
    """Texts that a user wrote twice, pictures under two names: refused, dropped or kept."""
    for name in ("one", "two", "same"):
        write_different(writers / f"{name}.jpg", 0 if name == "same" else len(name) + ord(name[0]))
    (writers / "copy.jpg").write_bytes((writers / "same.jpg").read_bytes())
    rows = [
        {"id": "1", "image": "one.jpg", "caption": "a kite", "user": "a", "split": "train"},
        {"id": "2", "image": "same.jpg", "caption": "a dog", "user": "a", "split": "train"},
        {"id": "3", "image": "two.jpg", "caption": "a kite", "user": "b", "split": "val"},  # another user's text
        {"id": "4", "image": "two.jpg", "caption": "a boat", "user": "b", "split": "val"},  # one split
        {"id": "5", "image": "copy.jpg", "caption": "a cat", "user": "b", "split": "test"},
        {"id": "6", "image": "same.jpg", "caption": "a kite", "user": "a", "split": "test"},
    ]
    (writers / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refusal(capsys, "personal", writers, "--same-text", "keep", "--history-share", "0")
    assert "2 posts repeat a picture of an earlier split; the first is 5 of test, also in train" in message
    assert "--same-picture drop leaves them out, --same-picture keep lets them be" in message
    message = refusal(capsys, "personal", writers, "--same-picture", "keep")
    assert "1 posts repeat a text of the same user of an earlier split; the first is 6 of test" in message
    for words, expected in ((["keep", "keep"], "56"), (["keep", "drop"], "5"), (["drop", "keep"], "")):
        options = ["--same-picture", words[0], "--same-text", words[1]]
        out = tmp_path / "_".join(words)
        kept = prepare("personal", writers, out, *options)
        assert "".join(row["id"] for row in kept["test"]) == expected
        assert len(kept["train"]) == 2
        printed = capsys.readouterr().out
        assert "2 posts repeat a picture" in printed
        assert (out / "test_shuffled.jsonl").exists() is (expected == "56")
    prepare("personal", writers, tmp_path / "keep_keep", "--same-picture", "keep", "--same-text", "drop")
    assert not (tmp_path / "keep_keep" / "test_shuffled.jsonl").exists()  # that of the earlier test is gone


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user": None}, "manifest.jsonl:1: user must be a text or a whole number, not null"),
        ({"target": ""}, "manifest.jsonl:1: needs captions, caption or target"),
        ({"plan": ""}, "manifest.jsonl:1: needs image, the name of a picture, or plan"),
        ({"split": ""}, "--split-by published: x: the source has no split; choose user, post or both"),
        ({"id": "y"}, "id 'y' belongs to 2 posts"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, capsys: Shell, row: dict[str, Any], message: str) -> None:
    good = {"id": "x", "user": "a", "target": "t", "plan": "p", "split": "train"}
    lines = [{**good, **row}, {**good, "id": "y"}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert message in refusal(capsys, "personal", tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("attend2u", ["github.com/cesc-park/attend2u", "yfcc-caption-train.json", "--history-share"]),
        ("flickr-style", ["FlickrStyle_v0.9.zip", "funny_train.txt", "Windows-1252"]),
        ("personality-captions", ["parl.ai", "image_hash", "additional_comments"]),
        ("personal", ["askforalfred/alfred", "lil-lab/kilogram", "users.jsonl"]),
    ],
)
def test_help_names_source_and_licence(name: str, words: list[str], capsys: Shell) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["prepare", name, "--help"])
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in [*words, "source", "licence", "needed", "--same-text", "--split-by"]:
        assert word in text


@pytest.mark.parametrize(
    ("folder", "words", "counts", "unseen"),
    [
        ("personal_alfred", ["--same-text", "drop"], [2200, 261, 1055], 8),
        ("personal_kilogram", ["--same-text", "keep", "--same-picture", "keep"], [1532, 252, 905], 12),
        ("personal_synth", [], [615, 75, 120], 0),
    ],
)
def test_the_shared_data_sets(folder: str, words: list[str], counts: list[int], unseen: int, tmp_path: Path) -> None:
    """Splits as published, users seen and unseen as each row of the source says, and a history for every user."""
    root = SHARED / "data" / folder
    if not root.is_dir():
        pytest.skip(f"../shared/data/{folder} is not here")
    rows = prepare("personal", root, tmp_path / "out", *words)
    assert [len(rows[split]) for split in ("train", "val", "test")] == counts
    source = {row["id"]: row for row in read_json_lines(root / "manifest.jsonl")}
    assert all(row["user_seen"] == source[row["id"]].get("user_seen", True) for row in rows["test"])
    seen = {row["user"] for row in rows["train"]}
    assert len({row["user"] for row in rows["users"]} - seen) == unseen
    held = {(row["user"], text) for split in ("val", "test") for row in rows[split] for text in row["captions"]}
    assert not held & {(row["user"], text) for row in rows["users"] for text in row["history"]}
    assert all(row["history"] for row in rows["users"])
