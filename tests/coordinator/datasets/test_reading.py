"""Files as they lie on people's disks: text is taken, what is not text is counted and named, nothing ends the rest."""

import errno
import io
import json
import os
import socket
from pathlib import Path

import pytest

from barnraise.cli.app import run
from coordinator.datasets import Dataset, prepare
from coordinator.datasets.reading import MAX_DOCUMENT_BYTES, Tally, legible
from coordinator.datasets.sources import parse_source
from protocol.errors import ConfigError


def documents(place):
    """What a source gives as text, and its books."""
    tally = Tally()
    return [document.decode() for document in parse_source(place).documents(tally)], tally


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "texts"
    made.mkdir()
    (made / "a.txt").write_text("first")
    (made / "b.txt").write_text("second")
    return made


def sparse(path, size_bytes):
    with path.open("wb") as file:
        file.truncate(size_bytes)


def test_a_huge_binary_does_not_end_the_folder_and_is_named(folder, tmp_path, capsys):
    sparse(folder / "photo.raw", MAX_DOCUMENT_BYTES + 1)
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "photos.zip").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "empty.txt").touch()
    assert run(["data", "prepare", str(folder), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    (note,) = told.err.strip().splitlines()
    assert note.startswith("note: texts: 5 skipped: 2 not text (photo.png, photo.raw)")
    assert "1 compressed or packed: unpack it first (photos.zip)" in note
    assert "1 not UTF-8 (latin.txt)" in note
    assert "1 empty (empty.txt)" in note
    assert "5 skipped" in told.out


def test_a_long_list_is_cut_short(folder):
    for number in range(9):
        (folder / f"x{number}").write_bytes(b"\0")
    _, tally = documents(folder)
    assert tally.in_words == "9 skipped: 9 not text (x0, x1, x2, …)"


def test_a_huge_text_is_cut_into_documents(folder, monkeypatch):
    monkeypatch.setattr("coordinator.datasets.reading.MAX_DOCUMENT_BYTES", 1 << 20)
    line = "é" * 500 + "\n"
    (folder / "c.txt").write_text(line * ((1 << 20) // len(line.encode()) + 2))
    found, tally = documents(folder)
    assert tally.skipped == 0
    assert len(found) > 30
    assert "".join(found[2:]) == (folder / "c.txt").read_text()


def test_no_character_is_cut_in_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("coordinator.datasets.reading.MAX_DOCUMENT_BYTES", 10)
    for text in ("漢字かな交じり文を長く書く" * 5, "aé漢🙂" * 20, "🙂" * 9, "a" * 31):
        (tmp_path / "long.txt").write_text(text)
        found, tally = documents(tmp_path / "long.txt")
        assert "".join(found) == text
        assert tally.skipped == 0


@pytest.mark.parametrize("name", ["up.JSONL", "up.Jsonl", "up.ndjson", "up.jsonl"])
@pytest.mark.parametrize("inside", [False, True])
def test_lines_of_json_are_known_in_capitals(name, inside, tmp_path):
    place = tmp_path / "d"
    place.mkdir()
    (place / name).write_text('{"text":"aa"}\n{"text":"bb"}\n')
    assert documents(place if inside else place / name)[0] == ["aa", "bb"]


def test_a_bad_line_is_named_and_the_others_count(tmp_path):
    lines = ['{"text": "one"}', '{"text": "cut', "[1]", '{"txt": "misspelt"}', '{"text": 3}', "[" * 50_000]
    lines += ['{"text": "nul \\u0000"}', '{"text": "\\ud800"}', '{"text": ""}', '{"text": "two"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    found, tally = documents(tmp_path / "x.jsonl")
    assert found == ["one", "two"]
    assert tally.reasons["not JSON"] == ["x.jsonl, line 2", "x.jsonl, line 6"]
    assert tally.reasons['without a "text"'] == ["x.jsonl, line 3", "x.jsonl, line 4", "x.jsonl, line 5"]
    assert tally.skipped == 8


def test_what_was_skipped_is_said_where_nothing_is_left(tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"found 0 different documents.*x\.bin: 1 skipped: 1 not text \(x\.bin\)"):
        prepare([tmp_path / "x.bin"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="found 0 different documents"):
        prepare([tmp_path / "empty"], tmp_path / "out")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_with_its_mark_is_text(encoding, tmp_path):
    text = "naïve 漢字 🙂\r\nsecond line\n"
    (tmp_path / "d").mkdir()
    marked = text if encoding == "utf-16" else f"\ufeff{text}"
    (tmp_path / "d" / "notes.txt").write_bytes(marked.encode(encoding))
    (tmp_path / "d" / "odd.txt").write_bytes(marked.encode(encoding) + b"\x00")
    found, tally = documents(tmp_path / "d")
    assert found == [text]
    assert tally.in_words == "1 skipped: 1 not UTF-16, though it begins so (odd.txt)"
    assert documents(tmp_path / "d" / "notes.txt")[0] == [text]
    (tmp_path / "x.jsonl").write_bytes(("\ufeff" + json.dumps({"text": text}) + "\n").encode("utf-16-le"))
    assert documents(tmp_path / "x.jsonl")[0] == [text]


def test_the_mark_of_utf8_is_no_text(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("marked", encoding="utf-8-sig")
    (tmp_path / "d" / "b.jsonl").write_text('{"text": "marked too"}', encoding="utf-8-sig")
    assert documents(tmp_path / "d")[0] == ["marked", "marked too"]
    assert documents(tmp_path / "d" / "a.txt")[0] == ["marked"]


def test_what_is_no_file_is_never_opened(folder):
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe")  # opening it would wait for a writer
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket may only be short
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
        listener.close()
    found, tally = documents(folder)
    assert found == ["first", "second"]
    assert tally.reasons == {
        "a link to a folder": ["round"],
        "a link that leads nowhere": ["dangling", "loop"],
        "no regular file": ["pipe", "socket"],
    }
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        parse_source(folder / "pipe")


def test_files_that_may_not_be_read_are_left_out(folder, monkeypatch):
    (folder / "secret.txt").write_text("not for us")
    (folder / "secret.jsonl").write_text('{"text": "nor this"}')
    real_open = Path.open

    def guarded(self, *arguments, **more):
        if self.name.startswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real_open(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", guarded)
    found, tally = documents(folder)
    assert found == ["first", "second"]
    assert tally.in_words == "2 skipped: 2 unreadable: Permission denied (secret.jsonl, secret.txt)"


def test_a_disk_that_fails_in_the_middle_costs_one_file(folder, monkeypatch):
    class Failing(io.BufferedReader):
        def readline(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    real_open = Path.open
    (folder / "c.jsonl").write_text('{"text": "c"}')

    def opened(self, *arguments, **more):
        return Failing(io.FileIO(self)) if self.suffix == ".jsonl" else real_open(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", opened)
    found, tally = documents(folder)
    assert found == ["first", "second"]
    assert tally.in_words == "1 skipped: 1 unreadable: Input/output error (c.jsonl)"


def test_names_that_are_not_utf8_are_written_down_legibly(tmp_path):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    place.mkdir()
    for number in range(3):
        (place / f"{number}.txt").write_text(f"text {number}")
    (place / os.fsdecode(b"p\xe9.bin")).write_bytes(b"\0")
    (place / os.fsdecode(b"q\xe9.txt")).write_text("its name is no matter")
    noted: list[str] = []
    made = prepare([place], tmp_path / "out", licence="\udce9", allowed_uses=["\udce9"], note=noted.append)
    again = Dataset.open(made.folder)
    assert again.card == made.card
    assert again.card.sources[0].name == "caf\\xe9"
    assert again.card.sources[0].documents == 4
    assert (again.card.licence, again.card.allowed_uses) == ("\\xe9", ("\\xe9",))
    assert noted == ["caf\\xe9: 1 skipped: 1 not text (p\\xe9.bin)"]
    assert legible("plain é") == "plain é"


def test_prepared_data_is_no_text(folder, tmp_path):
    made = prepare([folder], folder / "data")
    (folder / "c.txt").write_text("third")
    found, tally = documents(folder)
    assert found == ["first", "second", "third"]
    assert list(tally.reasons) == ["a prepared dataset"]
    with pytest.raises(ConfigError, match="a prepared dataset already"):
        prepare([made.folder], tmp_path / "out")
