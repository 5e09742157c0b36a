"""Files of a batch: what a hostile zip may not do, and rows for what cannot be read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from mmprefix.demo.limits import DemoLimits
from mmprefix.demo.uploads import batch_files, shown_name
from mmprefix.errors import InputError
from tiny import demo_files


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    ((path, _),) = demo_files.pictures(tmp_path / "pictures", 1)
    return path.read_bytes()


def private(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir(parents=True)
    return folder


def test_names_in_a_zip_are_never_paths(picture: bytes, tmp_path: Path) -> None:
    names = ["../x.png", "/etc/y.png", "..\\..\\z.png", "a/b/c.png", "C:\\w.png"]
    archive = demo_files.zip_of(tmp_path / "in.zip", dict.fromkeys(names, picture))
    folder = private(tmp_path)
    before = set(tmp_path.rglob("*"))
    files = batch_files([str(archive)], folder, DemoLimits())
    assert [file.name for file in files] == ["x.png", "y.png", "z.png", "c.png", "w.png"]
    assert all(file.path is not None and file.path.parent == folder and file.fault is None for file in files)
    assert {path.parent for path in set(tmp_path.rglob("*")) - before} == {folder}


def test_a_zip_bomb_fills_no_disk(picture: bytes, tmp_path: Path) -> None:
    limits = DemoLimits(max_mb=1)
    bomb = demo_files.zip_of(tmp_path / "bomb.zip", {"zeros.png": bytes(40 << 20), "good.png": picture})
    folder = private(tmp_path)
    zeros, good = batch_files([str(bomb)], folder, limits)
    assert zeros.fault == "40 MB; this page takes files of at most 1 MB"
    assert good.fault is None
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1 << 20


def test_a_zip_whose_header_lies_is_cut_at_the_limit(tmp_path: Path) -> None:
    path = demo_files.zip_of(tmp_path / "liar.zip", {"zeros.png": bytes(4 << 20)})
    data = path.read_bytes().replace((4 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(data)
    (file,) = batch_files([str(path)], private(tmp_path), DemoLimits(max_mb=1))
    assert file.fault
    assert sum(file.stat().st_size for file in (tmp_path / "private").iterdir()) <= 1 << 20


def test_all_members_together_are_bounded(tmp_path: Path) -> None:
    members = {f"{number}.png": bytes(1 << 20) for number in range(12)}
    files = batch_files(
        [str(demo_files.zip_of(tmp_path / "many.zip", members))], private(tmp_path), DemoLimits(max_mb=1)
    )
    assert [file.fault for file in files[10:]] == ["the zips of a batch hold more than 10 MB in all"] * 2
    assert "not a picture" in str(files[9].fault)
    halves = [demo_files.zip_of(tmp_path / f"{n}.zip", dict(list(members.items())[n::2])) for n in range(2)]
    files = batch_files(list(map(str, halves)), private(tmp_path / "2"), DemoLimits(max_mb=1))
    assert [file.fault for file in files[10:]] == ["the zips of a batch hold more than 10 MB in all"] * 2


def test_a_zip_that_lists_a_million_files_is_refused_before_its_list_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):  # more than 65,535: with the records of zip64
            archive.writestr(f"{number}", b"")
    short = demo_files.zip_of(tmp_path / "some.zip", {f"{number}": b"" for number in range(5_000)})
    data = bytearray(short.read_bytes())
    data[-16:-12] = b"PK\5\6"  # a second beginning inside the last record
    (tmp_path / "odd.zip").write_bytes(data)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *values: pytest.fail("the list was read"))
    few = DemoLimits(max_files=50)
    for file, limits in ((path, DemoLimits()), (short, few), (tmp_path / "odd.zip", few)):
        with pytest.raises(InputError, match=r"lists more than the .* files that this page takes"):
            batch_files([str(file)], private(tmp_path / file.stem), limits)


def test_too_many_files_none_and_no_zip_are_sentences(picture: bytes, tmp_path: Path) -> None:
    limits, folder = DemoLimits(max_files=3), private(tmp_path)
    many = demo_files.zip_of(tmp_path / "many.zip", {f"{number}.png": picture for number in range(4)})
    with pytest.raises(InputError, match="4 files; this page takes at most 3 at once"):
        batch_files([str(many)], folder, limits)
    with pytest.raises(InputError, match="no files yet"):
        batch_files([], folder, limits)
    with pytest.raises(InputError, match="the zip holds no file"):
        batch_files([str(demo_files.zip_of(tmp_path / "empty.zip", {}))], folder, limits)
    (text,) = batch_files([str(demo_files.text_file(tmp_path / "text.zip"))], folder, limits)
    assert text.fault


def test_damaged_and_locked_members_are_rows(picture: bytes, tmp_path: Path) -> None:
    path = demo_files.zip_of(tmp_path / "in.zip", {"a.png": picture, "b.png": picture})
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("a.png").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 60] ^= 0xFF  # inside the compressed bytes of a.png
    path.write_bytes(bytes(data))
    bad, good = batch_files([str(path)], private(tmp_path), DemoLimits())
    assert bad.fault
    assert good.fault is None


def test_files_of_one_name_keep_apart(picture: bytes, tmp_path: Path) -> None:
    path = demo_files.zip_of(
        tmp_path / "in.zip", {"a/dog.png": picture, "b/dog.png": picture, "__MACOSX/._dog.png": b""}
    )
    assert [file.name for file in batch_files([str(path)], private(tmp_path), DemoLimits())] == [
        "dog.png",
        "dog (2).png",
    ]
    assert shown_name("a/\x00\n") == "unnamed"
