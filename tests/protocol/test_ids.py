import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import TRUNK, BlockId, column_block, column_of, digest_of, worker_id_of


@given(column=st.integers(0, 10**9))
def test_columns_round_trip(column: int) -> None:
    assert column_of(column_block(column)) == column


@given(text=st.text(max_size=12) | st.text(max_size=6).map("column.".__add__))
def test_only_canonical_block_ids_are_read(text: str) -> None:
    try:
        column = column_of(BlockId(text))
    except ValueError:
        return
    assert text == (TRUNK if column is None else column_block(column))


@pytest.mark.parametrize(
    "text", ["", "column.", "column.-1", "column.01", "column.1 ", "column.²", "Trunk", "column.1_0"]
)
def test_look_alikes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a block id"):
        column_of(BlockId(text))


def test_negative_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        column_block(-1)


def test_digests_and_worker_ids_are_hashes() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert worker_id_of(bytes(32)) == digest_of(bytes(32))[:32]
    with pytest.raises(ValueError, match="32 bytes, got 31"):
        worker_id_of(bytes(31))


def test_light_modules_stay_light() -> None:
    program = (
        "import sys, protocol, protocol.ids, protocol.errors, protocol.limits, protocol.joinlink, protocol.framing;"
        "print(sorted({'torch','grpc','numpy','transformers','cryptography','ssl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
