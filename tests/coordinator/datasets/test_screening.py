"""What a run keeps to itself to measure submissions on: never leased, secret, in whole stretches, and it rotates."""

import itertools

import numpy as np
import pytest

from coordinator.datasets import Dataset, prepare
from coordinator.datasets.card import TRAIN_FILE
from coordinator.datasets.screening import MOST_SHARE, ROUNDS_A_PART, STRETCH, ScreeningSplit, stretches
from protocol.errors import ConfigError, LocalError

SEQ_LEN, A_ROUND = 32, 16
SECRET, OTHER = b"s" * 32, b"t" * 32


def of(dataset: Dataset, secret=SECRET, share=0.05, **more) -> Dataset:
    return dataset.carved(secret, share=share, a_round=A_ROUND, seq_len=SEQ_LEN, **more)


def numbers(dataset: Dataset, rows) -> list[int]:
    """Which stored sequences `rows` are."""
    stored = np.fromfile(dataset.folder / TRAIN_FILE, dtype=dataset.dtype)
    count = len(stored) // (SEQ_LEN + 1)
    order = {row.tobytes(): n for n, row in enumerate(stored[: count * (SEQ_LEN + 1)].reshape(count, -1))}
    return [order[row.tobytes()] for row in rows]


def test_leases_and_screening_share_no_sequence_and_leave_none_out(dataset):
    run = of(dataset)
    leased = run.train_sequences(SEQ_LEN)
    kept = numbers(dataset, run.screening_batch(7, 10**6, SEQ_LEN))
    served = numbers(dataset, run.sequences(3, 0, leased, SEQ_LEN))
    assert sorted(kept + served) == list(range(dataset.train_sequences(SEQ_LEN)))
    assert len(kept) % STRETCH == 0


def test_the_split_is_made_of_whole_stretches(dataset):
    kept = sorted(numbers(dataset, of(dataset).screening_batch(7, 10**6, SEQ_LEN)))
    for number in kept[::STRETCH]:
        assert number % STRETCH == 0
        assert set(range(number, number + STRETCH)) <= set(kept)


def test_ranges_of_one_seed_stay_disjoint(dataset):
    run = of(dataset)
    ranges = [numbers(dataset, run.sequences(5, start, 20, SEQ_LEN)) for start in range(0, 200, 20)]
    assert len(set(itertools.chain.from_iterable(ranges))) == 200


def test_another_secret_makes_another_split_of_the_same_size(dataset):
    one, other = of(dataset), of(dataset, OTHER)
    assert one.train_sequences(SEQ_LEN) == other.train_sequences(SEQ_LEN)
    kept = [set(numbers(dataset, run.screening_batch(7, 10**6, SEQ_LEN))) for run in (one, other)]
    assert kept[0] != kept[1]


def test_a_worker_cannot_compute_where_its_positions_lie(dataset):
    """With ranks that it can compute, the distance to the true number would grow by a stretch at each one left out."""
    one, other = of(dataset), of(dataset, OTHER)
    assert numbers(dataset, one.sequences(5, 0, 50, SEQ_LEN)) != numbers(dataset, other.sequences(5, 0, 50, SEQ_LEN))
    split = ScreeningSplit.drawn(SECRET, train=100_000, share=0.01, a_round=64)
    found = split.numbers(5, 0, 2_000)
    from coordinator.datasets.permutation import permuted

    guessed = permuted(5, split.leased, 0, 2_000)
    assert abs(np.corrcoef(found, guessed)[0, 1]) < 0.1


def test_rounds_of_one_part_are_drawn_from_it_and_parts_take_turns():
    split = ScreeningSplit.drawn(SECRET, train=100_000, share=0.01, a_round=64)
    parts = [set(part.tolist()) for part in split.parts]
    assert len(parts) == 8
    assert sum(map(len, parts)) == len(set().union(*parts)) == split.train - split.leased
    for round_ in range(3 * ROUNDS_A_PART * len(parts)):
        drawn = split.drawn_for(round_ + 99, 64, round_)
        assert len(set(drawn.tolist())) == 64
        assert set(drawn.tolist()) <= parts[round_ // ROUNDS_A_PART % len(parts)]
    assert set(split.drawn_for(1, 10**6, None).tolist()) == set().union(*parts)


@pytest.mark.parametrize(("train", "a_round"), [(2_000, 64), (2_560, 64), (10_000, 64), (1_000_000, 64), (640, 50)])
def test_there_is_enough_for_several_rounds_and_never_more_than_a_tenth(train, a_round):
    count = STRETCH * stretches(train, 0.01, a_round)
    assert a_round <= count <= train * MOST_SHARE
    split = ScreeningSplit.drawn(SECRET, train=train, share=0.01, a_round=a_round)
    assert all(len(part) >= a_round for part in split.parts)


def test_too_little_text_is_refused_with_what_to_do():
    assert stretches(600, 0.01, 64) == 0
    with pytest.raises(ConfigError, match="screening_share to 0"):
        ScreeningSplit.drawn(SECRET, train=600, share=0.01, a_round=64)


def test_text_that_was_never_published_is_measured_on_and_never_leased(dataset, tmp_path):
    text = tmp_path / "own"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"unpublished {number} " * 30, encoding="utf-8")
    own = prepare([text], tmp_path / "made")
    run = of(dataset, unpublished=own)
    everything = run.screening_batch(7, 10**6, SEQ_LEN)
    assert len(everything) == len(of(dataset).screening_batch(7, 10**6, SEQ_LEN)) + len(own.everything(SEQ_LEN))
    assert sum(b"unpublished" in row.astype(np.uint8).tobytes() for row in everything) > 100
    assert run.train_sequences(SEQ_LEN) == of(dataset).train_sequences(SEQ_LEN)
    served = run.sequences(3, 0, run.train_sequences(SEQ_LEN), SEQ_LEN)
    assert not any(b"unpublished" in row.astype(np.uint8).tobytes() for row in served)


def test_a_run_without_a_split_measures_on_the_public_part_and_serves_as_before(dataset):
    assert not dataset.has_secret_split
    assert np.array_equal(dataset.screening_batch(7, A_ROUND, SEQ_LEN, 3), dataset.heldout_batch(7, A_ROUND, SEQ_LEN))


def test_a_split_serves_the_length_that_it_was_drawn_for_alone(dataset):
    with pytest.raises(LocalError, match="carved for"):
        of(dataset).train_sequences(SEQ_LEN * 2)
