"""What leases are served: disjoint, whole, never held out."""

import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.datasets import Dataset, prepare
from coordinator.datasets.card import CARD_FILE, HELDOUT_FILE, TRAIN_FILE
from protocol.errors import ConfigError, LocalError
from protocol.sequences import decode_sequences, encode_sequences

SEQ_LEN = 32


def text_of(rows):
    return "".join(bytes(row[row < 256].astype(np.uint8)).decode() for row in rows)


def documents_in(text):
    """Numbers of documents of which a whole line stands in `text`."""
    return {int(line.split()[1]) for line in text.splitlines() if line.startswith("document ") and line.count(" ") == 5}


def in_stored_order(dataset, seq_len):
    """Every training sequence, in the order of the file: what the permutation serves, sorted back."""
    count = dataset.train_sequences(seq_len)
    rows = dataset.sequences(3, 0, count, seq_len)
    stored = np.fromfile(dataset.folder / TRAIN_FILE, dtype=dataset.dtype)[: rows.size].reshape(rows.shape)
    order = {row.tobytes(): index for index, row in enumerate(stored)}
    assert len(order) == count, "the fixture's sequences must all differ"
    return rows[np.argsort([order[row.tobytes()] for row in rows])], stored


def test_every_stored_sequence_is_served_once(dataset):
    served, stored = in_stored_order(dataset, SEQ_LEN)
    assert np.array_equal(served, stored)


def test_held_out_documents_are_never_served(dataset):
    heldout = np.fromfile(dataset.folder / HELDOUT_FILE, dtype=dataset.dtype)
    held_out_documents = documents_in(text_of([heldout]))
    served, _ = in_stored_order(dataset, SEQ_LEN)
    served_text = text_of(served)
    served_documents = documents_in(served_text)
    assert held_out_documents
    assert served_documents
    assert not held_out_documents & served_documents
    assert len(held_out_documents) + len(served_documents) == 60
    assert not any(line in served_text for line in text_of([heldout]).splitlines())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**63))
def test_ranges_that_do_not_overlap_share_no_sequence(dataset, data, seed):
    size = dataset.train_sequences(SEQ_LEN)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=6, unique=True)))
    rows = [dataset.sequences(seed, start, stop - start, SEQ_LEN) for start, stop in itertools.pairwise(cuts)]
    served = [row.tobytes() for part in rows for row in part]
    assert len(served) == cuts[-1] - cuts[0]
    assert len(set(served)) == len(served)


def test_sequences_are_copies_of_the_right_type(dataset):
    rows = dataset.sequences(1, 0, 4, SEQ_LEN)
    assert rows.shape == (4, SEQ_LEN + 1)
    assert rows.dtype == dataset.dtype == np.uint16
    rows[:] = 0
    assert dataset.sequences(1, 0, 4, SEQ_LEN).any()


def test_go_over_the_wire_as_they_are(dataset):
    rows = dataset.sequences(1, 2, 5, SEQ_LEN)
    assert np.array_equal(decode_sequences(encode_sequences(rows), 5, SEQ_LEN + 1, dataset.vocab_size), rows)


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, -1), (0, 10**9), (10**9, 1)])
def test_positions_outside_are_refused(dataset, start, count):
    with pytest.raises(LocalError, match="positions"):
        dataset.sequences(0, start, count, SEQ_LEN)


def test_heldout_batches_are_drawn_by_seed_without_repetition(dataset):
    size = dataset.heldout_sequences(SEQ_LEN)
    batch = dataset.heldout_batch(5, 8, SEQ_LEN)
    assert np.array_equal(batch, dataset.heldout_batch(5, 8, SEQ_LEN))
    assert not np.array_equal(batch, dataset.heldout_batch(6, 8, SEQ_LEN))
    assert len({row.tobytes() for row in batch}) == 8
    assert len(dataset.heldout_batch(5, 10**6, SEQ_LEN)) == size


def test_heldout_all_is_spread_over_the_whole_part(dataset):
    everything = dataset.heldout_all(SEQ_LEN)
    assert len(everything) == dataset.heldout_sequences(SEQ_LEN)
    some = dataset.heldout_all(SEQ_LEN, 10)
    step = len(everything) / 10
    assert np.array_equal(some, everything[[int(i * step) for i in range(10)]])
    assert len(dataset.heldout_all(SEQ_LEN, 10**6)) == len(everything)


def test_a_held_out_part_shorter_than_a_sequence_says_so(dataset):
    with pytest.raises(ConfigError, match="do not make one sequence"):
        dataset.heldout_all(10**6)


def test_opens_by_the_folder_above_when_it_holds_one(dataset):
    assert Dataset.open(dataset.folder.parent, verify=True).digest == dataset.digest


@pytest.fixture
def copied(dataset, tmp_path):
    return shutil.copytree(dataset.folder, tmp_path / "copy")


def test_two_datasets_below_a_folder_have_to_be_named(copied, dataset):
    shutil.copytree(dataset.folder, copied.parent / "another")
    with pytest.raises(ConfigError, match="2 datasets"):
        Dataset.open(copied.parent)


def test_a_flipped_bit_is_found_by_verification(copied):
    path = copied / TRAIN_FILE
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"train\.bin: digest expected"):
        Dataset.open(copied, verify=True)


@pytest.mark.parametrize("name", [TRAIN_FILE, HELDOUT_FILE])
def test_a_cut_file_is_found_at_once(copied, name):
    path = copied / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ConfigError, match="prepare the data again"):
        Dataset.open(copied)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        Dataset.open(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 300},
        {"train_sha256": "0" * 64},
        {"format": "barnraise-dataset-0"},
        {"digest": "0" * 64},
        {"sources": "none"},
        {"train_tokens": None},
        {"token_bytes": -2},
    ],
)
def test_a_card_that_does_not_go_with_its_digest_is_refused(copied, change):
    card = json.loads((copied / CARD_FILE).read_bytes())
    (copied / CARD_FILE).write_text(json.dumps({**card, **change}))
    with pytest.raises(ConfigError):
        Dataset.open(copied)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_card_is_refused(copied, raw):
    (copied / CARD_FILE).write_bytes(raw)
    with pytest.raises(ConfigError, match="not a card"):
        Dataset.open(copied)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a prepared dataset"):
        Dataset.open(tmp_path)
    with pytest.raises(ConfigError, match="not a prepared dataset"):
        Dataset.open(tmp_path / "nowhere")


def test_sequence_length_below_one_is_our_bug(dataset):
    with pytest.raises(LocalError, match="at least 1"):
        dataset.train_sequences(0)


def test_a_dataset_prepared_twice_is_one(dataset, text_folder):
    again = prepare([text_folder], dataset.folder.parent, heldout_share=0.2)
    assert again.folder == dataset.folder
    assert [path.name for path in dataset.folder.parent.iterdir()] == [dataset.digest]
