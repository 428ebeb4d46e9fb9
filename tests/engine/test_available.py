"""How much memory a process can still take: machines, control groups and limits, as Linux describes them."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorefusion.engine.planning import available
from scorefusion.engine.planning.available import Available, available_on, available_on_host, resident_bytes

GIB = 2**30


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB free, and no control group."""
    write(tmp_path, {"proc/meminfo": f"MemTotal: 999999999 kB\nMemAvailable:   {8 * 2**20} kB"})
    return tmp_path


def v2(root: Path, own: str, groups: dict[str, dict[str, object]], mount: str = "/ /sys/fs/cgroup") -> None:
    """Control groups of version 2; each has its files."""
    write(root, {"proc/self/cgroup": f"0::{own}"})
    write(root, {"proc/self/mountinfo": f"30 24 0:26 {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw"})
    for group, files in groups.items():
        folder = root / "sys/fs/cgroup" / group.lstrip("/")
        write(folder, {f"memory.{name}": content for name, content in files.items()})


def test_the_machine_alone(root: Path) -> None:
    assert available_on_host(root) == Available(8 * GIB, "free on this machine")


def test_without_proc_the_system_is_asked(tmp_path: Path) -> None:
    found = available_on_host(tmp_path)
    assert found is not None and found.bytes > 2**20 and "this machine" in found.source


def test_a_group_of_version_2(root: Path) -> None:
    stat = (
        f"anon 1\nfile {GIB}\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\nslab_reclaimable {GIB // 4}"
    )
    v2(root, "/job", {"/job": {"max": 4 * GIB, "current": 3 * GIB, "stat": stat}})
    assert available_on_host(root) == Available(2 * GIB, "left of the 4.29 GB of this control group")


def test_a_parent_may_have_less(root: Path) -> None:
    v2(
        root,
        "/slurm/job/step",
        {
            "/slurm/job/step": {"max": "max", "current": GIB, "stat": ""},
            "/slurm/job": {"max": 6 * GIB, "current": 5 * GIB, "stat": f"inactive_file {GIB}"},
            "/slurm": {"max": 3 * GIB, "current": 2 * GIB, "stat": ""},
        },
    )
    assert available_on_host(root) == Available(GIB, "left of the 3.22 GB of this control group")


def test_a_group_that_is_throttled_before_its_limit(root: Path) -> None:
    v2(root, "/app", {"/app": {"max": 6 * GIB, "high": 2 * GIB, "current": GIB, "stat": ""}})
    assert available_on_host(root).bytes == GIB


def test_a_full_group_has_nothing_left(root: Path) -> None:
    v2(root, "/app", {"/app": {"max": GIB, "current": 2 * GIB, "stat": ""}})
    assert available_on_host(root).bytes == 0


@pytest.mark.parametrize(
    ("own", "mount"),
    [
        ("/docker/abc", "/docker/abc /sys/fs/cgroup"),  # mounted from the group on
        ("/", "/ /sys/fs/cgroup"),  # a namespace of its own
        ("/../../docker/abc", "/ /sys/fs/cgroup"),  # one that was entered from outside
        ("/docker/abc", "/ /sys/fs/cgroup"),  # the path is the host's, and not to be seen
    ],
)
def test_a_container_sees_its_group_at_the_top(root: Path, own: str, mount: str) -> None:
    v2(root, own, {"/": {"max": 2 * GIB, "current": GIB, "stat": ""}}, mount)
    assert available_on_host(root).bytes == GIB


def v1(root: Path, own: str, groups: dict[str, tuple[int, int, int]]) -> None:
    """Control groups of version 1 beside one of version 2: (limit, usage, file cache) each."""
    write(root, {"proc/self/cgroup": f"9:name=systemd:/\n4:memory:{own}\n1:cpu,cpuacct:/x\n0::/"})
    lines = [
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755",
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    ]
    write(root, {"proc/self/mountinfo": "\n".join(lines)})
    for group, (limit, usage, cache) in groups.items():
        stat = f"cache 5\ninactive_file 7\ntotal_inactive_file {cache}\ntotal_active_file 0"
        files = {"limit_in_bytes": limit, "usage_in_bytes": usage, "stat": stat}
        folder = root / "sys/fs/cgroup/memory" / group.lstrip("/")
        write(folder, {f"memory.{name}": content for name, content in files.items()})


def test_groups_of_version_1(root: Path) -> None:
    none = 9223372036854771712
    v1(
        root,
        "/lsf/job",
        {"/lsf/job": (5 * GIB, 4 * GIB, 2 * GIB), "/lsf": (none, 9 * GIB, 0), "/": (none, 9 * GIB, 0)},
    )
    assert available_on_host(root) == Available(3 * GIB, "left of the 5.37 GB of this control group")


def test_damaged_files_do_not_limit(root: Path) -> None:
    v2(root, "/app", {"/app": {"max": "??", "current": "", "stat": "\0\0"}})
    (root / "proc/self/mountinfo").write_bytes(b"\xff\xfe - \n" + (root / "proc/self/mountinfo").read_bytes())
    assert available_on_host(root) == Available(8 * GIB, "free on this machine")


LIMITED = """
import resource, sys
resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]),) * 2)
from scorefusion.engine.planning.available import available_on_host
print(available_on_host())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say what is used of a limit")
@pytest.mark.parametrize(("name", "option"), [("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")])
def test_ulimit(name: str, option: str) -> None:
    """A limit above what PyTorch maps, below what is free: what is mapped already is taken off."""
    limit = 6 * GIB
    said = subprocess.run(
        [sys.executable, "-c", LIMITED, name, str(limit)], capture_output=True, text=True, check=True
    ).stdout
    assert f"left of the 6.44 GB of ulimit {option}" in said
    left = int(re.search(r"bytes=(\d+)", said)[1])
    assert 0 < left < limit - 50e6


def test_what_this_process_holds() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 50e6 < resident_bytes() <= used * 1.1 or sys.platform != "linux"


def test_a_gpu_counts_what_pytorch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    found = available_on(torch.device("cuda", 0))
    assert found == Available(4 * GIB, "free on cuda:0")


def test_other_devices_share_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "available_on_host", lambda: Available(5, "here"))
    assert available_on(torch.device("cpu")) == available_on(torch.device("mps")) == Available(5, "here")
