"""Where text comes from: a folder, a file, `stdlib`, or `datasets:NAME`. Yields documents as UTF-8 bytes.

Decides what a document is and in which order documents come: the same files give the same documents in the same order
on every machine. Files are read one at a time (`reading.py`). What is not text (undecodable, empty, or with a NUL), and
what cannot be read, is counted and skipped. Nothing is downloaded except by a `datasets:` source, which says so by its
name.

- folder: each file is a document, by sorted name, a folder's files before its folders; hidden ones are left out; a
  `.jsonl` file holds one document a line, under "text"; a file over 64 MiB is cut as one that is named alone.
- file: a `.jsonl` as above; any other file is cut at line ends into documents of about 16 KiB, since a held-out part
  must be made of whole documents.
- stdlib: the `*.py` files of Python's standard library on this machine, tests and generated tables left out.
- datasets:NAME[:CONFIG][@SPLIT]: the "text" column of a set on the Hugging Face hub or on disk (an extra).

Text is UTF-8, or UTF-16 that begins with its mark; suffixes count in capitals as well.
"""

from __future__ import annotations

import errno
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.datasets.card import CARD_FILE, TRAIN_FILE
from coordinator.datasets.reading import (
    Tally,
    counted,
    encoded,
    is_json_lines,
    json_lines,
    legible,
    pieces,
    whole_file,
)
from protocol.errors import ConfigError

STDLIB = "stdlib"
HUB_PREFIX = "datasets:"

STDLIB_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
)
"""Other people's packages, compiled files, tests, a grammar tool gone since 3.13, and pydoc's generated help text: one
file that is 6 % of the whole and would rule the held-out part that it falls into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of text. `name` goes onto the card and holds no path; `location` stays on the machine."""

    kind: str
    name: str
    location: str

    def documents(self, tally: Tally) -> Iterator[bytes]:
        """Every document, in a fixed order."""
        if self.kind == "datasets":
            return _hub_documents(self.location, tally)
        path = Path(self.location)
        if self.kind == STDLIB:
            return _stdlib_documents(path, tally)
        if self.kind == "file":
            return (json_lines if is_json_lines(path) else pieces)(path, self.name, tally)
        return _folder_documents(path, tally)


def parse_source(text: str | Path) -> Source:
    """The source that a person named; ConfigError when there is no such thing."""
    named = str(text)
    if named == STDLIB:
        return Source(kind=STDLIB, name="Python standard library", location=sysconfig.get_paths()["stdlib"])
    if named.startswith(HUB_PREFIX):
        address = named.removeprefix(HUB_PREFIX)
        if not address:
            raise ConfigError(f"text source {named!r}: expected a name after {HUB_PREFIX}")
        is_on_disk = Path(address.partition("@")[0]).is_dir()
        name = legible(Path(address).name if is_on_disk else address)
        return Source(kind="datasets", name=name, location=address)
    path = Path(named).expanduser()
    if path.is_dir():
        if _is_dataset(path):
            raise ConfigError(f"{path} is a prepared dataset already: name it as --data, or prepare the text itself")
        return Source(kind="folder", name=legible(path.resolve().name), location=str(path))
    if path.is_file():
        return Source(kind="file", name=legible(path.name), location=str(path))
    if path.exists():
        raise ConfigError(f"text source {named!r} is neither a file nor a folder: write the text to a file first")
    raise ConfigError(f"text source {named!r}: no such file or folder; expected one, or `stdlib`, or `datasets:NAME`")


def _folder_documents(folder: Path, tally: Tally) -> Iterator[bytes]:
    for path in _files_below(folder, tally, skipped_folders=frozenset()):
        name = legible(str(path.relative_to(folder)))
        yield from json_lines(path, name, tally) if is_json_lines(path) else whole_file(path, name, tally)


def _stdlib_documents(folder: Path, tally: Tally) -> Iterator[bytes]:
    for path in _files_below(folder, Tally(), skipped_folders=STDLIB_SKIPPED_FOLDERS):
        generated = path.name.startswith("_sysconfigdata")
        if path.suffix == ".py" and not generated and not path.is_symlink():
            yield from whole_file(path, str(path.relative_to(folder)), tally)


def _files_below(folder: Path, tally: Tally, *, skipped_folders: frozenset[str]) -> Iterator[Path]:
    """Regular files by sorted name, a folder's own first; links to folders are not followed, links to files are."""

    def shown(path: Path) -> str:
        return legible(str(path.relative_to(folder)))

    def unlisted(error: OSError) -> None:
        tally.skip(shown(Path(error.filename)), f"unreadable: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=unlisted):
        kept = []
        for name in sorted(name for name in folders if not name.startswith(".") and name not in skipped_folders):
            path = Path(parent) / name
            if path.is_symlink():
                tally.skip(shown(path), "a link to a folder")
            elif _is_dataset(path):
                tally.skip(shown(path), "a prepared dataset")
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(parent) / name
            if (why := _unusable(path)) is None:
                yield path
            else:
                tally.skip(shown(path), why)


def _unusable(path: Path) -> str | None:
    """Why the file is not opened at all; None if it is one like any other."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return "a link that leads nowhere"
    except OSError as error:
        return "a link that leads nowhere" if error.errno == errno.ELOOP else f"unreadable: {error.strerror}"
    return None if stat.S_ISREG(kind) else "no regular file"


def _is_dataset(folder: Path) -> bool:
    return (folder / CARD_FILE).is_file() and (folder / TRAIN_FILE).is_file()


def _hub_documents(address: str, tally: Tally) -> Iterator[bytes]:
    for number, entry in enumerate(_hub_entries(address), start=1):
        if "text" not in entry:
            raise ConfigError(f'datasets:{address}: expected a "text" column, got {", ".join(sorted(entry))}')
        text = entry["text"]
        yield from counted(encoded(text) if isinstance(text, str) else b"", f"entry {number}", tally)


def _hub_entries(address: str) -> Iterable[dict[str, Any]]:
    """Entries of NAME[:CONFIG][@SPLIT], or of a folder written by the package's `save_to_disk`."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"datasets:{address} needs the `datasets` package: pip install 'barnraise[datasets]'"
        ) from error
    where, _, split = address.partition("@")
    try:
        if (Path(where) / "state.json").is_file() or (Path(where) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(where)
            is_dict = (Path(where) / "dataset_dict.json").is_file()
            entries: Iterable[dict[str, Any]] = loaded[split or "train"] if is_dict else loaded
        else:
            path, _, config = where.partition(":")
            entries = datasets.load_dataset(path, config or None, split=split or "train")
    except KeyError as error:
        raise ConfigError(f"datasets:{address}: no split {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"datasets:{address}: {error}") from error
    return entries
