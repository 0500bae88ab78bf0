"""Where text comes from: a folder, a file, `stdlib`, or `datasets:NAME`. Yields documents as UTF-8 bytes.

Decides what a document is and in which order documents come: the same files give the same documents in the same order
on every machine. Files are read one at a time. What is not text (undecodable, empty, or with a NUL) is counted and
skipped. Nothing is downloaded except by a `datasets:` source, which says so by its name.

- folder: each file is a document, by sorted name, a folder's files before its folders; hidden ones are left out; a
  `.jsonl` file holds one document a line, under "text".
- file: a `.jsonl` as above; any other file is cut at line ends into documents of about 16 KiB, since a held-out part
  must be made of whole documents.
- stdlib: the `*.py` files of Python's standard library on this machine, tests and generated tables left out.
- datasets:NAME[:CONFIG][@SPLIT]: the "text" column of a set on the Hugging Face hub or on disk (an extra).
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from protocol.errors import ConfigError

STDLIB = "stdlib"
HUB_PREFIX = "datasets:"

MAX_DOCUMENT_BYTES = 64 << 20
"""Files beyond this are refused rather than read whole; text of this length belongs in a .jsonl."""

PIECE_BYTES = 16 << 10
"""Target length of the documents that a single file is cut into."""

STDLIB_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
)
"""Other people's packages, compiled files, tests, a grammar tool gone since 3.13, and pydoc's generated help text: one
file that is 6 % of the whole and would rule the held-out part that it falls into."""


@dataclass(slots=True)
class Tally:
    """What a source gave, counted while it is read."""

    skipped: int = 0


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
            return _whole_files(_stdlib_files(path), tally)
        if self.kind == "file":
            return _lines_of(path, tally) if _is_jsonl(path) else _pieces(path, tally)
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
        return Source(kind="datasets", name=Path(address).name if is_on_disk else address, location=address)
    path = Path(named).expanduser()
    if path.is_dir():
        return Source(kind="folder", name=path.resolve().name, location=str(path))
    if path.is_file():
        return Source(kind="file", name=path.name, location=str(path))
    raise ConfigError(f"text source {named!r}: no such file or folder; expected one, or `stdlib`, or `datasets:NAME`")


def _folder_documents(folder: Path, tally: Tally) -> Iterator[bytes]:
    for path in _files_below(folder, skipped_folders=frozenset()):
        if _is_jsonl(path):
            yield from _lines_of(path, tally)
        else:
            yield from _whole_files(iter((path,)), tally)


def _stdlib_files(folder: Path) -> Iterator[Path]:
    for path in _files_below(folder, skipped_folders=STDLIB_SKIPPED_FOLDERS):
        generated = path.name.startswith("_sysconfigdata")
        if path.suffix == ".py" and not generated and not path.is_symlink():
            yield path


def _files_below(folder: Path, *, skipped_folders: frozenset[str]) -> Iterator[Path]:
    """Regular files by sorted name, a folder's own first; links to folders are not followed, links to files are."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped_folders)
        for name in sorted(files):
            if not name.startswith(".") and (Path(parent) / name).is_file():
                yield Path(parent) / name


def _whole_files(paths: Iterator[Path], tally: Tally) -> Iterator[bytes]:
    for path in paths:
        document = _read(path)
        if is_text(document):
            yield document
        else:
            tally.skipped += 1


def _pieces(path: Path, tally: Tally) -> Iterator[bytes]:
    """The file cut at line ends, at a blank line where one comes soon enough."""
    piece: list[bytes] = []
    piece_bytes = 0
    with _open(path) as file:
        for line in iter(lambda: file.readline(MAX_DOCUMENT_BYTES), b""):
            piece.append(line)
            piece_bytes += len(line)
            if piece_bytes >= 2 * PIECE_BYTES or (piece_bytes >= PIECE_BYTES and not line.strip()):
                yield from _counted(b"".join(piece), tally)
                piece, piece_bytes = [], 0
    if piece:
        yield from _counted(b"".join(piece), tally)


def _lines_of(path: Path, tally: Tally) -> Iterator[bytes]:
    with _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_DOCUMENT_BYTES), b""), start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f'{path}, line {number}: expected an object with "text" ({error})') from error
            yield from _counted(_encoded(text), tally)


def _hub_documents(address: str, tally: Tally) -> Iterator[bytes]:
    for entry in _hub_entries(address):
        if "text" not in entry:
            raise ConfigError(f'datasets:{address}: expected a "text" column, got {", ".join(sorted(entry))}')
        yield from _counted(_encoded(entry["text"]), tally)


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


def _counted(document: bytes, tally: Tally) -> Iterator[bytes]:
    if is_text(document):
        yield document
    else:
        tally.skipped += 1


def is_text(document: bytes) -> bool:
    """UTF-8 with something in it and no NUL, which only binary files have."""
    if not document.strip() or b"\0" in document:
        return False
    try:
        document.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _encoded(text: object) -> bytes:
    """A document as UTF-8; what is not a string, or holds lone surrogates, counts as no text."""
    return text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else b""


def _is_jsonl(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _read(path: Path) -> bytes:
    with _open(path) as file:
        document = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ConfigError(f"{path} has more than {MAX_DOCUMENT_BYTES} bytes; give it as a .jsonl of documents")
    return document


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
