"""Search for the folder of named files: nearest first, bounded, quiet where a folder cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprefix.media import search
from mmprefix.media.search import find_folder


def test_nearest_folder_first_and_none_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, near = tmp_path / "work", tmp_path / "tables" / "inner"
    for folder in (work / "media", near, near.parent / "sub" / "photos"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(work)
    assert find_folder(["a.jpg"], near) is None
    (work / "media" / "a.jpg").write_bytes(b"")
    assert find_folder(["a.jpg", "b.jpg"], near) == Path("media")  # as a user would write it
    (near.parent / "sub" / "photos" / "a.jpg").write_bytes(b"")
    assert find_folder(["a.jpg"], near) == near.parent / "sub" / "photos"
    assert find_folder(["photos/a.jpg"], near) == near.parent / "sub"
    (near / "z.zip").write_bytes(b"")
    assert find_folder(["z.zip::a.jpg"], near) == near
    for names in ([], [""], [str(work / "b.jpg")], ["x" * 4000]):
        assert find_folder(names, near) is None


def test_one_name_that_is_nowhere_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").mkdir()
    names = [f"{number:02}.jpg" for number in range(20)]
    for name in names[1:]:
        (tmp_path / "media" / name).write_bytes(b"")
    assert find_folder(names, tmp_path) == tmp_path / "media"
    assert find_folder(["0" * 4000, *names[1:]], tmp_path) == tmp_path / "media"
    for name in names[3:]:
        (tmp_path / "media" / name).unlink()
    assert find_folder(names, tmp_path) is None  # two of twenty may lie there by chance


def test_the_search_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_FOLDERS", 20)
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        (tmp_path / f"{number:02}").mkdir()
    (tmp_path / "59" / "a.jpg").write_bytes(b"")
    (tmp_path / "01" / "b.jpg").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_folder(["a.jpg"], tmp_path) is None
    assert find_folder(["b.jpg"], tmp_path) == tmp_path / "01"
