"""The queue and the lock: damage, shards, a second process, one that is gone."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from scorefusion.batch import write_report
from scorefusion.batch.items import Item, Outcome, Shard
from scorefusion.batch.queue import FolderLock, Queue, merged_entries
from scorefusion.errors import BadInput
from tests.support.batches import names, refused, translate, volumes, write_model, write_scan
from tests.support.waiting import PATIENCE


def items(out: Path, *names_: str) -> list[Item]:
    return [Item(name, (Path(f"{name}.nii"),), out / f"{name}.nii.gz") for name in names_]


def outcome(name: str, **changes: object) -> Outcome:
    values: dict[str, object] = {
        "work": "w",
        "outputs": {"volume": [3, "abc"]},
        "seconds": {"read": 0.5},
        "residual": 0.25,
        "warnings": ("beware",),
        "numbers": {"megavoxels": 1.5},
        "before": b"RIFF1",
        "after": b"RIFF2",
    }
    return Outcome(name, **{**values, **changes})  # type: ignore[arg-type]


def test_what_is_put_down_is_there_in_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "queue.sqlite"
    queue = Queue(path)
    queue.begin(items(tmp_path, "a", "b", "c", "d"), tmp_path)
    queue.mark("a", "running")
    queue.mark("d", "running")
    queue.record(outcome("a"))
    queue.record(Outcome("b", error="is broken", fix="Mend it."))
    queue.keep_hashes([(tmp_path / "a.nii", (1, 2, 3), "cafe")])
    queue.set_facts({"dtype": "float32"})
    queue.close()

    queue = Queue(path)
    queue.begin(items(tmp_path, "c", "d", "a", "b"), tmp_path)
    entries = {entry.name: entry for entry in queue.entries(pictures=True)}
    assert list(entries) == ["c", "d", "a", "b"]
    assert [entry.state for entry in entries.values()] == ["waiting", "waiting", "done", "failed"]
    kept = {field.name: getattr(entries["a"], field.name) for field in dataclasses.fields(Outcome)}
    assert Outcome(**kept) == outcome("a") and entries["a"].output == "a.nii.gz"
    assert entries["a"].inputs == ("a.nii",)
    assert (entries["b"].error, entries["b"].fix) == ("is broken", "Mend it.")
    assert queue.entries()[2].before is None
    assert queue.known_hash(tmp_path / "a.nii", (1, 2, 3)) == "cafe"
    assert queue.known_hash(tmp_path / "a.nii", (1, 2, 4)) is None and queue.facts() == {"dtype": "float32"}

    queue.begin(items(tmp_path, "b"), tmp_path)  # what is no longer listed leaves the report, not the queue
    assert [entry.name for entry in queue.entries()] == ["b"]
    assert sorted(queue.outputs()) == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"]
    queue.close()


@pytest.mark.parametrize("damage", ["text", "cut", "pages"])
def test_a_damaged_queue_is_put_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "queue.sqlite"
    queue = Queue(path)
    queue.begin(items(tmp_path, *(f"item{n}" for n in range(300))), tmp_path)
    queue.close()
    data = path.read_bytes()
    spoiled = {
        "text": b"no database" * 99,
        "cut": data[:5000],
        "pages": data[:4096] + os.urandom(8192) + data[12288:],
    }
    path.write_bytes(spoiled[damage])
    queue = Queue(path)
    assert queue.note and "is begun anew" in queue.note and queue.entries() == []
    queue.close()
    (aside,) = tmp_path.glob("queue.sqlite.damaged-*")
    assert aside.read_bytes() == spoiled[damage]


def test_shards_split_by_name_alone_and_are_merged(tmp_path: Path) -> None:
    all_names = [f"sub-{n:04d}.nii.gz" for n in range(2000)]
    shards = [Shard(k, 7) for k in range(1, 8)]
    held = [[name for name in all_names if shard.holds(name)] for shard in shards]
    assert sorted(sum(held, [])) == all_names
    assert min(map(len, held)) > 200  # 286 each, give or take
    state = tmp_path / ".scorefusion"
    state.mkdir()
    for file, name in (("queue", "old"), ("queue-1-of-2", "one"), ("queue-2-of-2", "two")):
        queue = Queue(state / f"{file}.sqlite")
        queue.begin(items(tmp_path, name, "shared"), tmp_path)
        queue.record(outcome(name))
        queue.record(outcome("shared", residual=float(len(name))))
        queue.close()
    entries, _ = merged_entries(state)
    assert [entry.name for entry in entries] == ["old", "one", "shared", "two"]
    assert all(entry.state == "done" for entry in entries)
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html" and all(
        name in page.read_text() for name in ("old", "one", "two")
    )
    with pytest.raises(BadInput, match="holds no queue"):
        write_report(tmp_path / "elsewhere")


def _hold(path: Path, flock: bool, ready: Any, end: Any) -> None:
    lock = FolderLock(path)
    lock.take(flock=flock)
    ready.set()
    end.wait(PATIENCE)
    os._exit(0)  # as a kill ends a process: nothing is given back


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "O_EXCL"])
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path, flock: bool) -> None:
    state = tmp_path / ".scorefusion"
    state.mkdir()
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(state / "lock", flock, ready, end))
    child.start()
    assert ready.wait(PATIENCE)
    try:
        with pytest.raises(BadInput) as refusal:
            FolderLock(state / "lock").take(flock=flock)
    finally:
        end.set()
        child.join()
    assert f"another run (process {child.pid} on {socket.gethostname()}, since " in str(refusal.value)
    lock = FolderLock(state / "lock")
    note = lock.take(flock=flock)
    assert note and f"process {child.pid} " in note and "going on where it stopped" in note
    lock.release()
    lock = FolderLock(state / "lock")
    assert lock.take(flock=flock) is None  # given back in order: nothing to say
    lock.release()
    assert [path.name for path in state.iterdir()] == ["lock"]


def test_another_hosts_lock_is_not_taken_over_but_explained(tmp_path: Path) -> None:
    """Where the file system has no flock, a process elsewhere cannot be looked for."""
    state = tmp_path / ".scorefusion"
    state.mkdir()
    (state / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0}))
    (state / "lock.held").touch()
    with pytest.raises(BadInput, match="process 1 on elsewhere.*If that process is gone, remove .*lock.held"):
        FolderLock(state / "lock").take(flock=False)
    FolderLock(state / "lock").take()  # with flock the system knows that nobody has it


def test_who_excludes_whom(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny")
    for number in range(4):
        write_scan(tmp_path / "in" / f"{number}.nii.gz", number)
    out, command = tmp_path / "out", ("-o", tmp_path / "out", "--steps", "1")
    translate(model, tmp_path / "in", *command)
    before = volumes(out)
    whole = FolderLock(out / ".scorefusion" / "lock")
    whole.take()
    assert f"process {os.getpid()} on" in refused(model, tmp_path / "in", *command)
    assert "another run" in refused(model, tmp_path / "in", *command, "--shard", "1/2")
    whole.release()
    shard = FolderLock(out / ".scorefusion" / "lock-1-of-2")
    shard.take()
    assert "another run" in refused(model, tmp_path / "in", *command, "--shard", "1/2")
    kept = names(translate(model, tmp_path / "in", *command, "--shard", "2/2"), "item-kept")
    assert all(Shard(2, 2).holds(name) for name in kept)
    shard.release()
    assert volumes(out) == before


def test_auto_stays_with_the_dtype_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured; a busy machine on the second day must not make everything be done again."""
    import torch

    from scorefusion.batch.session import Batch, translate_batch
    from scorefusion.batch.worker import Work

    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    work = Work(str(write_model(tmp_path / "tiny")), {"steps": 1}, device="cpu")
    batch = Batch((scan.parent,), tmp_path / "out", work)
    for measured, done in ((torch.float32, 1), (torch.bfloat16, 0)):
        monkeypatch.setattr(
            "scorefusion.batch.worker.choose_dtype",
            lambda name, device, now=measured: now if name == "auto" else torch.float32,
        )
        assert translate_batch(batch).done == done
