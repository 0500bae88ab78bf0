"""How much one caller may ask: calls, registrations and log lines by rate, calls by number at once.

Decides whether a call may begin; touches nothing, and its clock is given. Token buckets: `burst` at once, `per_s` for
ever. An address is what a router at home gives out: one IPv4 address, or the first 64 bits of an IPv6 one. Always:
memory is bounded, and what is refused says when to come again; whoever stays within the limits never notices others.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from protocol.errors import RateLimited
from protocol.limits import (
    CALL_TIMEOUT_S,
    MAX_CALL_S,
    MAX_TRANSFER_S,
    MIN_TRANSFER_BYTES_PER_S,
    STALL_TIMEOUT_S,
    TRANSFER_GRACE_S,
)

REMEMBERED_CALLERS = 65_536
"""Buckets kept, the least recently used goes first: it has filled up again long since."""
_IPV6_PREFIX = 64

Release = Callable[[], None]
"""Takes one off a count; again is fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So many at once, and so many a second on average."""

    burst: int
    per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeLimits:
    """What one caller may do. The defaults leave room for a few hundred workers behind one router."""

    calls: Rate = Rate(burst=4000, per_s=1000.0)
    """By address. A worker makes a call every few seconds."""
    registrations: Rate = Rate(burst=512, per_s=16.0)
    """Enrol and OpenSession by address: they cost a signature check before anything is known of the caller."""
    worker_calls: Rate = Rate(burst=400, per_s=50.0)
    """Unary calls by worker: most are written to the journal. The shortest heartbeat makes 20 a second."""
    log_lines: Rate = Rate(burst=50, per_s=5.0)
    """Refusals that are logged, all together: strangers must not fill the disk."""
    calls_at_once: int = 1024
    """By address: a quarter of what the coordinator takes from everybody."""
    streams_at_once: int = 8
    """Uploads and downloads at once by worker; ours has five."""
    opening_s: float = CALL_TIMEOUT_S
    """A call's first message comes within this."""
    call_deadline_s: float = MAX_CALL_S
    stall_s: float = STALL_TIMEOUT_S
    min_bytes_per_s: float = MIN_TRANSFER_BYTES_PER_S
    grace_s: float = TRANSFER_GRACE_S
    transfer_s: float = MAX_TRANSFER_S


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Buckets:
    """One rate, counted for each caller apart."""

    def __init__(self, rate: Rate, clock: Callable[[], float], most: int = REMEMBERED_CALLERS) -> None:
        self._most = most
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, caller: str) -> float:
        """0 if `caller` may go on; else the seconds until it may."""
        rate, now_s = self._rate, self._clock()
        bucket = self._buckets.pop(caller, None) or _Bucket(float(rate.burst), now_s)
        self._buckets[caller] = bucket
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        bucket.tokens = min(float(rate.burst), bucket.tokens + max(0.0, now_s - bucket.at_s) * rate.per_s)
        bucket.at_s = now_s
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / rate.per_s
        bucket.tokens -= 1.0
        return 0.0

    def __len__(self) -> int:
        return len(self._buckets)


@dataclass(slots=True)
class Throttle:
    """All of one coordinator's limits."""

    limits: EdgeLimits = field(default_factory=EdgeLimits)
    clock: Callable[[], float] = time.monotonic
    suppressed_lines: int = 0
    """Refusals that were not logged since the last one that was."""
    _calls: Buckets = field(init=False)
    _registrations: Buckets = field(init=False)
    _workers: Buckets = field(init=False)
    _lines: Buckets = field(init=False)
    _at_once: Counter[str] = field(init=False, default_factory=Counter)
    _streams: Counter[str] = field(init=False, default_factory=Counter)

    def __post_init__(self) -> None:
        self._calls = Buckets(self.limits.calls, self.clock)
        self._registrations = Buckets(self.limits.registrations, self.clock)
        self._workers = Buckets(self.limits.worker_calls, self.clock)
        self._lines = Buckets(self.limits.log_lines, self.clock)

    def call(self, address: str) -> Release:
        """One more call of `address` is under way, until what is returned is called."""
        _pass(self._calls.take(address), f"calls from {address}")
        if self._at_once[address] >= self.limits.calls_at_once:
            raise RateLimited(
                f"{self._at_once[address]} calls from {address} are under way, more are not taken: wait for one to end"
            )
        return _counted(self._at_once, address)

    def registration(self, address: str) -> None:
        """`address` wants to enrol or to open a session."""
        _pass(self._registrations.take(address), f"registrations from {address}")

    def worker_call(self, worker: str) -> None:
        """`worker` makes a unary call."""
        _pass(self._workers.take(worker), f"calls of worker {worker}")

    def stream(self, worker: str) -> Release:
        """One more transfer of `worker` is under way, until what is returned is called."""
        if self._streams[worker] >= self.limits.streams_at_once:
            raise RateLimited(f"worker {worker} has {self._streams[worker]} transfers under way: wait for one to end")
        return _counted(self._streams, worker)

    def may_log(self) -> bool:
        """Whether one more refusal is logged."""
        if self._lines.take(""):
            self.suppressed_lines += 1
            return False
        return True


@functools.lru_cache(maxsize=4096)
def address_of(peer: str) -> str:
    """The address behind gRPC's peer name, such as `ipv4:192.0.2.7:50000` or `ipv6:%5B2001:db8::1%5D:50000`."""
    try:
        address = ipaddress.ip_address(host_of(peer))
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)


@functools.lru_cache(maxsize=4096)
def host_of(peer: str) -> str:
    """The whole address behind gRPC's peer name; empty where it has none."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


@functools.lru_cache(maxsize=4096)
def range_of(address: str) -> str:
    """The range that an address (`address_of`) is in, as one holder usually has: IPv4 /24, IPv6 /48."""
    try:
        network = ipaddress.ip_network(address)
    except ValueError:
        return address
    return str(network.supernet(new_prefix=24 if network.version == 4 else 48))


def _pass(wait_s: float, what: str) -> None:
    if wait_s > 0.0:
        raise RateLimited(f"too many {what}: try again in {math.ceil(wait_s)} s")


def _counted(counter: Counter[str], key: str) -> Release:
    counter[key] += 1
    released = False

    def release() -> None:
        nonlocal released
        if not released:
            released = True
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    return release
