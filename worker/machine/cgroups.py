"""What control groups leave to this process: memory and processors, as Linux containers and services are limited.

Decides what counts as a limit: that of the process's own group and of each group around it, in version 1, in version 2
and in both at once; the least holds. What a group uses counts against its limit, except page cache that the kernel
would give up first (`inactive_file`). Reads under /proc/self and /sys/fs/cgroup only; a file that is missing, or says
something else than expected, sets no limit. Sources: cgroups(7), proc(5), the kernel's pages on cgroup v1 and v2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED_BYTES = 1 << 60
"""Version 1 says "no limit" as the largest multiple of a page: 2^63 - 4096. Nothing real comes near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """What is left to this process; None where no group says anything."""

    memory_bytes: int | None
    """Bytes that may still be taken, in this process's group or the fullest one around it."""
    cpus: float | None
    """Processors' worth of time: 0.5 is half of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    """One mounted hierarchy of groups."""

    folder: Path
    root: PurePosixPath
    """The group that `folder` shows: in a container often its own, and the groups around it cannot be seen."""


def group_limits(root: Path = Path("/")) -> GroupLimits:
    """The limits of the process whose /proc/self and /sys/fs/cgroup lie under `root`."""
    own = _own_groups(_text(root / "proc/self/cgroup"))
    memory: list[int | None] = []
    cpus: list[float | None] = []
    for folder in _groups(_mounts(root, "cgroup2", ""), own.get("")):
        memory += _memory_left_v2(folder)
        cpus.append(_quota_v2(_text(folder / "cpu.max")))
    for folder in _groups(_mounts(root, "cgroup", "memory"), own.get("memory")):
        memory += _memory_left_v1(folder)
    for folder in _groups(_mounts(root, "cgroup", "cpu"), own.get("cpu")):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        cpus.append(quota / period if quota and period else None)
    return GroupLimits(
        memory_bytes=min((left for left in memory if left is not None), default=None),
        cpus=min((share for share in cpus if share is not None), default=None),
    )


def _memory_left_v2(folder: Path) -> Iterator[int | None]:
    # Above memory.high nothing is killed, but every allocation is made to wait: no place to train in.
    for name in ("memory.max", "memory.high"):
        yield _left(_number(folder / name), _number(folder / "memory.current"), _text(folder / "memory.stat"))


def _memory_left_v1(folder: Path) -> Iterator[int | None]:
    stat, used = _text(folder / "memory.stat"), _number(folder / "memory.usage_in_bytes")
    yield _left(_number(folder / "memory.limit_in_bytes"), used, stat)
    # The least limit of the groups around this one, which a container may not be able to see.
    yield _left(_stat(stat, "hierarchical_memory_limit"), used, stat)


def _left(limit: int | None, used: int | None, stat: str) -> int | None:
    if limit is None or limit >= UNLIMITED_BYTES:
        return None
    freeable = _stat(stat, "total_inactive_file")  # version 1: with the groups inside, as usage is counted
    if freeable is None:
        freeable = _stat(stat, "inactive_file") or 0
    return max(0, limit - max(0, (used or 0) - freeable))


def _quota_v2(text: str) -> float | None:
    quota, _, period = text.strip().partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max 100000": no quota
    return int(quota) / int(period)


def _own_groups(text: str) -> dict[str, PurePosixPath]:
    """The process's group in each hierarchy, by controller; version 2 is the one with no controller's name."""
    groups: dict[str, PurePosixPath] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = PurePosixPath(path or "/")
    return groups


def _mounts(root: Path, kind: str, controller: str) -> list[_Mount]:
    """Where the hierarchy is mounted: as mountinfo says, and where every distribution puts it."""
    usual = root / "sys/fs/cgroup" / controller
    found = {usual: _Mount(folder=usual, root=PurePosixPath("/"))}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or len(types) < 3 or types[0] != kind:
            continue
        if controller and controller not in types[2].split(","):
            continue
        folder = root / fields[4].lstrip("/")
        found[folder] = _Mount(folder=folder, root=PurePosixPath(fields[3]))
    return list(found.values())


def _groups(mounts: Iterable[_Mount], own: PurePosixPath | None) -> Iterator[Path]:
    """Folders of the process's group and of each group around it, as far as they can be seen."""
    for mount in mounts:
        path = own or PurePosixPath("/")
        # Where the mount shows another part of the tree (a namespace shows it as "/.."), its top is all there is.
        inside = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        for group in (inside, *inside.parents):
            yield mount.folder / group


def _stat(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None


def _number(path: Path) -> int | None:
    """A file with one number; None where it says "max", -1, or nothing."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
