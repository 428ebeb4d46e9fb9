"""The store of training volumes: how it reads, who is left out, many writers, kills, damage."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from scorefusion.data import DatasetConfig, Refusal, Source, StoreSettings, Subject, build_store, store
from scorefusion.data.store import open_array, write_array
from scorefusion.errors import BadInput
from tests.support.waiting import PATIENCE

SETTINGS = StoreSettings(seed=1, intensity="minmax", factors=((1, 1, 1), (1, 1, 1)), variation="noisy")
SHAPE = (32, 24, 16)


def source(folder: Path, number: int, *, variants: int = 0, share: float = 1.0, **reading: Any) -> Source:
    """A subject of random voxels in two contrasts."""
    files = {name: folder / f"sub-{number}_{name}.nii" for name in ("t1", "t2")}
    for index, file in enumerate(files.values()):
        if not file.exists():
            voxels = np.random.default_rng([number, index]).uniform(0, 100, SHAPE).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
    data = DatasetConfig(root=str(folder), **reading)
    return Source(Subject(f"sub-{number}", f"sub-{number}", files), ("t1", "t2"), data, variants, share)


def noisy(volume: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return volume + generator.normal(0, 1, volume.shape).astype(np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.npy")}


def rewrite(file: Path, change: Any, affine: np.ndarray | None = None) -> None:
    image = nibabel.load(file)
    values = change(np.array(image.get_fdata(dtype=np.float32)))
    nibabel.save(nibabel.Nifti1Image(values, image.affine if affine is None else affine), file)


def test_options_of_a_dataset_decide_what_is_read(tmp_path: Path) -> None:
    moved = source(tmp_path, 0)
    rewrite(moved.subject.files["t2"], lambda x: x, np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3) * 2.0)
    with pytest.raises(BadInput, match=r"sub-0_t2\.nii: lies on another grid"):
        build_store([moved], tmp_path / "store", SETTINGS)
    ((array, _),) = build_store([source(tmp_path, 0, on_misaligned="resample")], tmp_path / "store", SETTINGS)
    plain = nibabel.load(moved.subject.files["t2"]).get_fdata(dtype=np.float32).transpose(2, 1, 0)
    lo, hi = plain.min(), plain[..., :-2].max()
    expected = np.concatenate([np.full_like(plain[..., :2], lo), plain[..., :-2]], axis=2)
    np.testing.assert_allclose(array[1], (expected - lo) / (hi - lo) * 2 - 1, atol=2e-3)

    holey = source(tmp_path, 1)

    def spoil(values: np.ndarray) -> np.ndarray:
        values[3, 3, 3] = np.nan
        return values

    rewrite(holey.subject.files["t1"], spoil)
    with pytest.raises(BadInput, match="NaN"):
        build_store([holey], tmp_path / "store", SETTINGS)
    ((array, _),) = build_store([source(tmp_path, 1, nan="zero")], tmp_path / "store", SETTINGS)
    assert np.isfinite(array).all() and array[0, 3, 3, 3] == -1
    assert len(list((tmp_path / "store").glob("*.npy"))) == 2


def test_who_cannot_be_read_is_left_out_by_name(tmp_path: Path) -> None:
    subjects = [source(tmp_path, number, share=0.25) for number in range(4)]
    whole = build_store(subjects, tmp_path / "store", SETTINGS)
    assert [share for _, share in whole] == [0.25] * 4
    file = subjects[2].subject.files["t2"]
    file.write_bytes(file.read_bytes()[:-100])
    told: list[Refusal] = []
    kept = build_store(subjects, tmp_path / "store", SETTINGS, refused=told.append)
    assert [(refusal.subject, refusal.file) for refusal in told] == [("sub-2", file)]
    assert sum(share for _, share in kept) == pytest.approx(1.0) and len(kept) == 3
    strict = [source(tmp_path, number, skip_broken=False) for number in range(4)]
    with pytest.raises(BadInput, match=r"sub-2_t2\.nii"):
        build_store(strict, tmp_path / "store", SETTINGS)
    with pytest.raises(BadInput, match=r"sub-2_t2\.nii"):
        build_store([subjects[2]], tmp_path / "store", SETTINGS)


def test_a_variant_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    subjects = [source(tmp_path, number, variants=1) for number in range(3)]
    build_store(subjects, tmp_path / "all", SETTINGS, vary=noisy)
    build_store([subjects[2]], tmp_path / "one", SETTINGS, vary=noisy)
    alone, together = contents(tmp_path / "one"), contents(tmp_path / "all")
    assert len(alone) == 2 and len(set(together.values())) == 6
    assert alone.items() <= together.items()


def test_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = [source(tmp_path, number) for number in range(2)]
    build_store(subjects, tmp_path / "store", SETTINGS)

    opened, plainly = [], Path.open

    def watched(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path.suffix)
        return plainly(path, *arguments, **options)

    def never(*arguments: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr("scorefusion.data.store.read_subject", never)
    monkeypatch.setattr(store, "_checksum", never)
    monkeypatch.setattr(Path, "open", watched)
    assert len(build_store(subjects, tmp_path / "store", SETTINGS)) == 2
    assert ".nii" not in opened


def test_a_changed_file_is_compared_with_its_checksum(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float16).reshape(4, 4, 4)
    write_array(tmp_path / "a.npy", values)
    shutil.copy(tmp_path / "a.npy", tmp_path / "b.npy")
    shutil.copy(tmp_path / "a.crc", tmp_path / "b.crc")
    np.testing.assert_array_equal(open_array(tmp_path / "b.npy"), values)
    content = bytearray((tmp_path / "b.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b.npy").write_bytes(content)
    with pytest.raises(BadInput, match=r"b\.npy: is damaged"):
        open_array(tmp_path / "b.npy")
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(BadInput, match=r"a\.npy: cannot be used"):
        open_array(tmp_path / "a.npy")


def build(folder: Path, store: Path, told: Any = None) -> None:
    """What a process of its own does."""
    subjects = [source(folder, number, variants=2) for number in range(6)]
    made = build_store(subjects, store, SETTINGS, vary=told or noisy)
    assert len(made) == 18 and all(np.isfinite(array).all() for array, _ in made)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="not run: this system cannot fork")


@needs_fork
def test_processes_that_build_one_store_share_the_work(tmp_path: Path) -> None:
    build(tmp_path, tmp_path / "alone")

    def slow(volume: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        with open(tmp_path / "made.txt", "a") as file:
            file.write("one\n")
        time.sleep(0.01)
        return noisy(volume, generator)

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build, args=(tmp_path, tmp_path / "store", slow)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert len((tmp_path / "made.txt").read_text().splitlines()) == 12, "each variant is made once"


def killed(folder: Path, store: Path, moment: int, placed: bool) -> None:
    """A build that is killed at the moment-th file it writes, before it has its name or after."""
    replace, count = os.replace, itertools.count(1)

    def last(*names: Any) -> None:
        now = next(count) == moment
        if placed or not now:
            replace(*names)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = last
    build(folder, store)


@needs_fork
def test_a_build_that_is_killed_goes_on(tmp_path: Path) -> None:
    build(tmp_path, tmp_path / "alone")
    context, seen = multiprocessing.get_context("fork"), []
    for moment, placed in ((2, False), (3, True), (4, True), (5, False)):
        worker = context.Process(target=killed, args=(tmp_path, tmp_path / "store", moment, placed))
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        seen.append(len(contents(tmp_path / "store")))
    assert seen == sorted(seen) and seen[0] < 18, "each goes on where the last one was"
    build(tmp_path, tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert not list((tmp_path / "store").glob(".*.npy"))
