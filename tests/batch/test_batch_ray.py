"""Batches worked off by processes of Ray: the same bytes as one process writes, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scorefusion.batch.items import StopFlag, Stopped
from scorefusion.batch.session import Batch, translate_batch
from scorefusion.batch.worker import Work
from tests.support.batches import names, refused, translate, volumes, write_model, write_scan
from tests.support.waiting import until

ray = pytest.importorskip("ray")
from scorefusion.batch.ray import Cluster, _plan, connected  # noqa: E402

SCANS = [f"s{number}.nii.gz" for number in range(6)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers on this machine; started once, for it takes long."""
    before = dict(os.environ)
    with connected(device="cpu", workers=2) as found:
        yield found
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, six good scans and a bad one, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("ray")
    write_model(folder / "tiny")
    for number, name in enumerate(SCANS):
        write_scan(folder / "in" / name, number, (7, 6, 5 + number % 2))
    (folder / "in" / "bad.nii.gz").write_bytes(b"no volume")
    translate(folder / "tiny", folder / "in", "-o", folder / "one", code=1)
    return folder


def test_two_workers_write_what_one_process_writes(cluster: Cluster, folder: Path) -> None:
    """Through the command line: the same files, queue and exit code; a bad scan is named."""
    out = folder / "two"
    events = translate(folder / "tiny", folder / "in", "-o", out, "--ray", "--workers", "2", code=1)
    assert volumes(out) == volumes(folder / "one") and len(volumes(out)) == len(SCANS)
    assert names(events, "item-done") == SCANS == sorted(set(names(events, "item-started")) - {"bad.nii.gz"})
    (bad,) = [event for event in events if event["event"] == "item-failed"]
    assert bad["name"] == "bad.nii.gz" and "is not a NIfTI file" in bad["error"] and bad["fix"]
    last = events[-1]
    assert (last["event"], last["done"], last["failed"], last["left"]) == ("finished", len(SCANS), 1, 0)
    assert (out / "report.html").exists()

    again = translate(folder / "tiny", folder / "in", "-o", out, code=1)
    assert names(again, "item-kept") == SCANS and names(again, "item-started") == []
    (out / "s0.nii.gz").unlink()
    os.utime(out / "s1.nii.gz", (1, 1))
    again = translate(folder / "tiny", folder / "in", "-o", out, "--ray", code=1)
    assert names(again, "item-kept") == SCANS[1:] and names(again, "item-done") == ["s0.nii.gz"]
    assert volumes(out) == volumes(folder / "one")


def test_a_killed_worker_costs_nothing(cluster: Cluster, folder: Path) -> None:
    """SIGKILL for a process in the middle of an item; what it was sent is done by another one."""
    events: list[dict[str, Any]] = []
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one, args=(killed,))
    killer.start()
    batch = _batch(folder, folder / "killed", steps=8)
    summary = translate_batch(batch, listener=events.append, cluster=cluster)
    killer.join()
    assert (
        len(killed) == 1
        and summary.stopped is None
        and (summary.done, summary.failed, summary.left) == (6, 1, 0)
    )
    assert any("a worker died at" in event.get("text", "") for event in events)
    whole = translate_batch(_batch(folder, folder / "whole", steps=8))
    assert whole.done == 6 and volumes(folder / "killed") == volumes(folder / "whole")
    assert [path.name for path in (folder / "killed").glob(".*")] == [".scorefusion"]


def test_a_stopped_run_goes_on_where_it_stopped(cluster: Cluster, folder: Path) -> None:
    out, stop = folder / "stopped", StopFlag()

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "item-started":
            stop.set(Stopped("enough"))

    summary = translate_batch(_batch(folder, out, steps=1000), listener=listen, stop=stop, cluster=cluster)
    assert str(summary.stopped).startswith("enough") and summary.done + summary.failed + summary.left == 7
    assert summary.left > 0
    assert names(translate(folder / "tiny", folder / "in", "-o", out, code=1), "item-done") == SCANS


def test_a_machine_that_would_write_something_else_is_refused(cluster: Cluster, folder: Path) -> None:
    recipe = {**_batch(folder, folder / "no").work.recipe(), "model": "another"}

    class Other(Cluster):
        def recipe(self, work: Work) -> dict[str, Any]:
            return recipe

    other = Other(cluster.workers, cluster.cpus, cluster.gpus, cluster.elsewhere)
    summary = translate_batch(_batch(folder, folder / "no"), cluster=other)
    assert "has another model under the name" in str(summary.stopped) and summary.done == 0


def test_how_many_workers_of_what_size() -> None:
    def plan(*nodes: tuple[int, int], device: str = "auto", workers: int | None = None) -> Cluster:
        found = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in nodes]
        found.append({"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}})
        return _plan(found, device, workers, elsewhere=True)

    assert plan((8, 0)) == Cluster(1, 8, 0, True)
    assert plan((8, 0), workers=3) == Cluster(3, 2, 0, True)
    assert plan((8, 0), (16, 0)) == Cluster(2, 8, 0, True)
    assert plan((2, 0), workers=9) == Cluster(2, 1, 0, True)
    assert plan((16, 4), (8, 1)) == Cluster(5, 4, 1, True)
    assert plan((16, 4), workers=2) == Cluster(2, 4, 1, True)
    assert plan((16, 4), device="cpu") == Cluster(1, 16, 0, True)
    with pytest.raises(ValueError, match="no machine of the Ray cluster has a GPU"):
        plan((8, 0), device="cuda")


def test_what_makes_no_sense_is_refused(folder: Path) -> None:
    model, scans, out = folder / "tiny", folder / "in", folder / "none"
    assert "--workers is for --ray" in refused(model, scans, "-o", out, "--workers", "2")
    assert "there must be a worker" in refused(model, scans, "-o", out, "--ray", "--workers", "0")
    one = refused(model, scans / "s0.nii.gz", "-o", folder / "a.nii.gz", "--ray")
    assert "--ray is for many volumes" in one and not out.exists()


def _batch(folder: Path, out: Path, **choices: Any) -> Batch:
    work = Work(str(folder / "tiny"), choices, device="cpu", dtype="float32")
    return Batch((folder / "in",), out, work)


def _kill_one(killed: list[int]) -> None:
    """Kill the first of our workers that translates."""
    import psutil

    def kill() -> bool:
        for process in psutil.Process().children(recursive=True):
            try:
                if "ray::RayWorker.translate" in " ".join(process.cmdline()) and not killed:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
            except psutil.Error:
                continue
        return bool(killed)

    until(kill)
