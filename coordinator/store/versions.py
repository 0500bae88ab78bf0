"""Versions of the model on disk: manifests, the blocks and momenta that they name, and which is whose.

Decides how a version is written and read back; touches the blocks of one run, and the index `versions/`. Always:
everything a manifest names is durable before the manifest is, and the index names the manifest last. Writing the same
version for the same reason again answers with what is there (a command may be repeated after a restart). Light: torch
comes with the first tensor, so that an operator's question need not wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.store.ports import BlobStore, PutParts
from moe.layout import Layout, block_tensor_specs
from protocol.codecs import FP32, codec_named
from protocol.errors import ConfigError, LocalError
from protocol.ids import TRUNK, BlockId, Digest, Version
from protocol.lease import AS_PUBLISHED, FrozenColumns, Lease
from protocol.manifest import BlockRef, FrozenRefs, Manifest
from protocol.private_files import write_private
from protocol.specs import Spanned

if TYPE_CHECKING:
    from torch import Tensor

    from protocol.encoded_block import EncodedBlock

Tensors = dict[str, "Tensor"]


class Versions:
    """All versions of one run."""

    def __init__(self, folder: Path, blobs: BlobStore, layout: Layout) -> None:
        self._folder = folder
        self._blobs = blobs
        self._layout = layout
        folder.mkdir(mode=0o700, exist_ok=True)
        self._read_manifest = lru_cache(maxsize=8)(self._parse_manifest)
        self._served: frozenset[Digest] = frozenset()
        self.held: Callable[[], frozenset[int]] = frozenset
        """Versions that stay though the run needs them no more: somebody is being given them."""

    def manifest_digest(self, version: int) -> Digest | None:
        """The manifest of `version`, if that version has been written and not dropped."""
        entry = self._entry(version)
        return None if entry is None else Digest(entry["manifest"])

    def manifest_bytes(self, digest: Digest) -> bytes:
        """The manifest as it is signed."""
        return self._blobs.read(digest)

    def manifest(self, digest: Digest) -> Manifest:
        """The manifest, parsed."""
        return self._read_manifest(digest)

    def load_block(self, block: BlockId, ref: BlockRef) -> Tensors:
        """A block, or its momentum, where it lies (`BlobStore.view`), in no memory of its own; not to be written to.

        Read once beforehand, to be checked against its digest: a disk that fails, fails there, with an OSError.
        """
        from protocol.tensors import encoded_tensors

        self._blobs.check(ref.digest)
        encoded = encoded_tensors(self._blobs.view(ref.digest), block_tensor_specs(self._layout, block), FP32)
        return {name: tensor.whole() for name, tensor in encoded.items()}

    def load_blocks(self, manifest: Manifest) -> dict[BlockId, Tensors]:
        """Every block of a version, as `load_block` does."""
        return {block: self.load_block(block, ref) for block, ref in manifest.blocks.items()}

    def stand_ins(self, manifest: Manifest, lease: Lease) -> dict[BlockId, EncodedBlock]:
        """What `lease` is trained with of columns that it does not hold, where it lies, as `load_block` has the others,
        in the very bytes that workers are given; none where that is `manifest`'s own.

        LocalError where `manifest`, its base version's, has them in no such encoding.
        """
        wanted = lease.frozen
        if not wanted.codec:
            return {}
        found = manifest.frozen
        if found is None or frozen_columns(manifest) != wanted:
            raise LocalError(f"lease {lease.lease_id}: version {manifest.version} has no frozen columns as in {wanted}")
        return {
            block: self._encoded(block, ref, wanted.codec)
            for block, ref in found.blocks.items()
            if block not in lease.own
        }

    def put_frozen(
        self,
        version: Version,
        codec: str,
        blocks: Mapping[BlockId, BlockRef],
        told: Callable[[int, int], object] = lambda _done, _all: None,
    ) -> FrozenRefs:
        """Keep the columns among `blocks`, which are `version`'s, as those have them that do not hold them.

        `told` hears how many are encoded, of how many.
        """
        from protocol.tensors import encode_parts

        columns = {block: ref for block, ref in blocks.items() if block != TRUNK}
        refs: dict[BlockId, BlockRef] = {}
        with self.keeping() as keep:
            for block, ref in columns.items():
                parts = encode_parts(self.load_block(block, ref), codec_named(codec))
                refs[block] = self._put_parts(parts, keep)
                told(len(refs), len(columns))
        return FrozenRefs(version=version, codec=codec, blocks=refs)

    def keeping(self) -> AbstractContextManager[PutParts]:
        """Inside, blocks and payloads that are kept by what this gives are durable only at the end: all of them."""
        return self._blobs.keeping()

    def put_payload(self, payload: bytes, keep: PutParts | None = None) -> BlockRef:
        """Keep what is encoded already; `keep` as `keeping` gives it."""
        digest = self._blobs.put(payload) if keep is None else keep((payload,))
        return BlockRef(digest=digest, payload_bytes=len(payload))

    def put_block(self, tensors: Mapping[str, Tensor | Spanned], keep: PutParts | None = None) -> BlockRef:
        """Keep a block or a momentum buffer; of one that is made a span at a time, a span is in memory at most.

        `keep` as `keeping` gives it.
        """
        from protocol.tensors import fp32_parts

        return self._put_parts(fp32_parts(tensors), keep)

    def _put_parts(self, parts: Iterable[bytes | memoryview], keep: PutParts | None = None) -> BlockRef:
        payload_bytes = 0

        def counted() -> Iterator[bytes | memoryview]:
            nonlocal payload_bytes
            for part in parts:
                payload_bytes += len(part)
                yield part

        digest = (keep or self._blobs.put_parts)(counted())
        return BlockRef(digest=digest, payload_bytes=payload_bytes)

    def find(self, version: int, cause: str) -> Digest | None:
        """The manifest that `cause` produced for `version` before, if all of it is still here."""
        entry = self._entry(version)
        if entry is None or entry["cause"] != cause:
            return None
        digest = Digest(entry["manifest"])
        if not self._blobs.has(digest):
            return None
        return digest if all(self._blobs.has(named) for named in self.named_by(digest)) else None

    def publish(self, manifest: Manifest, cause: str) -> Digest:
        """Keep a manifest whose blocks are all here, and name it as that version's."""
        missing = [block for block, ref in manifest.blocks.items() if not self._blobs.has(ref.digest)]
        if missing:
            raise LocalError(f"version {manifest.version}: blocks {missing} are named but not written")
        digest = self._blobs.put(manifest.to_json())
        entry = json.dumps({"manifest": digest, "cause": cause})
        write_private(self._path(manifest.version), entry.encode())
        return digest

    def restore_entry(self, version: int, manifest: Digest) -> None:
        """Name `manifest` as that of `version` where the index does not: the index follows the journal."""
        try:
            entry = self._entry(version)
        except ConfigError:
            entry = None
        if entry is None or entry["manifest"] != manifest:
            write_private(self._path(version), json.dumps({"manifest": manifest, "cause": "journal"}).encode())

    def kept(self) -> list[int]:
        """Versions that the index names, oldest first."""
        return sorted(int(path.stem) for path in self._folder.glob("*.json"))

    def named_by(self, manifest: Digest) -> Iterable[Digest]:
        """Everything that a manifest keeps alive."""
        parsed = self.manifest(manifest)
        yield from self.served_by(manifest)
        for ref in (*parsed.momenta.values(), *parsed.masters.values()):
            yield Digest(ref.digest)

    def served_by(self, manifest: Digest) -> Iterable[Digest]:
        """Of these, what is a worker's to download: neither momenta nor what the coordinator goes on from."""
        parsed = self.manifest(manifest)
        frozen = () if parsed.frozen is None else parsed.frozen.blocks.values()
        steps = (step for chain in parsed.deltas.values() for step in chain)
        for ref in (*parsed.blocks.values(), *frozen, *steps):
            yield Digest(ref.digest)

    def is_served(self, digest: Digest) -> bool:
        """Whether some version that is kept names `digest` among what workers download."""
        if digest not in self._served:  # a version has come, or somebody asks for what is none
            self._served = self.served()
        return digest in self._served

    def served(self) -> frozenset[Digest]:
        """All that workers download of the versions that are kept, looked up anew."""
        manifests = (self.manifest_digest(version) for version in self.kept())
        kept = [one for one in manifests if one is not None and self._blobs.has(one)]
        return frozenset(named for one in kept for named in self.served_by(one))

    def keep_from(self, oldest: Version) -> int:
        """Drop versions below `oldest` and sweep what nothing names any more; returns how many blobs went.

        Only while nobody writes blocks: what was put and is not named yet would go, too. Version 0 stays: it is what
        the run began with.
        """
        keep: set[Digest] = set()
        held = self.held()
        for version in self.kept():
            if 0 < version < oldest and version not in held:
                self._path(version).unlink(missing_ok=True)
                continue
            digest = self.manifest_digest(version)
            if digest is not None and self._blobs.has(digest):
                keep |= {digest, *self.named_by(digest)}
        garbage = [digest for digest in self._blobs.digests() if digest not in keep]
        for digest in garbage:
            self._blobs.drop(digest)
        return len(garbage)

    def _entry(self, version: int) -> dict[str, str] | None:
        try:
            entry = json.loads(self._path(version).read_bytes())
            return {"manifest": str(entry["manifest"]), "cause": str(entry["cause"])}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path(version)} does not name a manifest: "
                "put back a backup with `barnraise coordinator restore`"
            ) from error

    def _path(self, version: int) -> Path:
        return self._folder / f"{version:08d}.json"

    def _encoded(self, block: BlockId, ref: BlockRef, codec: str) -> EncodedBlock:
        from protocol.encoded_block import EncodedBlock
        from protocol.tensors import encoded_tensors

        self._blobs.check(ref.digest)
        specs = block_tensor_specs(self._layout, block)
        return EncodedBlock(encoded_tensors(self._blobs.view(ref.digest), specs, codec_named(codec)))

    def _parse_manifest(self, digest: Digest) -> Manifest:
        return Manifest.from_json(self.manifest_bytes(digest))


def frozen_columns(manifest: Manifest) -> FrozenColumns:
    """What leases of the version are told of columns that they do not hold."""
    found = manifest.frozen
    return AS_PUBLISHED if found is None else FrozenColumns(version=found.version, codec=found.codec)
