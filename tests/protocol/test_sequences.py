"""Token sequences on the wire: exact round trips, and refusal of whatever was not leased."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalError, MalformedMessage
from protocol.sequences import HEADER, decode_sequences, encode_sequences, max_payload_bytes, token_dtype


def tokens(count=3, length=5, dtype=np.uint16, top=264):
    return np.random.default_rng(0).integers(0, top, size=(count, length)).astype(dtype)


@pytest.mark.parametrize(
    ("vocab_size", "bytes_a_token"), [(1, 1), (256, 1), (257, 2), (65536, 2), (65537, 4), (2**32, 4)]
)
def test_tokens_take_the_narrowest_type(vocab_size, bytes_a_token):
    assert token_dtype(vocab_size).itemsize == bytes_a_token
    assert vocab_size - 1 <= np.iinfo(token_dtype(vocab_size)).max


@given(count=st.integers(0, 5), length=st.integers(1, 9), dtype=st.sampled_from([np.uint8, np.uint16, np.uint32]))
def test_round_trip(count, length, dtype):
    top = int(np.iinfo(dtype).max)
    sent = tokens(count, length, dtype, top)
    payload = encode_sequences(sent)
    got = decode_sequences(payload, count, length, top + 1)
    assert got.dtype == np.int64
    assert np.array_equal(got, sent)
    assert len(payload) <= max_payload_bytes(count, length)


def test_bytes_are_the_same_whatever_the_layout_in_memory():
    sent = tokens(4, 6)
    assert encode_sequences(np.asfortranarray(sent)) == encode_sequences(sent)
    assert encode_sequences(sent.astype(">u2")) == encode_sequences(sent)
    assert encode_sequences(np.array([[0x0102]], np.uint16)).endswith(b"\x02\x01")


def test_decoded_tokens_can_be_written_to():
    got = decode_sequences(encode_sequences(tokens()), 3, 5, 264)
    got[0, 0] = 1
    assert got.flags.writeable
    assert got.flags.c_contiguous


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: b"", "less than"),
        (lambda p: p[: HEADER.size - 1], "less than"),
        (lambda p: p[:-1], "bytes, got"),
        (lambda p: p + b"\0", "bytes, got"),
        (lambda p: b"XXXX" + p[4:], "magic"),
        (lambda p: p[:5] + b"\1" + p[6:], "padding"),
        (lambda p: p[:4] + b"\3" + p[5:], "1, 2 or 4"),
        (lambda p: p[:4] + b"\0" + p[5:], "1, 2 or 4"),
        (lambda p: p[:4] + b"\4" + p[5:], "bytes, got"),
        (lambda p: p[:8] + struct.pack(">II", 5, 3) + p[16:], "3 x 5"),
        (lambda p: p[:8] + struct.pack(">II", 2**32 - 1, 2**32 - 1) + p[16:], "3 x 5"),
        (lambda p: p[:-2] + b"\x08\x01", "token 264"),
    ],
)
def test_hostile_payloads_are_refused(spoil, message):
    with pytest.raises(MalformedMessage, match=message):
        decode_sequences(spoil(encode_sequences(tokens())), 3, 5, 264)


@settings(max_examples=200)
@given(payload=st.binary(max_size=64))
def test_noise_is_refused_or_decodes_within_the_vocabulary(payload):
    try:
        got = decode_sequences(payload, 2, 3, 100)
    except MalformedMessage:
        return
    assert got.shape == (2, 3)
    assert got.max() < 100


@given(position=st.integers(0, 45), value=st.integers(0, 255))
def test_one_changed_byte_never_leaves_the_lease(position, value):
    payload = bytearray(encode_sequences(tokens()))
    payload[position] = value
    try:
        got = decode_sequences(payload, 3, 5, 264)
    except MalformedMessage:
        return
    assert got.shape == (3, 5)
    assert 0 <= got.min() <= got.max() < 264


@pytest.mark.parametrize("array", [tokens().astype(np.int64), tokens().ravel(), tokens().astype(np.float32)])
def test_only_unsigned_rows_are_sent(array):
    with pytest.raises(LocalError):
        encode_sequences(array)


@pytest.mark.parametrize(("count", "length"), [(-1, 5), (1, 0), (1 << 20, 1 << 20)])
def test_a_lease_of_impossible_shape_is_our_bug(count, length):
    with pytest.raises(LocalError):
        decode_sequences(b"", count, length, 264)


def test_a_vocabulary_of_nothing_is_our_bug():
    with pytest.raises(LocalError):
        token_dtype(0)
