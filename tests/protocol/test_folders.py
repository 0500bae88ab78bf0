"""A folder is filled whole or not at all, wherever it lies and whenever the process dies."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from protocol import folders
from protocol.errors import ConfigError, StorageTrouble
from protocol.folders import Kind, filled_whole, is_interrupted, require_fillable, work_inside
from tests.killing import every_kill, killed_at

KIND = Kind(completed_by="last", entries=("last", "part-*", "sub"))
NAMES = ("last", "part-1", "part-2", "sub")


def fill(folder: Path, word: str, *, replace: bool = False, kind: Kind = KIND) -> None:
    with filled_whole(folder, kind, replace=replace) as work:
        (work / "sub").mkdir()
        for name in ("part-1", "part-2", "sub/deep", "last"):
            (work / name).write_text(f"{word} {name}")


def content(folder: Path) -> dict[str, str]:
    return {str(one.relative_to(folder)): one.read_text() for one in sorted(folder.rglob("*")) if one.is_file()}


def whole(word: str) -> dict[str, str]:
    return {name: f"{word} {name}" for name in ("last", "part-1", "part-2", "sub/deep")}


def prepared(folder: Path, place: str) -> Path:
    """`new`: not there; `empty`: there; `mount`: a new file system's root, as one can have it without a mount."""
    if place != "new":
        folder.mkdir()
    if place == "mount":
        (folder / "lost+found").mkdir()
    return folder


@pytest.mark.parametrize("place", ["new", "empty", "mount"])
def test_a_new_or_an_empty_folder_is_filled_and_nothing_lies_beside_it(tmp_path: Path, place: str) -> None:
    folder = prepared(tmp_path / "a" if place != "new" else tmp_path / "deep" / "a", place)
    fill(folder, "one")
    assert content(folder) == whole("one")
    assert {path.name for path in folder.iterdir()} - {"lost+found"} == set(NAMES)
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_an_empty_folder_stays_the_same_folder(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "a", "empty")
    before = folder.stat().st_ino
    fill(folder, "one")
    assert folder.stat().st_ino == before


@pytest.mark.parametrize("place", ["new", "empty", "mount"])
def test_killed_at_any_step_it_is_not_complete_and_the_next_one_begins_anew(tmp_path: Path, place: str) -> None:
    at = 0

    def folder() -> Path:
        return tmp_path / str(at) / "a"

    def work() -> None:
        fill(folder(), "killed")

    def ready() -> None:
        folder().parent.mkdir()
        prepared(folder(), place)

    def look(step: int) -> None:
        nonlocal at
        if not (folder() / "last").exists():
            assert not folder().exists() or is_interrupted(folder(), KIND) or content(folder()) == {}, step
            fill(folder(), "again")
            assert content(folder()) == whole("again"), step
            assert [path.name for path in folder().parent.iterdir()] == ["a"], step
        else:
            assert {**content(folder()), **whole("killed")} == content(folder()), step
            assert not is_interrupted(folder(), KIND), step
            with pytest.raises(ConfigError, match="not empty"):
                fill(folder(), "again")
        at += 1
        ready()

    ready()
    assert every_kill(work, look) > 12


def test_killed_at_any_step_of_a_replacement_the_former_or_the_new_one_is_whole(tmp_path: Path) -> None:
    folder, ends = tmp_path / "a", set()

    def look(step: int) -> None:
        require_fillable(folder, KIND, replace=True)
        killed_at(10**6, lambda: _recovered(folder))
        found = content(folder)
        assert found in (whole("former"), whole("new")), (step, found)
        ends.add(found["last"])
        fill(folder, "former", replace=True)

    fill(folder, "former")
    steps = every_kill(lambda: fill(folder, "new", replace=True), look)
    assert steps > 20
    assert ends == {"former last", "new last"}


def _recovered(folder: Path) -> None:
    """What the next command finds: it begins, and fails before it has done anything."""
    with pytest.raises(ZeroDivisionError), filled_whole(folder, KIND, replace=True):
        raise ZeroDivisionError


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    for place in ("new", "empty"):
        folder = prepared(tmp_path / place, place)
        with filled_whole(folder, KIND) as work:
            with pytest.raises(ConfigError, match="another process is filling"):
                fill(folder, "second")
            for name in NAMES:
                (work / name).write_text("first")
        assert set(content(folder).values()) == {"first"}


def test_what_somebody_else_has_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty: give a new or an empty folder"):
        fill(tmp_path / "a", "one")
    with pytest.raises(ConfigError, match=r"did not write there \(thesis\.txt\)"):
        fill(tmp_path / "a", "one", replace=True)
    (tmp_path / "a" / "last").write_text("looks complete")
    with pytest.raises(ConfigError, match="did not write there"):
        fill(tmp_path / "a", "one", replace=True)
    assert content(tmp_path / "a") == {"thesis.txt": "mine", "last": "looks complete"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        fill(tmp_path / "file", "one")


def test_what_appears_while_it_is_filled_stays(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "a", "empty")
    filling = filled_whole(folder, KIND)
    (filling.__enter__() / "last").write_text("one")
    (folder / "part-1").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        filling.__exit__(None, None, None)
    assert content(folder) == {"part-1": "mine"}


def test_a_failure_leaves_nothing_not_even_the_folders_above(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), filled_whole(tmp_path / "x" / "y" / "a", KIND) as work:
        (work / "part-1").write_text(str(1 / 0))
    prepared(tmp_path / "empty", "empty")
    with pytest.raises(ZeroDivisionError), filled_whole(tmp_path / "empty", KIND):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("length", [245, 255])
def test_a_name_as_long_as_names_may_be(tmp_path: Path, length: int) -> None:
    fill(tmp_path / ("n" * length), "one")
    assert content(tmp_path / ("n" * length)) == whole("one")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full: make room"),
        (errno.EACCES, "may not write there"),
        (errno.EROFS, "read-only"),
        (errno.EBUSY, "device or resource busy; choose another place"),
    ],
)
def test_what_the_system_says_becomes_a_sentence_about_the_folder(
    tmp_path: Path, number: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(folders, "sync_tree", refused)
    with pytest.raises(ConfigError, match=says) as told:
        fill(tmp_path / "a", "one")
    assert isinstance(told.value, StorageTrouble) == (number != errno.EBUSY)
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    for where in (Path("/proc/a"), Path("/proc/a/b"), tmp_path / ("n" * 300)):
        with pytest.raises(ConfigError, match=f"cannot write {where}"):
            fill(where, "one")


def test_a_private_folder_is_private_and_another_is_as_the_user_has_it(tmp_path: Path) -> None:
    fill(tmp_path / "private", "one", kind=Kind(completed_by="last", private=True))
    fill(tmp_path / "open", "one")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) & 0o500 == 0o500


def test_work_inside_a_folder_leaves_what_was_moved_out(tmp_path: Path) -> None:
    for _ in range(2):
        with work_inside(tmp_path / "a") as work:
            (work / "rest").write_text("one")
            (work / "made").mkdir(exist_ok=True)
            if not (tmp_path / "a" / "made").exists():
                (work / "made").rename(tmp_path / "a" / "made")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["made"]
