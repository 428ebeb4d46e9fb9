"""A tree of DICOM files as a batch: each series that is a volume is one scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from batches import names, refused, translate, volumes, write_model
from tiny import same_grid_config

from scorefusion import Pipeline

pydicom = pytest.importorskip("pydicom")

from dicom_series import texture, write_series  # noqa: E402

from scorefusion import read_dicom_series  # noqa: E402

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
