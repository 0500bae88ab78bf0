"""A network namespace for sidecars alone, made without root: nothing that they do reaches this machine's network.

Where the system does not let this user make one, sidecars are on this machine's loopback; which it was is said.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

HOLD = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    fcntl.ioctl(one, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
print("up", flush=True)
sys.stdin.read()
"""
"""Keeps a namespace, with its loopback up, until nobody holds its input any more."""


def namespace() -> tuple[subprocess.Popen[bytes] | None, tuple[str, ...]]:
    """Whoever holds a new one, and what goes before a command that is to run in it; nobody and nothing: not here."""
    if not all(map(shutil.which, ("unshare", "nsenter"))):
        return None, ()
    holder = subprocess.Popen(
        ("unshare", "-Urn", sys.executable, "-c", HOLD),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert holder.stdout is not None
    enter = ("nsenter", "-t", str(holder.pid), "-U", "-n", "--preserve-credentials")
    if holder.stdout.readline() == b"up\n":
        entered = subprocess.run((*enter, "true"), capture_output=True, check=False)
        if entered.returncode == 0:
            return holder, enter
    end(holder)
    return None, ()


def end(holder: subprocess.Popen[bytes]) -> None:
    """The namespace goes with it."""
    holder.kill()
    holder.wait()
    for pipe in (holder.stdin, holder.stdout):
        if pipe is not None:
            pipe.close()
