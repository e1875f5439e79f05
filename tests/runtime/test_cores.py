"""The cores that a process may use: by its affinity, and by the quota of its control groups."""

import os
from pathlib import Path

import pytest

from foveate_runtime import cores
from foveate_runtime.cores import CAN_PIN, affine_cores, count_cores, cpu_quota


def write_process(folder: Path, *, groups: str, mounts: list[tuple[str, str, Path, str]]) -> Path:
    """Write what /proc tells of a process, and the control groups' files; return its folder.

    `mounts` are the kind, the root, the place and the options of each.
    """
    process = folder / "process"
    process.mkdir()
    (process / "cgroup").write_text(groups, "utf-8")
    lines = [
        f"30 24 0:26 {root} {place} rw,relatime shared:9 - {kind} {kind} {options}\n"
        for kind, root, place, options in mounts
    ]
    lines.insert(0, "24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n")
    (process / "mountinfo").write_text("".join(lines), "utf-8")
    return process


def write_quota(group: Path, version: int, quota: str, period: int = 100_000) -> None:
    group.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (group / "cpu.max").write_text(f"{quota} {period}\n", "ascii")
    else:
        (group / "cpu.cfs_quota_us").write_text(f"{quota}\n", "ascii")
        (group / "cpu.cfs_period_us").write_text(f"{period}\n", "ascii")


@pytest.mark.parametrize(
    ("own", "parent", "cores"),
    [
        ("150000", "max", 1.5),
        ("max", "50000", 0.5),
        ("300000", "200000", 2.0),
        ("max", "max", None),
    ],
)
def test_a_quota_of_version_2_is_that_of_the_group_and_of_those_above(
    tmp_path: Path, own: str, parent: str, cores: float | None
) -> None:
    tree = tmp_path / "tree"
    process = write_process(
        tmp_path, groups="0::/pods/one\n", mounts=[("cgroup2", "/", tree, "rw,nsdelegate")]
    )
    write_quota(tree / "pods", 2, parent)
    write_quota(tree / "pods" / "one", 2, own)
    assert cpu_quota(process) == cores


@pytest.mark.parametrize(("quota", "cores"), [("150000", 1.5), ("-1", None)])
def test_a_quota_of_version_1_is_that_of_the_controller_cpu(
    tmp_path: Path, quota: str, cores: float | None
) -> None:
    tree, others = tmp_path / "cpu", tmp_path / "memory"
    process = write_process(
        tmp_path,
        groups="3:memory:/m\n2:cpu,cpuacct:/docker/one\n1:name=systemd:/\n0::/\n",
        mounts=[
            ("cgroup", "/", others, "rw,memory"),
            ("cgroup", "/", tree, "rw,cpu,cpuacct"),
            ("cgroup2", "/", tmp_path / "unified", "rw"),
        ],
    )
    write_quota(others / "m", 1, "10000")
    write_quota(tree / "docker" / "one", 1, quota)
    assert cpu_quota(process) == cores


@pytest.mark.parametrize("groups", ["2:cpu:/docker/one\n", "2:cpu:/\n", "2:cpu:/../..\n"])
def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path, groups: str) -> None:
    tree = tmp_path / "cpu"
    process = write_process(
        tmp_path, groups=groups, mounts=[("cgroup", "/docker/one", tree, "rw,cpu")]
    )
    write_quota(tree, 1, "250000")
    assert cpu_quota(process) == 2.5


def test_what_cannot_be_read_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "nothing") is None
    tree = tmp_path / "tree"
    process = write_process(tmp_path, groups="0::/a\n", mounts=[("cgroup2", "/", tree, "rw")])
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "cpu.max").write_text("nonsense\n", "ascii")
    assert cpu_quota(process) is None
    (process / "mountinfo").write_text("nonsense\n", "utf-8")
    assert cpu_quota(process) is None


@pytest.mark.parametrize(("quota", "share"), [(None, 1.0), (0.2, 0.0), (1000.0, 1.0)])
def test_the_smaller_of_affinity_and_quota_counts(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, share: float
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert count_cores() == (affine_cores() if share else 1)


@pytest.mark.skipif(not CAN_PIN, reason="this system lets no process choose its cores")
def test_the_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_cores() == affine_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
