"""The key that a node of the peer-to-peer network is called by, as libp2p keeps one.

Decides nothing: an Ed25519 key in libp2p's form (a protobuf of two fields: the kind, 1, and the seed with the public
key behind it; https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md). It signs for nothing but connections.
Touches one private file.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.private_files import write_private

NODE_KEY_FILE = "node.key"
_HEAD = bytes([0x08, 0x01, 0x12, 0x40])
"""Field 1, a varint: Ed25519; field 2, 64 bytes."""


def node_identity(folder: Path) -> Path:
    """The key file in `folder`, made on first use."""
    path = folder / NODE_KEY_FILE
    if not path.is_file():
        key = Ed25519PrivateKey.generate()
        seed, public = key.private_bytes_raw(), key.public_key().public_bytes_raw()
        write_private(path, _HEAD + seed + public)
    return path
