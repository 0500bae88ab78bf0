"""A folder that is filled whole or not at all: runs, backups, checkpoints and datasets come onto the disk through here.

Decides where unfinished work lies, and what an interrupted one means. Where the folder is not there yet, the work is
done in a hidden folder beside it, which gets its name in one rename. Where it is there and empty (a mount point, a
volume: `lost+found` counts as nothing), it is done inside, in `.filling/`, and its entries are moved up one by one, the
file that completes the folder last: its user may not be allowed to write anywhere else. Holds always:

- without the completing file a folder is not what it should be, whatever else lies in it: readers ask for that file;
- what an interrupted process left is cleared away by the next one, and nothing else ever is;
- a folder that is replaced keeps its former content until the new one is there whole, and gets it back otherwise;
- two processes never fill the same folder: the lock ends with its holder.

Touches the folder, and the hidden one beside it; no name is longer than the folder's own may be.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError, StorageTrouble
from protocol.file_lock import is_open_at, lock_file
from protocol.storage import disk_error_number, storage_trouble

EMPTY_ALL_THE_SAME = frozenset({"lost+found"})
"""What the root of a new file system holds by itself."""
WAY_OUT = "give a new or an empty folder"
_FILLING = ".filling"
_LOCK, _CONTENT, _FORMER, _MOVING = "lock", "content", "former", "moving.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a folder of one kind looks like."""

    completed_by: str
    """The file that is moved in last; its readers refuse a folder without it."""
    entries: tuple[str, ...] = ()
    """Patterns of all that a former one consists of. Only a folder of nothing else is ever replaced."""
    ignored: frozenset[str] = frozenset()
    """Names that others keep in such a folder; they are nothing, as `lost+found` is."""
    private: bool = False
    """Whether only its owner may enter."""


@contextlib.contextmanager
def filled_whole(folder: Path, kind: Kind, *, replace: bool = False, way_out: str = WAY_OUT) -> Iterator[Path]:
    """Inside: an empty folder to fill. Left without an error, all of it is in `folder`; otherwise nothing is.

    `replace` allows a complete folder of this kind in its place. ConfigError where something else lies there, where
    another process is at it, or where nothing can be written; `way_out` says what to do about the first.
    """
    require_fillable(folder, kind, replace=replace, way_out=way_out)
    with telling_folder_trouble(folder), _with_parents(folder), _locked_place(folder) as place:
        _recover(folder, place)
        require_fillable(folder, kind, replace=replace, way_out=way_out)
        content = place / _CONTENT
        try:
            content.mkdir(mode=0o700 if kind.private else 0o777)
            yield content
            sync_tree(content)
            if place.parent == folder:
                require_fillable(folder, kind, replace=replace, way_out=way_out)
                _move_up(folder, place, kind)
            else:
                content.rename(folder)
                sync_folder(folder.parent)
        finally:
            _recover(folder, place)


@contextlib.contextmanager
def work_inside(folder: Path) -> Iterator[Path]:
    """Inside: an empty folder within `folder`, for what gets its name there, by a rename, when it is done.

    What has not been moved out by the end is gone; so is `folder`, if it was made for this and holds nothing.
    """
    inside = folder / _FILLING
    with telling_folder_trouble(folder), _with_parents(inside), _locked_place(folder) as place:
        _recover(folder, place)
        (place / _CONTENT).mkdir()
        yield place / _CONTENT


def require_fillable(folder: Path, kind: Kind, *, replace: bool = False, way_out: str = WAY_OUT) -> None:
    """ConfigError unless `filled_whole` could begin: said before the work, not after it."""
    with telling_folder_trouble(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise ConfigError(f"{folder} is a file, not a folder: {way_out}")
        there = {path.name for path in folder.iterdir()} - EMPTY_ALL_THE_SAME - kind.ignored
    if _FILLING in there:
        there -= {_FILLING, *_names_in_motion(folder)} if is_interrupted(folder, kind) else {_FILLING}
    if not there:
        return
    whole = kind.completed_by in there and all(any(fnmatch(name, one) for one in kind.entries) for name in there)
    if not (replace and whole):
        strange = "" if not replace else f"{folder} holds what this command did not write there ({_some(there)}): "
        raise ConfigError(f"{strange or f'{folder} is not empty: '}{way_out}")


def is_interrupted(folder: Path, kind: Kind) -> bool:
    """Whether a process that filled this folder ended, or is still at it, before it was complete."""
    if not (folder / _FILLING).is_dir():
        return False
    # What is in motion there may be of another kind: a backup holds all that a run has.
    completed_by = _motion(folder / _FILLING).get("completed_by", kind.completed_by)
    return not (folder / completed_by).exists()


@contextlib.contextmanager
def telling_folder_trouble(folder: Path) -> Iterator[None]:
    """Inside, what the system says about files becomes one sentence about `folder`."""
    try:
        yield
    except Exception as error:
        told_of_a_part = isinstance(error, StorageTrouble) and error.__cause__ is not None
        if (number := disk_error_number(error.__cause__ if told_of_a_part else error)) is not None:
            raise storage_trouble(number, folder) from error
        if not isinstance(error, OSError):
            raise
        at = "" if error.filename is None else str(error.filename)
        where = "" if at in {"", str(folder)} or _FILLING in at else f" ({at})"
        said = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot write {folder}: {said}{where}; choose another place") from error


def sync_folder(folder: Path) -> None:
    """Make names inside `folder` durable. Windows has no such call and needs none."""
    if os.name == "posix":
        _sync(folder)


def sync_tree(root: Path) -> None:
    """Make everything below `root`, and `root` itself, durable."""
    if os.name != "posix":
        return
    for parent, _, files in os.walk(root, topdown=False):
        for name in files:
            _sync(Path(parent) / name)
        sync_folder(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _with_parents(folder: Path) -> Iterator[None]:
    """Makes the folders above; those made here go again when something fails."""
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in made:  # the innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def _locked_place(folder: Path) -> Iterator[Path]:
    """Where the unfinished work lies, for this process alone; gone at the end."""
    name = hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:16]
    place = folder / _FILLING if folder.is_dir() else folder.with_name(f"{_FILLING}-{name}")
    descriptor = _take(place, folder)
    try:
        yield place
    finally:
        for name in (_CONTENT, _FORMER):
            shutil.rmtree(place / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (place / _MOVING).unlink(missing_ok=True)
            (place / _LOCK).unlink()
            place.rmdir()
        os.close(descriptor)


def _take(place: Path, folder: Path) -> int:
    while True:
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # its former holder has just removed the place
        try:
            lock_file(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise ConfigError(
                f"another process is filling {folder} at this moment: wait until it is done, or choose another folder"
            ) from error
        if is_open_at(descriptor, place / _LOCK):
            return descriptor
        os.close(descriptor)


def _move_up(folder: Path, place: Path, kind: Kind) -> None:
    """Former entries out, new ones in. What is written down first lets `_recover` undo it at any point."""
    staying = EMPTY_ALL_THE_SAME | kind.ignored | {_FILLING}
    former = sorted({path.name for path in folder.iterdir()} - staying)
    new = sorted(path.name for path in (place / _CONTENT).iterdir())
    motion = {"completed_by": kind.completed_by, "former": former, "new": new}
    with (place / f"{_MOVING}.new").open("w", encoding="utf-8") as file:
        json.dump(motion, file)
        file.flush()
        os.fsync(file.fileno())
    (place / f"{_MOVING}.new").rename(place / _MOVING)
    sync_folder(place)
    (place / _FORMER).mkdir(mode=0o700)
    for name in _last(kind.completed_by, former)[::-1]:
        (folder / name).rename(place / _FORMER / name)
    for name in _last(kind.completed_by, new)[:-1]:
        (place / _CONTENT / name).rename(folder / name)
    sync_folder(folder)  # all of it durable before what says so
    (place / _CONTENT / kind.completed_by).rename(folder / kind.completed_by)
    sync_folder(folder)


def _last(name: str, names: Collection[str]) -> list[str]:
    return sorted(names, key=lambda one: (one == name, one))


def _recover(folder: Path, place: Path) -> None:
    """After a failure, here or in an earlier process: the folder is what it was before, and the place is empty."""
    if place.parent == folder and (motion := _motion(place)) and not (folder / motion["completed_by"]).exists():
        aside = place / _FORMER
        kept = {path.name for path in aside.iterdir()} if aside.is_dir() else set()
        for name in motion["new"]:
            if name not in motion["former"] or name in kept:
                _remove(folder / name)
        for name in _last(motion["completed_by"], kept):
            (aside / name).rename(folder / name)
        sync_folder(folder)
    for path in place.iterdir():
        if path.name != _LOCK:
            _remove(path)


def _motion(place: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((place / _MOVING).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _names_in_motion(folder: Path) -> set[str]:
    motion = _motion(folder / _FILLING)
    return {*motion.get("new", ()), *motion.get("former", ())}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (" and more" if len(names) > len(first) else "")
