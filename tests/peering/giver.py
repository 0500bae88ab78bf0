"""`python -m tests.peering.giver FOLDER`: a worker's listener, on a machine of its own, for a test elsewhere.

Gives the file `block` of that folder to whoever has the ticket of the run whose CA lies there; says where it listens.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import BinaryIO

from peering.certificate import new_certificate
from peering.serving import PeerServer
from protocol.ids import Digest, RunId, digest_of


class OneFile:
    """As a `BlockShelf`."""

    def __init__(self, path: Path) -> None:
        self._path, self._digest = path, digest_of(path.read_bytes())

    def open(self, digest: Digest) -> BinaryIO | None:
        return self._path.open("rb") if digest == self._digest else None


async def serve(folder: Path) -> None:
    certificate, run = new_certificate(), RunId((folder / "run").read_text())
    server = PeerServer(
        OneFile(folder / "block"), certificate.leaf, certificate.name, run_id=run,
        ca_pem=(folder / "ca.pem").read_bytes(), now_s=time.time, bytes_per_s=1e9,
    )  # fmt: skip
    port = await server.start("0.0.0.0", 0)
    print(json.dumps({"port": port, "certificate": certificate.der.hex()}), flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
