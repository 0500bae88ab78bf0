"""Records what a release's worker says to its coordinator, and hears, from joining to the verdict on its first work.

    PYTHONPATH=TREE python tests/releases/converse.py FIXTURE.tar.xz OUT.json.xz

TREE and FIXTURE are of one release (make.py). What is recorded: the bytes of each message there and back, but for
signatures, which name a session; the wire's schema, as that release has it; the worker's key and its join link. Of
downloads the digest alone is kept. `test_worker_before.py` says the same to the coordinator of this tree.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "barnraise")
PATIENCE_S = 120.0


def main() -> None:
    """One conversation."""
    fixture, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as running:
        root = Path(scratch)
        with tarfile.open(fixture) as packed:
            packed.extractall(root, filter="data")
        (root / "run" / "checkpoints").mkdir(exist_ok=True)
        _started(
            root, running, *COMMAND, "coordinator", "run", "run", "--no-http", "--invites", "1", "--invites-to", "links"
        )
        _wait(lambda: list(root.glob("links/*")))
        link, begun_s = next(root.glob("links/*")).read_text().strip(), time.time()
        registry = _copied(root / "run" / "registry.sqlite", root / "registry.sqlite")
        worker = _started(root, running, sys.executable, __file__, "--worker", link)
        _wait((root / "judged").exists)
        worker.kill()
        found = {
            "link": link,
            "wall_s": begun_s,
            "registry": base64.b64encode(registry).decode(),
            **json.loads((root / "conversation.json").read_text()),
        }
    out.write_bytes(lzma.compress(json.dumps(found, indent=1).encode()))
    print(f"{out}: {out.stat().st_size} bytes, {len(found['calls'])} calls")


def work(link: str) -> None:
    """The release's own worker, with everything that goes over its line written down."""
    from barnraise.__main__ import main as command
    from protocol.limits import PROTOCOL_VERSION
    from protocol.v1 import barnraise_pb2 as pb
    from worker.wire import GrpcWire

    calls: list[dict[str, Any]] = []

    def note(name: str, sent: list[bytes], received: bytes | None, digest: str = "") -> None:
        if Path("judged").exists():
            return
        told = [base64.b64encode(one).decode() for one in sent]
        heard = None if received is None else base64.b64encode(received).decode()
        calls.append({"name": name, "sent": told, "received": heard, "sha256": digest})
        schema = base64.b64encode(pb.DESCRIPTOR.serialized_pb).decode()
        record = {"protocol_version": PROTOCOL_VERSION, "schema": schema, "calls": calls, "key": _key_of()}
        Path("conversation.json").write_text(json.dumps(record))
        if name == "AcquireLease" and pb.AcquireLeaseReply.FromString(received or b"").verdicts:
            Path("judged").touch()

    was = GrpcWire.unary, GrpcWire.upload, GrpcWire.download

    async def unary(self: Any, name: str, body: bytes, *rest: Any) -> bytes:
        reply = await was[0](self, name, body, *rest)
        note(name, [body], reply)
        return reply

    async def upload(self: Any, name: str, messages: Any, *rest: Any) -> bytes:
        sent: list[bytes] = []

        async def kept() -> Any:
            async for message in messages:
                sent.append(bytes(message))
                yield message

        reply = await was[1](self, name, kept(), *rest)
        note(name, sent, reply)
        return reply

    async def download(self: Any, name: str, body: bytes, *rest: Any) -> Any:
        hasher = hashlib.sha256()
        async for frame in was[2](self, name, body, *rest):
            hasher.update(frame)
            yield frame
        note(name, [body], None, hasher.hexdigest())

    for method in (unary, upload, download):
        setattr(GrpcWire, method.__name__, method)
    words = ["worker", "join", link, "--home", "home", "--threads", "1", "--memory", "1GB", "--output", "plain"]
    sys.argv[1:] = words
    command()


def _key_of() -> str:
    from worker.belongings import IDENTITY_FILE

    return "".join(base64.b64encode(path.read_bytes()).decode() for path in Path("home").rglob(IDENTITY_FILE))


def _wait(there: Any) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not there():
        if time.monotonic() > until_s:
            raise SystemExit("the conversation came to no end")
        time.sleep(0.2)


def _copied(database: Path, to: Path) -> bytes:
    source, copy = sqlite3.connect(database), sqlite3.connect(to)
    source.backup(copy)
    source.close()
    copy.close()
    return to.read_bytes()


def _started(root: Path, running: contextlib.ExitStack, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.DEVNULL)
    running.callback(process.kill)
    return process


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(sys.argv[2])
    else:
        main()
