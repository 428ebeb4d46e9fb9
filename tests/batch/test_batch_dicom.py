"""A tree of DICOM files as a batch: each series that is a volume is one scan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from scorefusion import Pipeline
from scorefusion.batch.sources import Query, find_items
from scorefusion.cli import app
from scorefusion.degradations import Inpaint
from scorefusion.models.config import ResidualConfig
from tests.support.batches import names, nobody, refused, translate, volumes, write_model
from tests.support.tiny import same_grid_config, tiny_config

pydicom = pytest.importorskip("pydicom")

from scorefusion import read_dicom_series  # noqa: E402
from tests.support.dicom_series import enhanced_of, save, texture, uid, write_series  # noqa: E402

QUICK = ("--steps", "1", "--strategy", "average")


def test_a_tree_of_series(tmp_path: Path) -> None:
    model, root, out = write_model(tmp_path / "tiny"), tmp_path / "in", tmp_path / "out"
    write_series(root / "patient1" / "t1", name="a")
    write_series(root / "patient2" / "both", name="b", pixels=texture(seed=1))
    for path in write_series(tmp_path / "moved", name="c", pixels=texture(seed=2)):
        path.rename(root / "patient2" / "both" / f"c{path.name}")

    def localizer(image: Any, k: int) -> None:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(root / "patient1" / "scout", name="d", pixels=texture((2, 6, 6)), change=localizer)
    write_series(root / "patient3", name="e")[2].unlink()  # a slice is missing
    (root / "patient1" / "notes.txt").write_text("no scan")
    (root / "damaged").write_bytes(bytes(128) + b"DICM" + b"\xff" * 99)

    events = translate(model, root, "-o", out, *QUICK, code=1)
    assert events[0]["source"] == "dicom" and events[0]["ignored"] == 1
    done = ["patient1/t1", "patient2/both/3-series_b", "patient2/both/3-series_c"]
    assert names(events, "item-done") == done
    failed = {event["name"]: event["error"] for event in events if event["event"] == "item-failed"}
    assert sorted(failed) == ["damaged", "patient3"] and "damaged" in failed["damaged"]
    assert sorted(volumes(out)) == [f"{name}.nii.gz" for name in done]
    expected = Pipeline(model, device="cpu", dtype="float32")(
        read_dicom_series(root / "patient1" / "t1"), steps=1, strategy="average"
    )
    found = nib.load(out / "patient1" / "t1.nii.gz")
    np.testing.assert_array_equal(found.get_fdata(), expected.volume)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)

    assert len(names(translate(model, root, "-o", out, *QUICK, code=1), "item-kept")) == 3
    write_series(root / "patient1" / "t1", name="a", pixels=texture(seed=5))
    assert names(translate(model, root, "-o", out, *QUICK, code=1), "item-started") == ["patient1/t1"]


def test_series_do_not_say_which_condition_they_are(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    model = write_model(tmp_path / "two", same_grid_config())
    assert "list them in a CSV" in refused(model, tmp_path / "in", "-o", tmp_path / "out")


def test_conditions_are_listed_by_their_folders(tmp_path: Path) -> None:
    """A table of folders, and folders named one by one, each of one series."""
    model = write_model(tmp_path / "two", same_grid_config())
    write_series(tmp_path / "p1" / "t1", name="a")
    write_series(tmp_path / "p1" / "t2", name="b", pixels=texture(seed=1))
    (tmp_path / "p1" / "t2" / "notes").write_text("text")
    (tmp_path / "p1" / "t2" / "link").symlink_to("nowhere")
    (tmp_path / "pairs.csv").write_text("subject,t1,t2\none,p1/t1,p1/t2\nnone,p1/t1,p1\n")
    events = translate(model, tmp_path / "pairs.csv", "-o", tmp_path / "out", *QUICK, code=1)
    (done,) = [event for event in events if event["event"] == "item-done"]
    assert done["name"] == "one" and len(done["warnings"]) == 2
    assert done["warnings"][1].endswith("p1/t2: 1 file was not used: notes (is not a DICOM file)")
    (failed,) = [event for event in events if event["event"] == "item-failed"]
    assert failed["name"] == "none" and "p1: holds 2 series" in failed["error"]
    nested = tmp_path / "p1" / "t1" / "more"
    nested.mkdir()
    file = next((tmp_path / "p1" / "t1").glob("IM*"))
    data = file.read_bytes()
    file.unlink()
    (nested / file.name).write_bytes(data[:-2] + b"\1\2")
    events = translate(model, tmp_path / "pairs.csv", "-o", tmp_path / "out", *QUICK, code=1)
    assert names(events, "item-done") == ["one"], "a file below the folder has changed"
    events = translate(model, tmp_path / "pairs.csv", "-o", tmp_path / "out", *QUICK, code=1)
    assert names(events, "item-kept") == ["one"]
    result = run(model, tmp_path / "p1" / "t1", tmp_path / "p1" / "t2", "-o", tmp_path / "x.nii.gz")
    assert result.exit_code == 0, result.output
    expected = nib.load(tmp_path / "out" / "one.nii.gz").get_fdata()
    np.testing.assert_array_equal(nib.load(tmp_path / "x.nii.gz").get_fdata(), expected)


def test_what_may_not_be_read_is_an_item_that_fails() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "in"
        write_series(root / "open", name="a")
        file = write_series(root / "file", name="b")[2]
        write_series(root / "closed", name="c")
        Path(name).chmod(0o755)
        file.chmod(0)
        (root / "closed").chmod(0)
        with nobody():
            items = find_items([root], Query(Path(name) / "out", ("t1",), "t1")).items
        problems = {item.name: item.problem.error for item in items if item.problem}
        (root / "closed").chmod(0o755)
    assert sorted(problems) == ["closed", f"file/{file.name}"]
    assert all("cannot be read (Permission denied)" in problem for problem in problems.values())
    good = {item.name: item.series[0].passed for item in items if not item.problem}
    assert sorted(good) == ["file", "open"] and not good["open"]
    assert [(each.file, each.reason) for each in good["file"]] == [
        (file, "cannot be read (Permission denied)")
    ]


def test_dicom_among_nifti_is_named(tmp_path: Path) -> None:
    model, root = write_model(tmp_path / "tiny"), tmp_path / "in"
    write_series(root / "dicom", name="a")
    nib.save(nib.Nifti1Image(texture().astype(np.float32), np.eye(4)), root / "b.nii.gz")
    events = translate(model, root, "-o", root / "out", *QUICK)
    assert names(events, "item-done") == ["b.nii.gz"]
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert note == "left out: DICOM files, which --layout dicom translates"
    events = translate(model, root, "-o", tmp_path / "out", *QUICK, "--layout", "dicom")
    assert names(events, "item-done") == ["dicom"]


def test_derived_series(tmp_path: Path) -> None:
    model, root, out = write_model(tmp_path / "tiny"), tmp_path / "in", tmp_path / "out"
    write_series(root / "a", name="a")
    write_series(root / "b", name="b", pixels=texture(seed=1))
    (out / "a_dicom").parent.mkdir()
    leftover = out / ".0123abcd.new.a_dicom"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"?")
    translate(model, root, "-o", out, *QUICK, "--dicom", "--deidentify", code=0)
    assert not leftover.exists()
    before = {path: path.read_bytes() for path in out.glob("*_dicom/*")}
    assert {path.parent.name for path in before} == {"a_dicom", "b_dicom"}
    volume, series = nib.load(out / "a.nii.gz"), read_dicom_series(out / "a_dicom")
    np.testing.assert_allclose(series.affine, volume.affine, atol=1e-3)
    fine = series.to_own_order(series.values)
    assert fine.shape == volume.shape
    assert np.abs(fine - volume.get_fdata()).max() <= 0.51 * series.slope
    patient = str(pydicom.dcmread(next(iter(root.glob("a/*")))).PatientName)
    assert patient and not any(patient.encode() in data for data in before.values())

    again = translate(model, root, "-o", out, *QUICK, "--dicom", "--deidentify", code=0)
    assert names(again, "item-kept") == ["a", "b"]
    next(out.glob("b_dicom/*")).unlink()
    again = translate(model, root, "-o", out, *QUICK, "--dicom", "--deidentify", code=0)
    assert names(again, "item-done") == ["b"]
    assert {path: path.read_bytes() for path in out.glob("*_dicom/*")} == before


def test_a_derived_series_needs_a_series(tmp_path: Path) -> None:
    model, root = write_model(tmp_path / "tiny"), tmp_path / "in"
    root.mkdir()
    nib.save(nib.Nifti1Image(texture().astype(np.float32), np.eye(4)), root / "a.nii.gz")
    assert "holds no DICOM series" in refused(model, root, "-o", tmp_path / "out", "--dicom")
    assert "--dicom" in refused(model, root, "-o", tmp_path / "out", "--deidentify")


def scout(image: Any, k: int) -> None:
    image.ImageType, image.SeriesDescription = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "three planes"


def mosaic(image: Any, k: int) -> None:
    image.ImageType, image.ImagePositionPatient = ["ORIGINAL", "PRIMARY", "MOSAIC"], [0, 0, 0.37 * k]


def test_what_a_batch_leaves_out_is_named(tmp_path: Path) -> None:
    """In notes, in the item's warnings, in the report; a mosaic or a spoiled series is an item that fails."""
    model, root, out = write_model(tmp_path / "tiny"), tmp_path / "in", tmp_path / "in" / "out"
    for path in write_series(root / "p1" / "t1", name="a")[1:3]:
        path.write_bytes(path.read_bytes()[132:])  # without preamble
    (root / "p1" / "t1" / "IM99").touch()
    write_series(root / "p1" / "scout", name="s", change=scout)
    write_series(root / "p2", name="m", pixels=texture((2, 24, 24)), change=mosaic)
    write_series(root / "p3", name="b", change=lambda image, k: scout(image, k) if k == 1 else None)
    (root / "p4").mkdir()
    (root / "p4" / "link").symlink_to("nowhere")

    events = translate(model, root, "-o", out, *QUICK, code=1)
    (done,) = [event for event in events if event["event"] == "item-done"]
    assert done["name"] == "p1/t1"
    assert done["warnings"] == ["1 file was not used: p1/t1/IM99 (is empty (0 bytes))"]
    expected = read_dicom_series(root / "p1" / "t1")
    assert len(expected.frames) == 5 and nib.load(out / "p1" / "t1.nii.gz").shape[2] % 5 == 0
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert len(notes) == 2 and "three planes" in notes[0] and notes[0].endswith("is a localizer")
    assert notes[1] == "1 file was not used: p4/link (is a link that leads nowhere)"
    failed = {event["name"]: event["error"] for event in events if event["event"] == "item-failed"}
    assert sorted(failed) == ["p2/3-series_m", "p3/3-series_b"]
    assert "is a Siemens mosaic" in failed["p2/3-series_m"]
    assert "1 of its 5 files: is a localizer (IM10)" in failed["p3/3-series_b"]
    report = (out / "report.html").read_text()
    assert "three planes" in report and "p4/link" in report and "p1/t1/IM99" in report

    again = translate(model, root, "-o", out, *QUICK, code=1)
    assert names(again, "item-kept") == ["p1/t1"] and not names(again, "item-done"), "OUT is no input"


def test_series_of_a_batch_are_chosen(tmp_path: Path) -> None:
    model, root = write_model(tmp_path / "tiny"), tmp_path / "in"
    for patient in ("p1", "p2"):
        for number, text in ((3, "t1_mprage"), (4, "T2 space")):

            def change(image: Any, k: int, number: int = number, text: str = text) -> None:
                image.SeriesNumber, image.SeriesDescription = number, text

            write_series(root / patient / text[:2], name=f"{patient}{number}", change=change)
    both = ["p1/T2", "p2/T2"]
    for key, expected in (("t2", both), ("4", both), (uid("series", "p24")[-9:], ["p2/T2"])):
        out = tmp_path / f"out{key}"
        assert names(translate(model, root, "-o", out, *QUICK, "--series", key), "item-done") == expected
    line = refused(model, root, "-o", tmp_path / "none", "--series", "flair")
    assert "holds no series 'flair', only" in line and "t1_mprage" in line
    nib.save(nib.Nifti1Image(texture().astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    line = refused(model, tmp_path / "a.nii.gz", "-o", f"{tmp_path / 'other'}/", "--series", "flair")
    assert "--series" in line and "no DICOM series" in line


def test_series_of_the_folders_in_a_table(tmp_path: Path) -> None:
    """The way on that the error names works; lines without DICOM are as without ``--series``."""
    hole, base = Inpaint(hole=0.3), ResidualConfig(base="identity", scale=0.1)
    config = tiny_config(degradation=hole, residual=base)
    model, holes = write_model(tmp_path / "tiny"), write_model(tmp_path / "holes", config)
    for subject in ("p1", "p2"):
        for number, text in ((3, "t1_mprage"), (4, "T2 space")):

            def change(image: Any, k: int, number: int = number, text: str = text) -> None:
                image.SeriesNumber, image.SeriesDescription = number, text

            name = f"{subject}{number}"
            write_series(tmp_path / subject / text[:2], texture(seed=number), name=name, change=change)
    scan = read_dicom_series(tmp_path / "p1", series="t1")
    missing = np.zeros(scan.shape, np.uint8)
    missing[2:4, 2:4, 2:4] = 1
    nib.save(nib.Nifti1Image(missing, scan.affine), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(texture().astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    table = tmp_path / "all.csv"
    table.write_text("subject,t1\none,p1\ntwo,p2\nnifti,a.nii.gz\nnone,p3\n")
    events = translate(model, table, "-o", tmp_path / "out", *QUICK, code=1)
    errors = [event["fix"] for event in events if event["event"] == "item-failed"]
    assert sum("--series" in fix for fix in errors) == 2
    events = translate(model, table, "-o", tmp_path / "out", *QUICK, "--series", "T1", code=1)
    assert names(events, "item-failed") == ["none"]
    expected = Pipeline(model, device="cpu", dtype="float32")(scan, steps=1, strategy="average").volume
    for name in ("one", "two"):
        found = nib.load(tmp_path / "out" / f"{name}.nii.gz").get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(found, expected)
    events = translate(model, table, "-o", tmp_path / "no", *QUICK, "--series", "flair", code=1)
    assert names(events, "item-done") == ["nifti"]
    table.write_text("subject,t1,mask\none,p1,mask.nii.gz\n")
    events = translate(holes, table, "-o", tmp_path / "filled", *QUICK, "--series", "t1")
    assert names(events, "item-done") == ["one"]
    table.write_text("subject,t1\nnifti,a.nii.gz\n")
    assert "no DICOM series" in refused(model, table, "-o", tmp_path / "nifti", "--series", "t1")


def test_a_series_is_wanted_where_nifti_lies_among_dicom(tmp_path: Path) -> None:
    """Such as an earlier output in the folder of its series."""
    model, root = write_model(tmp_path / "tiny"), tmp_path / "in"
    write_series(root / "t1", name="a")
    write_series(root / "t2", name="b")
    nib.save(nib.Nifti1Image(texture().astype(np.float32), np.eye(4)), root / "t1" / "fine.nii.gz")
    events = translate(model, root, "-o", tmp_path / "out", *QUICK, "--series", uid("series", "a"))
    assert names(events, "item-done") == ["t1"]
    (done,) = [event for event in events if event["event"] == "item-done"]
    assert "fine.nii.gz (is not a DICOM file)" in " ".join(done["warnings"])


def run(model: Path, *arguments: str | Path) -> Any:
    machine = ("--device", "cpu", "--dtype", "float32", *QUICK)
    return CliRunner().invoke(app, ["translate", *map(str, arguments), "--model", str(model), *machine])


def test_a_folder_of_one_series_is_one_volume(tmp_path: Path) -> None:
    """The same bytes as by way of Python, header and all; with spread, planes and a figure."""
    model, root = write_model(tmp_path / "tiny"), tmp_path / "in"
    write_series(root / "t1", name="a")
    write_series(root / "scout", name="s", change=scout)
    out, spread, figure = (tmp_path / name for name in ("x.nii.gz", "sd.nii", "x.png"))
    extra = ("--samples", "2", "--spread", spread, "--figure", figure, "--disagreement")
    result = run(model, root, "-o", out, *extra)
    assert result.exit_code == 0, (result.output, result.exception)
    assert (
        "warning: 5 files were not used: scout/IM02," in result.stderr and "is a localizer" in result.stderr
    )
    expected = Pipeline(model, device="cpu", dtype="float32")(
        read_dicom_series(root), steps=1, strategy="average", samples=2, disagreement=True
    )
    expected.save(tmp_path / "y.nii.gz")
    assert out.read_bytes() == (tmp_path / "y.nii.gz").read_bytes()
    np.testing.assert_array_equal(nib.load(spread).get_fdata(dtype=np.float32), expected.spread)
    assert figure.stat().st_size > 1000 and (tmp_path / "x_planes.nii.gz").exists()
    assert run(model, root, "-o", out, "--quiet").stderr == ""


def test_which_of_several_series(tmp_path: Path) -> None:
    model, root, out = write_model(tmp_path / "tiny"), tmp_path / "in", tmp_path / "x.nii.gz"

    def second(image: Any, k: int) -> None:
        image.SeriesNumber, image.SeriesDescription = 7, "t2 flair"

    write_series(root / "a", name="a")
    write_series(root / "b", name="b", pixels=texture(seed=1), change=second)
    line = refused(model, root, "-o", out)
    assert "holds 2 series" in line and "--series" in line and "a folder as the output" in line
    for name, number, text in (("a", 3, "series a"), ("b", 7, "t2 flair")):
        assert f"{uid('series', name)} (MR '{text}', 5 of 6 × 7), SeriesNumber {number}" in line
    assert not out.exists()
    expected = Pipeline(model, device="cpu", dtype="float32")(root / "b", steps=1, strategy="average")
    for key in ("7", "FLAIR", uid("series", "b"), uid("series", "b")[-7:]):
        assert run(model, root, "-o", out, "--series", key).exit_code == 0
        np.testing.assert_array_equal(nib.load(out).get_fdata(dtype=np.float32), expected.volume)
    assert "holds no series '8', only" in refused(model, root, "-o", out, "--series", "8")
    nib.save(nib.Nifti1Image(texture().astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    line = refused(model, tmp_path / "a.nii.gz", "-o", tmp_path / "y.nii.gz", "--series", "7")
    assert "holds no DICOM file" in line and "leave it out" in line and "output is to be" not in line


def test_files_and_folders_in_place_of_a_volume(tmp_path: Path) -> None:
    """An enhanced object is a volume; one slice is none; no output replaces a slice."""
    model, out = write_model(tmp_path / "tiny"), tmp_path / "x.nii.gz"
    enhanced = save(enhanced_of(texture()), tmp_path / "enhanced.dcm")
    assert run(model, enhanced, "-o", out).exit_code == 0
    scan = read_dicom_series(enhanced)
    np.testing.assert_allclose(nib.load(out).affine[:3, :3] * 2, scan.affine[:3, :3], atol=1e-5)
    slices = write_series(tmp_path / "slices")
    assert "holds 1 slice; a volume has several" in refused(model, slices[0], "-o", out)
    (tmp_path / "nothing").mkdir()
    line = refused(model, tmp_path / "nothing", "-o", out)
    assert "is not a file and holds no DICOM file" in line and "the output is to be a folder" in line
    taken = slices[0].rename(slices[0].with_name("a.nii.gz"))
    before = taken.read_bytes()
    assert "is a DICOM file" in refused(model, tmp_path / "slices", "-o", taken)
    assert taken.read_bytes() == before
