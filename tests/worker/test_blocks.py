"""Which downloaded blocks stay on a volunteer's disk, and which give way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from protocol.ids import Digest, digest_of
from worker.blocks import BlockCache


def content(number: int) -> bytes:
    return bytes([number]) * 4


def put(cache: BlockCache, number: int, *, used_at_s: int = 0) -> Digest:
    digest = digest_of(content(number))
    cache.partial(digest).write_bytes(content(number))
    cache.adopt(digest)
    os.utime(cache.path(digest), (used_at_s, used_at_s))
    return digest


def here(cache: BlockCache, digests: list[Digest]) -> list[bool]:
    return [cache.path(digest).exists() for digest in digests]


def test_blocks_that_no_version_names_any_more_go_when_the_next_lease_begins(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    trunk, trained, untrained = put(cache, 1), put(cache, 2), put(cache, 3)
    new_trunk, new_trained = digest_of(content(4)), digest_of(content(5))
    cache.expect({new_trunk, new_trained}, {new_trunk, new_trained, untrained})
    assert here(cache, [trunk, trained, untrained]) == [False, False, True], "what nobody trained serves again"
    assert cache.has(untrained, 4)


def test_downloads_that_broke_off_go_with_their_version_and_go_on_within_it(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    stale, wanted = digest_of(content(1)), digest_of(content(2))
    cache.partial(stale).write_bytes(b"\1")
    cache.partial(wanted).write_bytes(b"\2\2\2")
    (tmp_path / "left by nobody knows whom").write_bytes(b"x")
    cache.expect({wanted}, {wanted})
    assert [path.name for path in tmp_path.iterdir()] == [f"{wanted}.part"]
    assert cache.missing_bytes(wanted, 4) == 1
    assert cache.missing_bytes(stale, 4) == 4


def test_trimming_takes_the_longest_unused_first_and_never_what_the_lease_needs(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    digests = [put(cache, number, used_at_s=number) for number in range(4)]
    cache.expect({digests[0]}, digests)
    assert cache.used_bytes == 16
    assert cache.trim(9) == 8
    assert here(cache, digests) == [True, False, False, True]
    assert cache.trim(0) == 4
    assert here(cache, digests) == [True, False, False, False]
    assert cache.trim(0) == 0


def test_a_block_that_was_removed_is_believed_again_only_after_its_digest_was_checked(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path)
    digest = put(cache, 1)
    cache.trim(0)
    cache.path(digest).write_bytes(b"fake")
    assert not cache.has(digest, 4)


def test_what_cannot_be_removed_stays_and_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = BlockCache(tmp_path)
    digest = put(cache, 1)

    def refuse(_path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.trim(0) == 0
    cache.expect({digest_of(content(2))}, ())
    assert here(cache, [digest]) == [True]
