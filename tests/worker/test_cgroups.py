"""What is left to a process in a container: any version, any depth, and files that say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.machine.cgroups import GroupLimits, group_limits

MIB = 1 << 20
NO_LIMIT_V1 = str((1 << 63) - 4096)
V2_MOUNT = "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, *, own: str, mounts: str = "") -> Path:
    """A machine's /proc/self; `put` adds to its /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text(mounts)
    return root


def put(root: Path, name: str, content: str) -> None:
    path = root / "sys/fs/cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_no_groups_at_all_set_no_limit(tmp_path: Path) -> None:
    assert group_limits(tmp_path) == GroupLimits(memory_bytes=None, cpus=None)


def test_version_2_in_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    root = tree(tmp_path, own="0::/\n", mounts=V2_MOUNT)
    put(root, "memory.max", f"{512 * MIB}\n")
    put(root, "memory.current", f"{500 * MIB}\n")
    put(root, "cpu.max", "50000 100000\n")
    assert group_limits(root) == GroupLimits(memory_bytes=12 * MIB, cpus=0.5)


def test_page_cache_that_the_kernel_would_give_up_is_free(tmp_path: Path) -> None:
    root = tree(tmp_path, own="0::/\n", mounts=V2_MOUNT)
    put(root, "memory.max", str(512 * MIB))
    put(root, "memory.current", str(500 * MIB))
    put(root, "memory.stat", f"anon 5\ninactive_file {300 * MIB}\nactive_file 7\n")
    assert group_limits(root).memory_bytes == 312 * MIB


def test_max_is_no_limit_and_high_is_one(tmp_path: Path) -> None:
    root = tree(tmp_path, own="0::/\n", mounts=V2_MOUNT)
    put(root, "memory.max", "max\n")
    put(root, "cpu.max", "max 100000\n")
    assert group_limits(root) == GroupLimits(memory_bytes=None, cpus=None)
    put(root, "memory.high", str(64 * MIB))
    assert group_limits(root).memory_bytes == 64 * MIB


@pytest.mark.parametrize("tight", ["a", "a/b", "a/b/c"])
def test_the_least_limit_of_the_groups_around_holds(tmp_path: Path, tight: str) -> None:
    root = tree(tmp_path, own="0::/a/b/c\n", mounts=V2_MOUNT)
    for group in ("a", "a/b", "a/b/c"):
        mine = group == tight
        put(root, f"{group}/memory.max", str((100 if mine else 900) * MIB))
        put(root, f"{group}/memory.current", str(40 * MIB))
        put(root, f"{group}/cpu.max", "150000 100000" if mine else "max 100000")
    put(root, "elsewhere/memory.max", "1")
    assert group_limits(root) == GroupLimits(memory_bytes=60 * MIB, cpus=1.5)


def test_a_fuller_group_with_a_higher_limit_may_leave_less(tmp_path: Path) -> None:
    root = tree(tmp_path, own="0::/a/b\n", mounts=V2_MOUNT)
    put(root, "a/memory.max", str(900 * MIB))
    put(root, "a/memory.current", str(890 * MIB))
    put(root, "a/b/memory.max", str(100 * MIB))
    put(root, "a/b/memory.current", str(5 * MIB))
    assert group_limits(root).memory_bytes == 10 * MIB


def test_version_1(tmp_path: Path) -> None:
    mounts = (
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    root = tree(tmp_path, own="4:memory:/user/one\n2:cpu,cpuacct:/user/one\n1:name=systemd:/\n", mounts=mounts)
    put(root, "memory/memory.limit_in_bytes", NO_LIMIT_V1)
    put(root, "memory/user/one/memory.limit_in_bytes", str(256 * MIB))
    put(root, "memory/user/one/memory.usage_in_bytes", str(200 * MIB))
    put(root, "memory/user/one/memory.stat", f"inactive_file 1\ntotal_inactive_file {50 * MIB}\n")
    put(root, "cpu,cpuacct/cpu.cfs_quota_us", "-1")
    put(root, "cpu,cpuacct/cpu.cfs_period_us", "100000")
    put(root, "cpu,cpuacct/user/one/cpu.cfs_quota_us", "250000")
    put(root, "cpu,cpuacct/user/one/cpu.cfs_period_us", "100000")
    assert group_limits(root) == GroupLimits(memory_bytes=106 * MIB, cpus=2.5)


def test_version_1_without_limits_says_so_in_a_huge_number(tmp_path: Path) -> None:
    root = tree(tmp_path, own="4:memory:/\n")
    put(root, "memory/memory.limit_in_bytes", NO_LIMIT_V1)
    put(root, "memory/memory.stat", f"hierarchical_memory_limit {NO_LIMIT_V1}\n")
    assert group_limits(root).memory_bytes is None


def test_version_1_tells_of_a_limit_around_that_cannot_be_seen(tmp_path: Path) -> None:
    mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    root = tree(tmp_path, own="4:memory:/docker/abc\n", mounts=mounts)
    put(root, "memory/memory.limit_in_bytes", NO_LIMIT_V1)
    put(root, "memory/memory.usage_in_bytes", str(30 * MIB))
    put(root, "memory/memory.stat", f"hierarchical_memory_limit {128 * MIB}\n")
    assert group_limits(root).memory_bytes == 98 * MIB


def test_a_group_inside_a_container_whose_mount_shows_the_container_alone(tmp_path: Path) -> None:
    mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    root = tree(tmp_path, own="4:memory:/docker/abc/nested\n", mounts=mounts)
    put(root, "memory/memory.limit_in_bytes", str(512 * MIB))
    put(root, "memory/nested/memory.limit_in_bytes", str(64 * MIB))
    assert group_limits(root).memory_bytes == 64 * MIB


def test_both_versions_at_once(tmp_path: Path) -> None:
    mounts = (
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    root = tree(tmp_path, own="4:memory:/a\n0::/b\n", mounts=mounts)
    put(root, "memory/a/memory.limit_in_bytes", str(300 * MIB))
    put(root, "unified/b/cpu.max", "100000 100000")
    assert group_limits(root) == GroupLimits(memory_bytes=300 * MIB, cpus=1.0)


@pytest.mark.parametrize("shown", ["/..", "/../..", "/another/part"])
def test_a_mount_that_shows_another_part_of_the_tree_is_read_at_its_top(tmp_path: Path, shown: str) -> None:
    mounts = f"30 23 0:27 {shown} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    root = tree(tmp_path, own="0::/\n", mounts=mounts)
    put(root, "memory.max", str(10 * MIB))
    assert group_limits(root).memory_bytes == 10 * MIB


def test_a_mount_elsewhere_is_found(tmp_path: Path) -> None:
    root = tree(tmp_path, own="0::/\n", mounts="30 23 0:27 / /run/groups rw - cgroup2 cgroup2 rw\n")
    (root / "run/groups").mkdir(parents=True)
    (root / "run/groups/memory.max").write_text(str(7 * MIB))
    assert group_limits(root).memory_bytes == 7 * MIB


def test_what_cannot_be_read_or_understood_sets_no_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, own="nonsense\n0::/../../etc\n\xff\n", mounts="a b\n - \n30 23 0:27 / /x rw - cgroup2\n")
    put(root, "memory.max", "much")
    put(root, "cpu.max", "50000 0")
    (root / "sys/fs/cgroup/memory.high").mkdir()
    assert group_limits(root) == GroupLimits(memory_bytes=None, cpus=None)


def test_less_than_nothing_is_left_as_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path, own="0::/\n", mounts=V2_MOUNT)
    put(root, "memory.max", "100")
    put(root, "memory.current", "150")
    assert group_limits(root).memory_bytes == 0
