"""What stands in for the sidecar where hivemind is not wanted: the same socket, a child as p2pd is one, no network.

`python fake_sidecar.py HOW [MARK]`: honest (keeps one record), silent, junk, greedy (of memory), brief (ends at once).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from protocol import local_socket

PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"


async def serve(how: str, folder: Path) -> None:
    kept = [""]

    async def answer(request: dict[str, Any], _caller: local_socket.Caller) -> dict[str, Any]:
        if request["do"] == "status":
            return {"peer_id": PEER, "addresses": [f"{PEER}@127.0.0.1:1"], "peers": ["no peer", 7, f"{PEER}@h:2"]}
        if request["do"] == "store":
            kept[0] = request["record"]
            return {"stored": True}
        return {"record": {"junk": "g" * 9000, "honest": kept[0]}[how]}

    await local_socket.serve(folder / "sidecar.sock", answer)
    while await asyncio.to_thread(os.read, sys.stdin.fileno(), 4096):
        pass


def main() -> None:
    how = sys.argv[1]
    folder = Path(json.loads(sys.stdin.buffer.readline())["folder"])
    if how == "brief":
        print("a sentence about why", file=sys.stderr)
        sys.exit(3)
    # as p2pd: it does not care whether the one that started it still lives
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder), *sys.argv[2:]])
    held = b"x" * (200 << 20) if how == "greedy" else b""
    asyncio.run(asyncio.sleep(600) if how in {"silent", "greedy"} else serve(how, folder))
    del held


if __name__ == "__main__":
    main()
