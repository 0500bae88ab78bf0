"""Network namespaces: machines on one bridge, and machines behind routers that let nobody in.

As root, with iproute2 and nftables; where namespaces cannot be made, tests that need them fail, and never skip.
"""

from __future__ import annotations

import os
import subprocess
import sys

NET = "10.213.77"
HOME = "192.168.7"
"""The same in every home, as with most routers."""
RULES = """
table ip nat {
  chain post {
    type nat hook postrouting priority 100
    oifname "eth0" masquerade
  }
}
table ip filter {
  chain passing {
    type filter hook forward priority 0
    policy drop
    iifname "eth1" accept
    ct state established,related accept
  }
  chain incoming {
    type filter hook input priority 0
    iifname "eth0" ct state new drop
  }
}
"""


def run(*command: str, text: str = "") -> None:
    done = subprocess.run(command, capture_output=True, input=text, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}; is this root, with nftables?"


def ip(*arguments: str) -> None:
    run("ip", *arguments)


class Lan:
    """Namespaces on one bridge, by name; each has one address."""

    def __init__(self) -> None:
        self._prefix = f"bar{os.getpid()}"
        self._bridge = f"{self._prefix}b"[:15]
        self._made: list[str] = []
        ip("link", "add", self._bridge, "type", "bridge")
        ip("link", "set", self._bridge, "up")

    def add(self, name: str, number: int) -> None:
        """A machine at that address."""
        inside = self._namespace(name)
        outside = f"{self._prefix}v{len(self._made)}"[:15]
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", inside)
        ip("link", "set", outside, "master", self._bridge, "up")
        ip("-n", inside, "link", "set", "eth0", "up")
        ip("-n", inside, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")

    def add_behind_nat(self, name: str, number: int) -> None:
        """A machine at home, behind a router with that address, which lets out whatever comes, and in what answers."""
        router = f"{name}r"
        self.add(router, number)
        outer, inside = f"{self._prefix}{router}", self._namespace(name)
        ip("link", "add", "eth1", "netns", outer, "type", "veth", "peer", "name", "eth0", "netns", inside)
        ip("-n", outer, "link", "set", "eth1", "up")
        ip("-n", outer, "addr", "add", f"{HOME}.1/24", "dev", "eth1")
        ip("-n", inside, "link", "set", "eth0", "up")
        ip("-n", inside, "addr", "add", f"{HOME}.2/24", "dev", "eth0")
        ip("-n", inside, "route", "add", "default", "via", f"{HOME}.1")
        run("ip", "netns", "exec", outer, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        run("ip", "netns", "exec", outer, "nft", "-f", "-", text=RULES)

    def move(self, name: str, number: int) -> None:
        """The machine has another address from here on, and the old one no more."""
        inside = f"{self._prefix}{name}"
        ip("-n", inside, "addr", "flush", "dev", "eth0")
        ip("-n", inside, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")

    def on(self, name: str, *command: str) -> tuple[str, ...]:
        """A command on that machine."""
        return ("ip", "netns", "exec", f"{self._prefix}{name}", *command)

    def command(self, name: str) -> tuple[str, ...]:
        """A sidecar on that machine."""
        return self.on(name, sys.executable, "-m", "peering.sidecar")

    def remove(self) -> None:
        """All of it."""
        for inside in reversed(self._made):
            ip("netns", "del", inside)
        ip("link", "del", self._bridge)

    def _namespace(self, name: str) -> str:
        inside = f"{self._prefix}{name}"
        ip("netns", "add", inside)
        self._made.append(inside)
        ip("-n", inside, "link", "set", "lo", "up")
        return inside
