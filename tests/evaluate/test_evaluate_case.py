"""Subjects as a model sees them: input made of the truth, boxes, foreground, consistency, baselines."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scorefusion.data import DatasetConfig, Subject, find_subjects
from scorefusion.degradations import Measurement, block_mean
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.evaluate.cases import (
    Case,
    Where,
    files_needed,
    find_cases,
    is_synthetic,
    label_names,
    read_case,
)
from scorefusion.evaluate.methods import Regression, baseline_volume
from scorefusion.evaluate.run import measure
from scorefusion.models.config import BranchConfig, ModelConfig, ResidualConfig
from tests.support.tiny import same_grid_config, tiny_config

SHAPE = (20, 22, 24)
WHERE = Where((12, 14, 16))
BOTH = tiny_config(
    conditions=("t1", "t2"),
    branches=tuple(
        BranchConfig(plane=plane, conditions=(k,))
        for k in (0, 1)
        for plane in ("axial", "coronal", "sagittal")
    ),
)


def head(seed: int, offset: float = 0.0) -> np.ndarray:
    """A textured ball, (x, y, z) order."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    ball = np.sqrt((grid**2).sum(axis=0)) < 0.8
    texture = np.random.default_rng(seed).uniform(200, 1000, SHAPE) + 300 * grid[2]
    return np.asarray(ball * texture + offset, np.float32)


def write_subjects(folder: Path) -> None:
    """Three subjects of two contrasts, one the other's opposite, and a label map of what is bright."""
    for number in range(3):
        place = folder / f"sub-{number:03d}"
        place.mkdir(parents=True)
        t1 = head(number)
        for name, volume in (("t1", t1), ("t2", np.where(t1 > 0, 1200 - t1, 0)), ("labels", t1 > 600)):
            kind = np.uint8 if name == "labels" else np.float32
            nib.save(nib.Nifti1Image(volume.astype(kind), np.eye(4)), place / f"{place.name}_{name}.nii.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for number in range(2):
        place = path / f"sub-{number:03d}"
        place.mkdir()
        t1 = head(number)
        volumes = {"t1": t1, "t2": np.where(t1 > 0, 1200 - t1, 0), "flair": t1**2 / 1000}
        volumes["labels"] = np.select([t1 > 700, t1 > 0], [2, 1], 0)
        for name, volume in volumes.items():
            kind = np.uint8 if name == "labels" else np.float32
            image = nib.Nifti1Image(volume.astype(kind), np.diag([1.0, 1.5, 2.0, 1.0]))
            nib.save(image, place / f"{place.name}_{name}.nii.gz")
    (path / "phantom.json").write_text('{"synthetic": true, "labels": {"background": 0, "fluid": 1}}')
    return path


def case_of(folder: Path, config: ModelConfig, where: Where = WHERE, number: int = 0) -> Case:
    return read_case(find_cases(folder, config)[number], config, where)


def test_the_input_is_made_of_the_truth(folder: Path) -> None:
    config = tiny_config()
    case = case_of(folder, config)
    whole = torch.from_numpy(head(0).transpose(2, 1, 0).copy())[None, None]
    pooled = block_mean(whole, 2)
    torch.testing.assert_close(case.given["t1"], pooled)
    lo, hi = float(pooled.min()), float(pooled.max())
    expected = 2 * (whole - lo) / (hi - lo) - 1
    np.testing.assert_allclose(case.truth, expected[case.box.index][0, 0].numpy(), atol=1e-6)
    assert case.data_range == pytest.approx(float(expected.max() - expected.min()))
    assert case.box.size == (12, 14, 16) and case.spacing == pytest.approx((2.0, 1.5, 1.0))
    np.testing.assert_array_equal(case.inside, case.truth > -0.95)
    assert case.labels is not None and case.labels.shape == (12, 14, 16)
    assert 0.3 < case.inside.mean() <= 1.0
    np.testing.assert_allclose(case.volume(case.residual()), case.truth, atol=1e-6)


def test_consistency_is_the_greatest_difference_from_what_was_measured(folder: Path) -> None:
    case = case_of(folder, tiny_config())
    assert case.consistency(case.truth) == pytest.approx(0.0, abs=1e-6)
    assert case.consistency(baseline_volume("nearest", case)) == pytest.approx(0.0, abs=1e-6)
    wrong = case.truth.copy()
    wrong[4:6, 4:6, 4:6] += 0.3
    assert case.consistency(wrong) == pytest.approx(0.3 / case.data_range, rel=1e-4)
    assert case_of(folder, same_grid_config()).consistency(case.truth) is None


def test_both_conditions(folder: Path) -> None:
    assert files_needed(BOTH) == ("t2", "t1") and files_needed(tiny_config()) == ("t1",)
    case = case_of(folder, BOTH)
    fine = torch.from_numpy(np.asarray(nib.load(folder / "sub-000/sub-000_t2.nii.gz").dataobj))
    np.testing.assert_allclose(case.given["t2"][0, 0].numpy(), fine.numpy().transpose(2, 1, 0))
    assert case.given["t1"].shape == (1, 1, 12, 11, 10)
    single = case.seen_by(tiny_config())
    torch.testing.assert_close(single.prepared.condition, case.prepared.condition[:, :1])
    assert single.intensity == case.intensity


def test_a_model_of_one_condition_beside_one_of_two(folder: Path) -> None:
    """From the T2 alone: results are normalised by the target's own intensities, not the pooled input's."""
    case = case_of(folder, BOTH)
    config = same_grid_config(conditions=("t2",), target="t1", branches=tiny_config().branches)
    other = case.seen_by(config)
    assert other.prepared.condition.shape[1] == 1
    assert other.intensity.lo == pytest.approx(float(case.target.min())) and other.intensity != case.intensity
    np.testing.assert_allclose(other.volume(other.residual()), other.truth, atol=1e-6)


def test_translation(folder: Path) -> None:
    config = same_grid_config()
    case = case_of(folder, config)
    assert case.intensity.hi == pytest.approx(float(case.target.max()))
    assert case.truth.max() <= 1.0 and case.data_range == pytest.approx(2.0)
    first = case.prepared.condition[case.box.index][0, 0].numpy()
    np.testing.assert_array_equal(baseline_volume("input", case), first)


def test_a_fitted_psnr_does_not_see_brightness_and_contrast(folder: Path) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("skimage")
    case = case_of(folder, same_grid_config())
    noise = np.random.default_rng(0).normal(0, 0.1, case.truth.shape).astype(np.float32)
    right, other = (
        measure(volume, case) for volume in (case.truth + noise, 0.4 * (case.truth + noise) - 0.3)
    )
    assert other["psnr"] < 20 < right["psnr"]
    assert other["psnr_fitted"] == pytest.approx(right["psnr_fitted"], abs=1e-4)
    assert right["psnr_fitted"] == pytest.approx(right["psnr"], abs=0.4), "the fit shrinks noise a little"
    assert right["psnr"] == pytest.approx(20 * np.log10(2.0 / 0.1), abs=0.1)
    assert (
        measure(case_of(folder, tiny_config()).truth, case_of(folder, tiny_config()))["psnr_fitted"] is None
    )


def test_psnr_and_ssim_are_of_the_truth_scaled_to_0_and_1(folder: Path) -> None:
    """By scikit-image, from the file: neither the scan's own unit nor the model's normalisation counts."""
    metrics = pytest.importorskip("skimage.metrics")
    case = case_of(folder, tiny_config(), Where(None))
    scan = head(0).transpose(2, 1, 0)[: case.truth.shape[0]].astype(np.float64)
    truth = (scan - scan.min()) / np.ptp(scan)
    noisy = case.truth + np.random.default_rng(1).normal(0, 0.1, case.truth.shape).astype(np.float32)
    other = (noisy - case.truth.min()) / np.ptp(case.truth)
    found = measure(noisy, case)
    expected = metrics.peak_signal_noise_ratio(truth, other, data_range=1)
    assert found["psnr"] == pytest.approx(expected, abs=1e-4)
    assert found["ssim"] == pytest.approx(metrics.structural_similarity(truth, other, data_range=1), abs=1e-5)


def test_a_regression_of_intensities_finds_a_polynomial(folder: Path) -> None:
    """FLAIR is T1 squared here, and both are normalised linearly."""
    config = same_grid_config(conditions=("t1",), branches=tiny_config().branches)
    subjects = find_cases(folder, config)
    regression = Regression.fit([read_case(subjects[0], config, Where((12, 14, 16)))])
    case = case_of(folder, config, number=0)
    found = baseline_volume("intensity regression", case, regression)
    np.testing.assert_allclose(found, case.truth, atol=1e-3)
    with pytest.raises(ScoreFusionError, match="at least one subject"):
        Regression.fit([])


def test_boxes_and_slabs(folder: Path) -> None:
    config = tiny_config()
    assert case_of(folder, config, Where(None)).box.size == (24, 22, 20)
    box = case_of(folder, config, Where((8, 8, 8), slab=(11, 24))).box
    assert box.start[0] >= 12 and box.stop[0] <= 24 and box.size == (8, 8, 8)
    box = case_of(folder, config, Where(None, slab=(3, 17))).box
    assert (box.start[0], box.stop[0]) == (4, 16) and box.size[1:] == (22, 20)
    for slab in ((0, 25), (5, 5)):
        with pytest.raises(ScoreFusionError, match="not inside the volume, which has 24"):
            case_of(folder, config, Where((8, 8, 8), slab=slab))
    assert case_of(folder, config, Where((8, 8, 8), coarsen=2)).truth.shape == (8, 8, 8)
    with pytest.raises(BadInput, match="too few to coarsen 3 times"):
        case_of(folder, config, Where((8, 8, 8), coarsen=3))


@pytest.mark.parametrize(
    "degradation",
    [
        {"kind": "k-space", "fraction": 0.5},
        {"kind": "thick-slices", "axis": "z", "thickness": 2, "gap": 1},
        {"kind": "block-mean", "edges": (2, 1, 1)},
        {"kind": "inpaint", "hole": 0.3},
        {"kind": "block-mean", "factor": 2, "noise": 0.05},
    ],
)
def test_every_degradation(folder: Path, degradation: dict[str, object]) -> None:
    config = tiny_config(
        degradation=Measurement.model_validate(degradation),
        residual=ResidualConfig(base="pseudo-inverse", scale=0.2),
    )
    case = case_of(folder, config)
    noisy = "noise" in degradation
    consistency = case.consistency(case.truth)
    assert consistency is not None and (consistency > 1e-3 if noisy else consistency < 1e-4)
    inverse = baseline_volume("pseudo-inverse", case)
    assert inverse.shape == case.truth.shape and case.consistency(inverse) < 1e-3
    if degradation["kind"] == "k-space":
        assert case.box.size == (24, 22, 20)


def test_what_a_digest_depends_on(folder: Path) -> None:
    config = tiny_config()
    one, same, moved, other = (
        case_of(folder, config),
        case_of(folder, config),
        case_of(folder, config, Where((8, 8, 8))),
        case_of(folder, config, number=1),
    )
    assert one.digest == same.digest and len({one.digest, moved.digest, other.digest}) == 3


def test_finding_subjects(folder: Path, tmp_path: Path) -> None:
    config = tiny_config()
    assert [subject.name for subject in find_cases(folder, config)] == ["sub-000", "sub-001"]
    assert len(find_cases(folder, config, count=1)) == 1
    single = find_cases(folder / "sub-001/sub-001_t1.nii.gz", config)
    assert [list(subject.files) for subject in single] == [["t1"]]
    assert is_synthetic(folder) and label_names(folder) == {0: "background", 1: "fluid"}
    assert not is_synthetic(tmp_path) and label_names(tmp_path) == {}
    with pytest.raises(ScoreFusionError, match="at least 1 subject"):
        find_cases(folder, config, count=0)
    with pytest.raises(BadInput, match="pd"):
        find_cases(folder, tiny_config(conditions=("pd",), target="pd"))
    with pytest.raises(BadInput):
        read_case(Subject("x", "x", {"t1": tmp_path / "no.nii.gz"}), config, Where())


def test_a_split_is_the_one_that_training_leaves_out(tmp_path: Path) -> None:
    for number in range(12):
        image = nib.Nifti1Image(np.random.default_rng(number).normal(size=(16, 16, 16)), np.eye(4))
        folder = tmp_path / f"sub-{number:02d}"
        folder.mkdir()
        nib.save(image, folder / f"sub-{number:02d}_t1.nii.gz")
    config, shares = tiny_config(), (0.5, 0.2, 0.3)
    parts = {
        split: {case.name for case in find_cases(tmp_path, config, split=split, fractions=shares)}
        for split in ("train", "validation", "test", "all")
    }
    assert parts["train"] | parts["validation"] | parts["test"] == parts["all"] and len(parts["all"]) == 12
    assert all(parts[split] for split in parts) and not parts["train"] & parts["test"]
    trained = DatasetConfig(root=str(tmp_path), contrasts=("t1",), split="train", fractions=shares)
    assert {subject.name for subject in find_subjects(trained).subjects} == parts["train"]
    with pytest.raises(BadInput, match="sum to 1"):
        find_cases(tmp_path, config, split="test", fractions=(0.5, 0.2, 0.2))
