"""One manifest, one byte string; anything else is refused with the field's name."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, Unauthenticated
from protocol.identity import PrivateIdentity
from protocol.ids import TRUNK, Digest, RoundNumber, RunId, Version, column_block
from protocol.limits import MAX_CONTROL_BYTES
from protocol.manifest import (
    MAX_STEPS,
    BlockRef,
    DeltaRef,
    FrozenRefs,
    Manifest,
    sign_manifest,
    verify_manifest,
)

_REF = BlockRef(digest=Digest("ab" * 32), payload_bytes=1234)
_MANIFEST = Manifest(
    run_id=RunId("run-1"),
    version=Version(3),
    parent_version=Version(2),
    round=RoundNumber(3),
    created_at_s=1.5e9,
    model={"architecture": "olmoe", "layers": 2, "eps": 1e-05},
    residency="frozen",
    blocks={TRUNK: _REF, column_block(0): _REF, column_block(10): _REF},
    momenta={TRUNK: _REF},
    val_loss=2.25,
    tokens_trained=10**12,
)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _FINITE | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_REFS = st.builds(
    BlockRef,
    digest=st.from_regex(r"[0-9a-f]{64}", fullmatch=True).map(Digest),
    payload_bytes=st.integers(0, 2**53),
)


@given(
    model=st.dictionaries(st.text(max_size=8), _JSON, max_size=4),
    created_at_s=_FINITE,
    val_loss=st.none() | _FINITE,
    refs=st.dictionaries(st.integers(0, 5000).map(column_block), _REFS, min_size=1, max_size=6),
    version=st.integers(1, 2**53),
)
def test_round_trip(
    model: dict[str, Any], created_at_s: float, val_loss: float | None, refs: dict[Any, BlockRef], version: int
) -> None:
    manifest = replace(
        _MANIFEST,
        model=model,
        created_at_s=created_at_s,
        val_loss=val_loss,
        version=Version(version),
        parent_version=Version(version - 1),
        blocks=refs,
        momenta=dict(list(refs.items())[:2]),
    )
    content = manifest.to_json()
    assert Manifest.from_json(content) == manifest
    assert Manifest.from_json(content).to_json() == content


def test_whole_numbers_of_seconds_and_loss_stay_reals() -> None:
    manifest = replace(_MANIFEST, created_at_s=7, val_loss=2)
    assert Manifest.from_json(manifest.to_json()).val_loss == 2.0


def test_order_of_blocks_does_not_matter() -> None:
    shuffled = replace(_MANIFEST, blocks=dict(reversed(list(_MANIFEST.blocks.items()))))
    assert shuffled.to_json() == _MANIFEST.to_json()


def test_version_0_has_no_parent() -> None:
    first = replace(_MANIFEST, version=Version(0), parent_version=None)
    assert Manifest.from_json(first.to_json()) == first


def _changed(path: list[str], value: Any) -> bytes:
    fields = json.loads(_MANIFEST.to_json())
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["version"], -1, "field version"),
        (["version"], 3.0, "field version"),
        (["version"], True, "field version"),
        (["version"], "3", "field version"),
        (["version"], 2**53 + 1, "field version"),
        (["version"], 0, "cannot have parent_version 2"),
        (["version"], 2, "cannot have parent_version 2"),
        (["parent_version"], None, "cannot have parent_version None"),
        (["round"], -1, "field round"),
        (["tokens_trained"], 1.5, "field tokens_trained"),
        (["created_at_s"], 1, "field created_at_s"),
        (["created_at_s"], float("inf"), "not JSON"),
        (["val_loss"], float("nan"), "not JSON"),
        (["val_loss"], "2", "field val_loss"),
        (["residency"], "both", "residency must be one of frozen, absent"),
        (["residency"], ["frozen"], "residency must be one of"),
        (["model"], [], "field model"),
        (["run_id"], "", "run_id"),
        (["run_id"], "a\nb", "run_id"),
        (["run_id"], "\ud800", "run_id"),
        (["run_id"], "a" * 129, "run_id"),
        (["run_id"], 5, "run_id"),
        (["extra"], 1, "unknown fields: extra"),
        (["blocks"], {}, "must name blocks"),
        (["blocks"], [], "field blocks"),
        (["momenta", "column.3"], {"digest": "ab" * 32, "payload_bytes": 1}, "momenta for none but those"),
        (["blocks", "column.01"], {"digest": "ab" * 32, "payload_bytes": 1}, "invalid block id"),
        (["blocks", "../trunk"], {"digest": "ab" * 32, "payload_bytes": 1}, "invalid block id"),
        (["blocks", "column." + "9" * 5000], {"digest": "ab" * 32, "payload_bytes": 1}, "invalid block id"),
        (["blocks", "trunk"], {"digest": "ab" * 32}, "must have digest and payload_bytes"),
        (["blocks", "trunk", "digest"], "AB" * 32, "digest"),
        (["blocks", "trunk", "digest"], "ab" * 32 + "\n", "digest"),
        (["blocks", "trunk", "digest"], "../../etc/passwd", "digest"),
        (["blocks", "trunk", "payload_bytes"], -1, "field payload_bytes"),
        (["blocks", "trunk", "payload_bytes"], 10**30, "field payload_bytes"),
    ],
)
def test_each_wrong_field_is_named(path: list[str], value: Any, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        Manifest.from_json(_changed(path, value))


@pytest.mark.parametrize("field", sorted(set(Manifest.__slots__) - {"deltas", "masters", "frozen"}))
def test_each_missing_field_is_named(field: str) -> None:
    fields = json.loads(_MANIFEST.to_json())
    del fields[field]
    with pytest.raises(MalformedMessage, match=f"unknown fields: {field}"):
        Manifest.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda content: b" " + content, id="blank"),
        pytest.param(lambda content: content.replace(b'"round":3', b'"round":3,"round":3'), id="key twice"),
        pytest.param(lambda content: content.replace(b"2.25", b"2.250"), id="number"),
        pytest.param(lambda content: content.replace(b"run-1", b"\\u0072un-1"), id="escape"),
        pytest.param(lambda content: content[:-1] + b',"a":1}', id="unknown"),
        pytest.param(lambda content: b'{"version":3,' + content[1:], id="order"),
    ],
)
def test_any_other_spelling_is_refused(alter: Callable[[bytes], bytes]) -> None:
    content = _MANIFEST.to_json()
    altered = alter(content)
    assert altered != content
    with pytest.raises(MalformedMessage):
        Manifest.from_json(altered)


@given(garbage=st.binary(max_size=100))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Manifest.from_json(garbage)


@given(data=st.data())
def test_every_truncation_is_refused(data: st.DataObject) -> None:
    content = _MANIFEST.to_json()
    with pytest.raises(MalformedMessage):
        Manifest.from_json(content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"9" * 100_000, id="long number"),
        pytest.param(b"NaN", id="nan"),
        pytest.param("é".encode(), id="not ASCII"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"model":' + b'{"a":' * (sys.getrecursionlimit() - 100), id="deep object"),
    ],
)
def test_bombs_are_refused(content: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Manifest.from_json(content)


def test_size_is_checked_before_anything_is_read() -> None:
    with pytest.raises(MalformedMessage, match="at most"):
        Manifest.from_json(b"[" * (MAX_CONTROL_BYTES + 1))


def test_a_manifest_of_the_largest_planned_model_fits() -> None:
    refs = {column_block(column): _REF for column in range(1024)}
    manifest = replace(_MANIFEST, blocks=refs, momenta=refs)
    assert len(manifest.to_json()) < MAX_CONTROL_BYTES // 2


def test_signatures_hold_for_the_exact_bytes_and_the_manifest_key() -> None:
    identity, other = PrivateIdentity.generate(), PrivateIdentity.generate()
    content = _MANIFEST.to_json()
    signature = sign_manifest(identity, content)
    verify_manifest(identity.public_key, content, signature)
    for key, text in ((identity.public_key, content + b" "), (other.public_key, content)):
        with pytest.raises(Unauthenticated):
            verify_manifest(key, text, signature)
    with pytest.raises(Unauthenticated):  # a signature without the manifest's domain
        verify_manifest(identity.public_key, content, identity.sign(content))


# ---- steps, masters, columns that are not held -------------------------------------------------------------------

_STEP = DeltaRef(base=Digest("cd" * 32), digest=Digest("ef" * 32), payload_bytes=99, codec="int8")
_FROZEN = FrozenRefs(version=Version(1), codec="int4", blocks={column_block(0): _REF, column_block(10): _REF})
_FULL = replace(_MANIFEST, deltas={TRUNK: (_STEP, _STEP)}, masters={TRUNK: _REF}, frozen=_FROZEN)


def test_what_later_manifests_name_comes_back() -> None:
    assert Manifest.from_json(_FULL.to_json()) == _FULL


def test_a_manifest_of_before_is_the_byte_string_that_it_was() -> None:
    assert not {"deltas", "masters", "frozen"} & json.loads(_MANIFEST.to_json()).keys()
    found = Manifest.from_json(_MANIFEST.to_json())
    assert (found.deltas, found.masters, found.frozen) == ({}, {}, None)


@pytest.mark.parametrize("field", ["deltas", "masters", "frozen"])
@pytest.mark.parametrize("value", [{}, None, [], "x", 0])
def test_what_says_nothing_is_left_out(field: str, value: object) -> None:
    with pytest.raises(MalformedMessage, match=field):
        Manifest.from_json(_bent(lambda fields: fields.update({field: value})))


def _bent(change: Callable[[dict[str, Any]], object]) -> bytes:
    fields = json.loads(_FULL.to_json())
    change(fields)
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f["deltas"].update({"column.7": f["deltas"]["trunk"]}), "one of its blocks"),
        (lambda f: f["deltas"].update(trunk=[]), "one of its blocks"),
        (lambda f: f["deltas"].update(trunk={}), "one of its blocks"),
        (lambda f: f["deltas"]["trunk"].append(7), "base, digest"),
        (lambda f: f["deltas"]["trunk"][0].pop("base"), "base, digest"),
        (lambda f: f["deltas"]["trunk"][0].update(base="../../secret"), "hexadecimal"),
        (lambda f: f["deltas"]["trunk"][0].update(digest=5), "hexadecimal"),
        (lambda f: f["deltas"]["trunk"][0].update(payload_bytes=-1), "payload_bytes"),
        (lambda f: f["deltas"]["trunk"][0].update(codec=""), "codec"),
        (lambda f: f["deltas"]["trunk"][0].update(codec="a" * 33), "codec"),
        (lambda f: f["deltas"]["trunk"][0].update(codec="\x1b[2J"), "codec"),
        (lambda f: f["deltas"].update(trunk=f["deltas"]["trunk"] * MAX_STEPS), "steps"),
        (lambda f: f["masters"].update({"column.7": f["masters"]["trunk"]}), "masters"),
        (lambda f: f["frozen"].update(version=4), "version 4"),
        (lambda f: f["frozen"].update(version=-1), "version"),
        (lambda f: f["frozen"].update(codec=None), "codec"),
        (lambda f: f["frozen"].pop("blocks"), "frozen"),
        (lambda f: f["frozen"]["blocks"].update({"column.7": f["masters"]["trunk"]}), "frozen"),
    ],
)  # fmt: skip
def test_hostile_steps_and_encodings_are_refused(change: Callable[[dict[str, Any]], object], named: str) -> None:
    with pytest.raises(MalformedMessage, match=named):
        Manifest.from_json(_bent(change))


def test_the_largest_chains_stay_within_a_control_message() -> None:
    blocks = {column_block(column): _REF for column in range(1024)}
    chains = {block: (_STEP,) * (MAX_STEPS // len(blocks)) for block in blocks}
    frozen = replace(_FROZEN, blocks=blocks)
    whole = replace(_MANIFEST, blocks=blocks, momenta={}, deltas=chains, masters=blocks, frozen=frozen)
    content = whole.to_json()
    assert len(content) <= MAX_CONTROL_BYTES
    assert Manifest.from_json(content) == whole
