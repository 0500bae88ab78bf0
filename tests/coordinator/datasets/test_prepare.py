"""From text to a folder: which documents, in which part, under which digest, with which card."""

import itertools
import json
import shutil
import sys
import types
from typing import Any

import numpy as np
import pytest

from coordinator.datasets import Dataset, prepare
from coordinator.datasets.card import HELDOUT_FILE, TRAIN_FILE
from coordinator.datasets.reading import Tally
from coordinator.datasets.sources import parse_source
from protocol.errors import ConfigError


def all_tokens(dataset):
    return [np.fromfile(dataset.folder / name, dtype=dataset.dtype) for name in (TRAIN_FILE, HELDOUT_FILE)]


def stored_documents(dataset):
    """Documents of both parts, as text."""
    documents = []
    for part in all_tokens(dataset):
        ends = np.flatnonzero(part == dataset.card.end_of_document)
        documents.append([bytes(piece[piece < 256].astype(np.uint8)).decode() for piece in np.split(part, ends)])
    return [[text for text in part if text] for part in documents]


def test_digest_depends_on_the_text_and_not_on_where_it_lies(dataset, text_folder, tmp_path):
    copy = shutil.copytree(text_folder, tmp_path / "elsewhere")
    again = prepare([copy], tmp_path / "out", heldout_share=0.2)
    assert again.digest == dataset.digest
    assert again.card.sources[0].name == "elsewhere"
    (copy / "part0" / "0000.txt").write_text("changed")
    assert prepare([copy], tmp_path / "out", heldout_share=0.2).digest != dataset.digest


def test_what_is_held_out_is_decided_by_the_text_alone(dataset, text_folder, tmp_path):
    train, heldout = stored_documents(dataset)
    (tmp_path / "fewer").mkdir()
    for path in sorted(text_folder.rglob("*.txt"))[:40]:
        shutil.copy(path, tmp_path / "fewer" / f"renamed-{path.name}")
    fewer_train, fewer_heldout = stored_documents(prepare([tmp_path / "fewer"], tmp_path / "out", heldout_share=0.2))
    moved = set(fewer_train) & set(heldout) | set(fewer_heldout) & set(train)
    assert len(moved) <= 2, "only the extremes of the first window may change sides"
    assert len(fewer_train) + len(fewer_heldout) == 40


def test_card_tells_counts_and_holds_no_path(dataset, text_folder):
    card = dataset.card
    assert card.train_documents + card.heldout_documents == card.sources[0].documents == 60
    assert card.sources[0].text_bytes == sum(path.stat().st_size for path in text_folder.rglob("*.txt"))
    assert card.train_tokens + card.heldout_tokens == card.sources[0].text_bytes + 60
    assert card.licence == "unknown"
    assert str(text_folder.parent) not in card.to_json().decode()
    assert json.loads(dataset.tokenizer_json)["model"]["type"] == "BPE"


def test_licence_and_uses_are_what_the_operator_says(text_folder, tmp_path):
    card = prepare([text_folder], tmp_path, licence="CC0-1.0", allowed_uses=["training"]).card
    assert (card.licence, card.allowed_uses) == ("CC0-1.0", ("training",))


def test_duplicates_count_once_and_what_is_not_text_is_skipped(tmp_path):
    folder = tmp_path / "mixed"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("hidden")
    (folder / "a.txt").write_text("first document")
    (folder / "b.txt").write_text("second document")
    (folder / "same.txt").write_text("first document")
    (folder / "binary").write_bytes(b"\x00\x01text")
    (folder / "latin").write_bytes("café".encode("latin-1"))
    (folder / "empty").write_bytes(b" \n")
    dataset = prepare([folder], tmp_path / "out")
    (source,) = dataset.card.sources
    assert (source.documents, source.duplicates, source.skipped) == (2, 1, 3)
    assert sorted(itertools.chain(*stored_documents(dataset))) == ["first document", "second document"]


def test_two_documents_give_both_parts_something(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    card = prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", heldout_share=1e-9).card
    assert (card.train_documents, card.heldout_documents) == (1, 1)


def test_one_document_is_too_few(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(ConfigError, match="at least 2"):
        prepare([tmp_path / "a.txt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_long_file_is_cut_at_line_ends_and_nothing_is_lost(tmp_path):
    text = "".join(f"line {number} of one long text\n" + "\n" * (number % 9 == 0) for number in range(9000))
    path = tmp_path / "long.txt"
    path.write_text(text)
    pieces = list(parse_source(path).documents(Tally()))
    assert b"".join(pieces).decode() == text
    assert len(pieces) > 5
    assert all(piece.endswith(b"\n") and len(piece) < 40_000 for piece in pieces)
    assert prepare([path], tmp_path / "out").card.sources[0].kind == "file"


def test_jsonl_holds_a_document_a_line(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"entry {number}"}) + "\n\n" for number in range(9)))
    assert sum(map(len, stored_documents(prepare([path], tmp_path / "out")))) == 9
    path.write_text('{"txt": "misspelt"}\n')
    with pytest.raises(ConfigError, match=r"texts\.jsonl, line 1"):
        prepare([path], tmp_path / "out")


def test_sources_keep_their_order_and_their_cards(text_folder, tmp_path):
    (tmp_path / "extra.txt").write_text("an extra document")
    card = prepare([tmp_path / "extra.txt", text_folder], tmp_path / "out").card
    assert [source.kind for source in card.sources] == ["file", "folder"]
    assert [source.documents for source in card.sources] == [1, 60]


def test_progress_is_told(text_folder, tmp_path):
    told = []
    dataset = prepare([text_folder], tmp_path, progress=lambda documents, tokens: told.append((documents, tokens)))
    assert told[-1] == (60, dataset.card.train_tokens + dataset.card.heldout_tokens)


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ([], {}, "no text source"),
        (["/nowhere/at/all"], {}, "no such file"),
        (["datasets:"], {}, "expected a name"),
        (["stdlib"], {"heldout_share": 0.0}, "between 0 and 1"),
        (["stdlib"], {"heldout_share": 1.0}, "between 0 and 1"),
        (["stdlib"], {"tokenizer": "/nowhere/tokenizer.json"}, "cannot read tokenizer"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, sources, settings, message):
    with pytest.raises(ConfigError, match=message):
        prepare(sources, tmp_path, **settings)


def test_a_place_that_cannot_be_written_is_refused(tmp_path, text_folder):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write"):
        prepare([text_folder], tmp_path / "file" / "data")


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    return prepare(["stdlib"], tmp_path_factory.mktemp("stdlib"))


class TestStandardLibrary:
    def test_is_real_text_with_both_parts(self, stdlib):
        card = stdlib.card
        assert card.licence == "PSF-2.0"
        assert card.train_documents > 300
        assert 0.01 < card.heldout_tokens / (card.heldout_tokens + card.train_tokens) < 0.15
        train, heldout = stored_documents(stdlib)
        assert any("class JSONDecoder" in text for text in train + heldout)
        assert not set(train) & set(heldout)

    def test_digest_is_stable(self, stdlib, tmp_path):
        assert prepare(["stdlib"], tmp_path).digest == stdlib.digest
        assert Dataset.open(stdlib.folder, verify=True).digest == stdlib.digest

    def test_leaves_out_tests_and_packages(self, tmp_path, monkeypatch):
        for kept in ("os.py", "json/decoder.py"):
            (tmp_path / kept).parent.mkdir(exist_ok=True)
            (tmp_path / kept).write_text(f"# {kept}")
        for left_out in (
            "test/test_os.py",
            "json/tests/test_decoder.py",
            "site-packages/torch.py",
            "dist-packages/apt.py",
            "__pycache__/os.py",
            "idlelib/idle_test/a.py",
            "_sysconfigdata__linux.py",
            "LICENSE.txt",
        ):
            (tmp_path / left_out).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / left_out).write_text("left out")
        (tmp_path / "sitecustomize.py").symlink_to(tmp_path / "LICENSE.txt")
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
        assert list(parse_source("stdlib").documents(Tally())) == [b"# os.py", b"# json/decoder.py"]


class TestHubSource:
    def fake(self, monkeypatch, entries, **calls):
        module: Any = types.ModuleType("datasets")

        def load_dataset(path, name, *, split):
            calls.update(path=path, name=name, split=split)
            if path == "missing":
                raise FileNotFoundError("no such dataset")
            return iter(entries)

        module.load_dataset = load_dataset
        module.load_from_disk = lambda path: iter(entries)
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    def test_text_column_becomes_documents(self, monkeypatch, tmp_path):
        entries = [{"text": f"entry {number}", "id": number} for number in range(20)] + [
            {"text": None},
            {"text": "\ud800"},
        ]
        self.fake(monkeypatch, entries)
        card = prepare(["datasets:owner/name"], tmp_path).card
        (source,) = card.sources
        assert (source.kind, source.name, source.documents, source.skipped) == ("datasets", "owner/name", 20, 2)

    def test_config_and_split_are_named(self, monkeypatch):
        calls: dict[str, object] = {}
        module: Any = types.ModuleType("datasets")
        module.load_dataset = lambda path, name, *, split: calls.update(path=path, name=name, split=split) or iter(())
        monkeypatch.setitem(sys.modules, "datasets", module)
        list(parse_source("datasets:owner/name:small@test").documents(Tally()))
        assert calls == {"path": "owner/name", "name": "small", "split": "test"}
        list(parse_source("datasets:owner/name").documents(Tally()))
        assert calls == {"path": "owner/name", "name": None, "split": "train"}

    def test_a_set_without_text_or_without_existence_is_refused(self, monkeypatch, tmp_path):
        self.fake(monkeypatch, [{"body": "x"}])
        with pytest.raises(ConfigError, match='"text" column, got body'):
            prepare(["datasets:owner/name"], tmp_path)
        with pytest.raises(ConfigError, match="no such dataset"):
            prepare(["datasets:missing"], tmp_path)

    def test_says_what_to_install(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ConfigError, match=r"barnraise\[datasets\]"):
            prepare(["datasets:owner/name"], tmp_path)

    def test_a_set_saved_on_disk(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        entries = [f"entry {number}" for number in range(12)]
        datasets.Dataset.from_dict({"text": entries}).save_to_disk(str(tmp_path / "saved"))
        dataset = prepare([f"datasets:{tmp_path / 'saved'}"], tmp_path / "out")
        stored = stored_documents(dataset)
        assert dataset.card.sources[0].name == "saved"
        assert sorted(itertools.chain(*stored)) == sorted(entries)
