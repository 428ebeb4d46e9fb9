"""A folder in, a folder out: what is written, what a second run does, what is told."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from scorefusion import Pipeline
from scorefusion.batch.items import Item
from scorefusion.batch.worker import Work, translate_item
from scorefusion.cli import app
from tests.support.batches import names, refused, translate, volumes, write_model, write_scan
from tests.support.tiny import tiny_config, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four good scans of two shapes, one of them in a folder, and a broken one."""
    folder = tmp_path / "in"
    write_scan(folder / "a.nii.gz", 1)
    write_scan(folder / "b.nii", 2, (6, 6, 6))
    write_scan(folder / "c.nii.gz", 3)
    write_scan(folder / "deeper" / "a.nii.gz", 4)
    (folder / "broken.nii.gz").write_bytes(b"no volume")
    (folder / ".hidden.nii.gz").write_bytes(b"no volume")
    (folder / "notes.txt").write_text("no volume")
    return folder


GOOD = ["a.nii.gz", "b.nii", "c.nii.gz", "deeper/a.nii.gz"]
WRITTEN = ["a.nii.gz", "b.nii.gz", "c.nii.gz", "deeper/a.nii.gz"]


def test_a_folder(model: Path, scans: Path, tmp_path: Path) -> None:
    """Each output is the very file that the command writes for one scan; inputs are not touched."""
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in scans.rglob("*") if path.is_file()
    }
    events = translate(model, scans, "-o", tmp_path / "out", code=1)
    assert names(events, "item-done") == GOOD == names(events, "item-started")
    (bad,) = [event for event in events if event["event"] == "item-failed"]
    assert bad["name"] == "broken.nii.gz" and "is not a NIfTI file" in bad["error"] and bad["fix"]
    assert sorted(volumes(tmp_path / "out")) == WRITTEN
    for name, output in zip(GOOD, WRITTEN, strict=True):
        arguments = [str(scans / name), "-o", str(tmp_path / "one.nii.gz"), "--model", str(model), "-q"]
        assert CliRunner().invoke(app, ["translate", *arguments, "--dtype", "float32"]).exit_code == 0
        assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "out" / output).read_bytes()
    assert events[0]["event"] == "started" and events[0]["items"] == 5 and events[-1]["event"] == "finished"
    assert (events[-1]["done"], events[-1]["failed"], events[-1]["left"]) == (4, 1, 0)
    after = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in scans.rglob("*") if path.is_file()
    }
    assert after == before


@pytest.mark.parametrize("options", ["--prefetch 1", "--prefetch 9", "--prefetch 3 --prefetch-memory 1KB"])
def test_bits_do_not_depend_on_how_it_was_scheduled(
    model: Path, scans: Path, tmp_path: Path, options: str
) -> None:
    translate(model, scans, "-o", tmp_path / "usual", code=1)
    events = translate(model, scans, "-o", tmp_path / "out", *options.split(), code=1)
    assert names(events, "item-done") == GOOD
    assert volumes(tmp_path / "out") == volumes(tmp_path / "usual")


def test_a_second_run_does_what_is_missing_changed_or_failed(
    model: Path, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    translate(model, scans, "-o", out, code=1)
    first = volumes(out)
    assert names(translate(model, scans, "-o", out, code=1), "item-kept") == GOOD

    (out / "a.nii.gz").unlink()
    (out / "b.nii.gz").write_bytes(first["b.nii.gz"][:-1])
    spoiled = bytearray(first["c.nii.gz"])
    spoiled[-1] ^= 1
    (out / "c.nii.gz").write_bytes(spoiled)
    write_scan(scans / "broken.nii.gz", 5)
    events = translate(model, scans, "-o", out)
    assert names(events, "item-started") == ["a.nii.gz", "b.nii", "broken.nii.gz", "c.nii.gz"]
    assert names(events, "item-kept") == ["deeper/a.nii.gz"]
    assert {name: bytes_ for name, bytes_ in volumes(out).items() if name in first} == first

    os.utime(scans / "a.nii.gz", (1, 1))  # another time, the same bytes: read again, not drawn again
    write_scan(scans / "b.nii", 6, (6, 6, 6))
    events = translate(model, scans, "-o", out)
    assert names(events, "item-started") == ["b.nii"] and len(names(events, "item-kept")) == 4
    assert volumes(out)["b.nii.gz"] != first["b.nii.gz"]


def test_other_settings_or_another_model_are_other_work(model: Path, scans: Path, tmp_path: Path) -> None:
    (scans / "broken.nii.gz").unlink()
    out = tmp_path / "out"
    translate(model, scans, "-o", out)
    for options in (["--seed", "1"], ["--steps", "1"], ["--gzip-level", "9"], ["--max-memory", "8GB"]):
        assert names(translate(model, scans, "-o", out, *options), "item-started") == GOOD, options
    translate(model, scans, "-o", out)
    other = tiny_model(tiny_config(), seed=1).save_pretrained(tmp_path / "other", card="# other")
    assert names(translate(other, scans, "-o", out), "item-started") == GOOD
    copy = tiny_model(tiny_config(), seed=1).save_pretrained(tmp_path / "copy", card="# the same weights")
    assert names(translate(copy, scans, "-o", out), "item-kept") == GOOD


def test_verify_sees_a_change_that_stamps_do_not_show(model: Path, scans: Path, tmp_path: Path) -> None:
    (scans / "broken.nii.gz").unlink()
    out = tmp_path / "out"
    translate(model, scans, "-o", out)
    wanted = volumes(out)
    for file, place in ((scans / "b.nii", -1), (out / "c.nii.gz", -1)):
        status, data = file.stat(), bytearray(file.read_bytes())
        data[place] ^= 1
        with file.open("r+b") as stream:
            stream.write(data)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert names(translate(model, scans, "-o", out), "item-kept") == GOOD
    events = translate(model, scans, "-o", out, "--verify")
    assert names(events, "item-started") == ["b.nii", "c.nii.gz"]
    assert volumes(out)["c.nii.gz"] == wanted["c.nii.gz"] and volumes(out)["b.nii.gz"] != wanted["b.nii.gz"]


def test_failed_items_can_be_kept(model: Path, scans: Path, tmp_path: Path) -> None:
    translate(model, scans, "-o", tmp_path / "out", code=1)
    write_scan(scans / "broken.nii.gz", 5)
    events = translate(model, scans, "-o", tmp_path / "out", "--keep-failed", code=1)
    (bad,) = [event for event in events if event["event"] == "item-failed"]
    assert bad["name"] == "broken.nii.gz" and not names(events, "item-started")


def test_an_input_that_is_gone_leaves_its_output(model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    translate(model, scans, "-o", out, code=1)
    (scans / "a.nii.gz").unlink()
    events = translate(model, scans, "-o", out, code=1)
    assert events[0]["items"] == 4 and (out / "a.nii.gz").exists()


def test_outputs_inside_the_inputs_are_no_inputs(model: Path, scans: Path) -> None:
    (scans / "broken.nii.gz").unlink()
    for out in ("one", "deeper/two"):
        assert names(translate(model, scans, "-o", scans / out), "item-done") == GOOD
    assert "is the folder of the inputs" in refused(model, scans, "-o", scans)


def test_samples_write_their_spread_and_the_planes_disagreement(
    model: Path, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    events = translate(model, scans / "a.nii.gz", "-o", f"{out}/", "--samples", "3", "--batch", "2")
    assert sorted(volumes(out)) == ["a.nii.gz", "a_planes.nii.gz", "a_sd.nii.gz"]
    pipeline = Pipeline(model, device="cpu", dtype="float32")
    expected = pipeline(scans / "a.nii.gz", samples=3, batch=2, disagreement=True)
    for name, values in (
        ("a", expected.volume),
        ("a_sd", expected.spread),
        ("a_planes", expected.planes_apart),
    ):
        np.testing.assert_array_equal(nib.load(out / f"{name}.nii.gz").get_fdata(), values)
    numbers = next(event["numbers"] for event in events if event["event"] == "item-done")
    assert 0 < numbers["spread"] < 1 and 0 < numbers["planes apart"] < 1
    assert "needs a strategy that runs them all" in refused(
        model, scans, "-o", tmp_path / "no", "--disagreement", "--strategy", "single"
    )


def test_the_planes_disagreement_is_that_of_their_own_predictions() -> None:
    """One evaluation from the same noise: the deviation over planes of what each strategy 'single' gives."""
    config = tiny_config(sampling={"steps": 1, "consistency": False})
    pipeline = Pipeline(tiny_model(config), device="cpu", dtype="float32")
    image = nib.Nifti1Image(np.random.default_rng(0).random((7, 6, 5)).astype(np.float32), np.eye(4))
    alone = [
        pipeline(image, strategy="single", planes=[plane]).volume
        for plane in ("axial", "coronal", "sagittal")
    ]
    found = pipeline(image, strategy="average", disagreement=True)
    np.testing.assert_allclose(found.volume, np.mean(alone, axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.planes_apart, np.std(alone, axis=0), rtol=1e-3, atol=1e-6)
    assert found.planes_apart is not None and found.planes_apart.max() > 1e-3


def test_work_can_be_sent_elsewhere(model: Path, scans: Path, tmp_path: Path) -> None:
    """The pure function behind it, as a worker of another scheduler calls it."""
    work = pickle.loads(pickle.dumps(Work(str(model), {"seed": 3}, device="cpu", dtype="float32")))
    item = pickle.loads(pickle.dumps(Item("a", (scans / "a.nii.gz",), tmp_path / "there" / "a.nii.gz")))
    outcome = pickle.loads(pickle.dumps(translate_item(work, item)))
    assert outcome.error is None and outcome.residual < 1e-3
    written = (tmp_path / "there" / "a.nii.gz").read_bytes()
    assert outcome.outputs == {"volume": (len(written), hashlib.sha256(written).hexdigest())}
    translate(model, scans / "a.nii.gz", "-o", f"{tmp_path}/batch/", "--seed", "3")
    assert volumes(tmp_path / "batch") == volumes(tmp_path / "there")
    bad = translate_item(work, Item("b", (scans / "broken.nii.gz",), tmp_path / "b.nii.gz"))
    assert "is not a NIfTI file" in (bad.error or "") and bad.fix and not (tmp_path / "b.nii.gz").exists()


def test_shards_share_the_work(model: Path, scans: Path, tmp_path: Path) -> None:
    """Each item is done by one of them; a run without shards goes on with what they have done."""
    (scans / "broken.nii.gz").unlink()
    out = tmp_path / "out"
    done = [
        names(translate(model, scans, "-o", out, "--shard", f"{n}/3", code=None), "item-done")
        for n in (1, 2, 3)
    ]
    assert sorted(sum(done, [])) == GOOD
    assert names(translate(model, scans, "-o", out), "item-kept") == GOOD
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0"):
        assert "a shard is i/n" in refused(model, scans, "-o", out, "--shard", wrong)


def test_what_does_not_belong_to_many_is_refused(model: Path, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, problem in (
        (["--figure", "a.png"], "--figure is for one volume"),
        (["--spread", "sd.nii"], "--spread is for one volume"),
        (["--ending", ".mif"], "unknown ending '.mif'"),
        (["--layout", "bid"], "unknown layout 'bid'; did you mean 'bids'?"),
        (["--gzip-level", "10"], "a gzip level is from 0 to 9"),
        (["--prefetch", "0"], "must be at least 1"),
        (["--prefetch-memory", "much"], "no amount of memory"),
        (["--solver", "ddmi"], "did you mean 'ddim'?"),
    ):
        assert problem in refused(model, scans, "-o", out, *options)
    assert "does not exist" in refused(tmp_path / "none", scans, "-o", out)
    assert not out.exists()
