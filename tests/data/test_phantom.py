"""Synthetic subjects, made of a small head of nested balls: signals, geometry, noise, files, the verb."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.ndimage import binary_dilation
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.data.synth import anatomy as anatomy_module
from scorefusion.data.synth import make
from scorefusion.data.synth.anatomy import (
    FILES,
    Field,
    Grid,
    Maps,
    deformation,
    make_anatomy,
    make_grid,
    make_maps,
    read_maps,
    share,
)
from scorefusion.data.synth.make import (
    LABELS,
    SEQUENCES,
    TISSUES,
    Settings,
    gradient_echo,
    inversion_recovery,
    labels_of,
    make_subject,
    rician,
    spin_echo,
    subject_seed,
    write_subjects,
)
from scorefusion.errors import BadInput, ScoreFusionError

COARSE = Settings(spacing=2.0)
CLEAN = Settings(spacing=2.0, snr=0.0, bias=0.0, lesions=True)


def balls() -> dict[str, np.ndarray]:
    """A head of 32³ voxels of 3 mm: fluid within white within grey matter, fluid, bone, scalp, air."""
    axes = (np.arange(32) - 15.5) * 3.0
    z, y, x = np.meshgrid(axes, axes, axes, indexing="ij")
    far = np.sqrt(z**2 + y**2 + x**2)

    def ball(radius: float) -> np.ndarray:
        return (0.5 + (radius - far) / 4).clip(0.0, 1.0)

    wm, gm = ball(24) - ball(6), ball(30) - ball(24)
    tone = 100 * wm + 75 * gm + 30 * ball(6) + 90 * (ball(46) - ball(39)) + 10
    return {"head": tone, "brain": np.where(far < 31, tone, 0), "gm": 255 * gm, "wm": 255 * wm}


AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = -46.5


@pytest.fixture(scope="module")
def maps() -> Maps:
    return make_maps(affine=AFFINE, **balls())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("maps")
    for kind, volume in balls().items():
        nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0).astype(np.float32), AFFINE), place / FILES[kind])
    return place


def test_signal_equations_by_hand() -> None:
    # 0.8 (1 - 1/e) / e
    assert spin_echo(1000.0, 100.0, 0.8, tr=1000.0, te=100.0) == pytest.approx(0.186035, abs=1e-6)
    # The inverted half has just recovered to nothing; what is left is exp(-3).
    null = 1000 * np.log(2)
    assert inversion_recovery(1000.0, 80.0, 1.0, tr=3000.0, te=0.0, ti=null) == pytest.approx(0.0497871)
    assert inversion_recovery(1e9, 80.0, 1.0, tr=1e-3, te=0.0, ti=0.0) == pytest.approx(0.0, abs=1e-9)
    # E = 1/2 at the Ernst angle, 60 degrees: sqrt(3)/2 · 1/2 / (1 - 1/4) = 1/sqrt(3)
    assert gradient_echo(1000.0, 50.0, 1.0, tr=null, te=0.0, flip=60.0) == pytest.approx(3**-0.5)
    assert gradient_echo(1000.0, 50.0, 2.0, tr=null, te=50.0, flip=90.0) == pytest.approx(1 / np.e)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("t1", "csf lesion gm wm"),
        ("t1ir", "csf lesion gm wm"),
        ("t2", "wm gm lesion csf"),
        ("flair", "csf wm gm lesion"),
        ("pd", "wm gm lesion"),
    ],
)
def test_tissues_rank_as_radiologists_know_them(name: str, order: str) -> None:
    signals = []
    for tissue in order.split():
        of = TISSUES[tissue]
        signals.append(float(SEQUENCES[name].signal(of.t1, of.t2, of.pd)))
    assert signals == sorted(signals), dict(zip(order.split(), signals, strict=True))


def test_flair_hides_fluid() -> None:
    fluid, grey = (
        SEQUENCES["flair"].signal(TISSUES[t].t1, TISSUES[t].t2, TISSUES[t].pd) for t in ("csf", "gm")
    )
    assert fluid < 0.2 * grey


def test_a_field_is_the_cubic_spline_of_its_coefficients() -> None:
    field = Field.draw(np.random.default_rng(1), (20.0, 30.0, 25.0), 7.0)
    grid = Grid((0.0, 0.0, 0.0), 2.5, (8, 12, 10))
    values, slopes = field.on(grid), field.on(grid, derivative=1)
    count = field.coefficients.shape
    knots = [7.0 * (np.arange(n + 4) - 3) for n in count]
    for place in [(0, 0, 0), (3, 7, 2), (7, 11, 9)]:
        z, y, x = ((index + 0.5) * 2.5 for index in place)
        row = BSpline(knots[2], field.coefficients.astype(float).transpose(2, 0, 1), 3)(x)
        line = BSpline(knots[0], row, 3)(z)
        spline = BSpline(knots[1], line, 3)
        assert values[place] == pytest.approx(float(spline(y)), abs=1e-5)
        assert slopes[place] == pytest.approx(float(spline.derivative()(y)), abs=1e-5)


def test_a_field_has_unit_variance_and_does_not_depend_on_the_grid() -> None:
    field = Field.draw(np.random.default_rng(2), (90.0, 90.0, 90.0), 3.0)
    fine = field.on(Grid((0.0, 0.0, 0.0), 1.0, (90, 90, 90)))
    coarse = field.on(Grid((0.0, 0.0, 0.0), 3.0, (30, 30, 30)))
    assert fine.var() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-5)


def test_shares_of_voxels_are_those_of_finer_voxels() -> None:
    def level(step: float, count: int) -> np.ndarray:
        axis = (np.arange(count) + 0.5) * step - 12.0
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        # A ball, as a level whose slope is not 1.
        return (3.0 * (9.3 - np.sqrt(z**2 + y**2 + x**2))).astype(np.float32)

    counted = (level(0.25, 96) > 0).reshape(24, 4, 24, 4, 24, 4).mean(axis=(1, 3, 5))
    found = share(level(1.0, 24))
    assert np.abs(found - counted).max() < 0.2
    assert found.sum() == pytest.approx(4 / 3 * np.pi * 9.3**3, rel=0.005)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_deformations_do_not_fold(maps: Maps, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bends = tuple((knot, sd * strength) for knot, sd in anatomy_module.BENDS)
    monkeypatch.setattr(anatomy_module, "BENDS", bends)
    grid = make_grid(maps, 2.0)
    for seed in range(3):
        places, least = deformation(maps, grid, np.random.default_rng(seed))
        steps = np.stack([np.stack(np.gradient(place * 3.0, 2.0)) for place in places])
        assert np.linalg.det(steps.transpose(2, 3, 4, 0, 1)).min() > 0
        assert least >= anatomy_module.LEAST_JACOBIAN
    assert np.ptp(places[0, :, 24, 24]) > 20, "shrunk to nothing"


def test_fractions_fill_the_head(maps: Maps) -> None:
    anatomy = make_anatomy(maps, make_grid(maps, 2.0), np.random.default_rng(0))
    total = sum(anatomy.fractions.values())
    assert isinstance(total, np.ndarray) and total.min() >= 0 and total.max() <= 1 + 1e-5
    assert all(part.min() >= 0 and part.max() <= 1 for part in anatomy.fractions.values())
    middle = tuple(n // 2 for n in anatomy.grid.shape)
    assert total[middle] == pytest.approx(1.0, abs=1e-5)
    assert {int(n) for n in np.unique(labels_of(anatomy))} == {0, 1, 2, 3, 4}


def test_individuals_differ_and_have_borders_one_voxel_wide(maps: Maps) -> None:
    one, other = (make_subject(maps, seed, ["t1"], COARSE).labels for seed in (1, 2))
    assert 0.02 < np.mean(one != other) < 0.6
    anatomy = make_anatomy(maps, make_grid(maps, 2.0), np.random.default_rng(1))
    white = anatomy.fractions["wm"]
    mixed = np.mean((white > 0.02) & (white < 0.98)) / np.mean(white > 0.5)
    assert mixed < 0.7, "most of the white matter is blurred"


def test_signals_agree_with_labels(maps: Maps) -> None:
    subject = make_subject(maps, 4, ["t1", "t2", "flair"], CLEAN)
    means = {
        name: [float(volume[subject.labels == label].mean()) for label in (1, 2, 3, 5)]
        for name, volume in subject.volumes.items()
    }
    csf, gm, wm, lesion = means["t1"]
    assert wm > gm > csf and lesion < wm
    csf, gm, wm, lesion = means["t2"]
    assert csf > gm > wm and lesion > wm
    csf, gm, wm, lesion = means["flair"]
    assert csf < 0.6 * wm and lesion > wm
    assert all(volume.shape == subject.labels.shape for volume in subject.volumes.values())
    assert subject.labels.dtype == np.uint8


def test_a_subject_is_its_seed(maps: Maps) -> None:
    one = make_subject(maps, 7, ["t1", "t2"], COARSE)
    again = make_subject(maps, 7, ["t2", "flair"], COARSE)
    np.testing.assert_array_equal(one.volumes["t2"], again.volumes["t2"])
    np.testing.assert_array_equal(one.labels, again.labels)
    other = make_subject(maps, 8, ["t2"], COARSE)
    assert np.abs(one.volumes["t2"] - other.volumes["t2"]).mean() > 10


def test_lesions_change_nothing_beside_them(maps: Maps) -> None:
    without = make_subject(maps, 4, ["flair"], replace(CLEAN, lesions=False))
    with_them = make_subject(maps, 4, ["flair"], CLEAN)
    lesion = with_them.labels == LABELS["lesion"]
    white = without.labels[lesion]
    assert lesion.sum() > 5 and np.mean(white == LABELS["wm"]) > 0.95
    beside = ~binary_dilation(lesion)
    np.testing.assert_array_equal(without.labels[beside], with_them.labels[beside])
    # Scaling goes by bright voxels, so lesions can move it: compare up to that one factor.
    far = beside & (without.labels == LABELS["gm"]) & (without.volumes["flair"] > 0)
    ratio = with_them.volumes["flair"][far] / without.volumes["flair"][far]
    assert np.quantile(ratio, 0.9) / np.quantile(ratio, 0.1) < 1.001


def test_rician_noise_has_its_moments() -> None:
    random = np.random.default_rng(3)
    air = rician(np.zeros((60, 60, 60), np.float32), 2.0, random).astype(np.float64)
    assert air.mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.01)
    assert air.var() == pytest.approx(4.0 * (2 - np.pi / 2), rel=0.02)
    tissue = rician(np.full((60, 60, 60), 50.0, np.float32), 2.0, random).astype(np.float64)
    assert tissue.std() == pytest.approx(2.0, rel=0.01)
    assert (tissue**2).mean() == pytest.approx(50.0**2 + 2 * 2.0**2, rel=0.001)


def test_signal_to_noise_is_what_was_asked(maps: Maps) -> None:
    clean = make_subject(maps, 5, ["t1"], replace(CLEAN, snr=0.0))
    noisy = make_subject(maps, 5, ["t1"], replace(CLEAN, snr=25.0))
    brain = (clean.labels == LABELS["gm"]) | (clean.labels == LABELS["wm"])
    a, b = clean.volumes["t1"][brain], noisy.volumes["t1"][brain]
    b = b * (np.vdot(a, b) / np.vdot(b, b))
    assert a.mean() / (b - a).std() == pytest.approx(25.0, rel=0.1)


def test_contrasts_have_noise_of_their_own(maps: Maps) -> None:
    subject = make_subject(maps, 5, ["t1", "t2"], replace(COARSE, snr=10.0))
    air = subject.labels == 0
    together = np.corrcoef(subject.volumes["t1"][air], subject.volumes["t2"][air])[0, 1]
    assert abs(together) < 5 / np.sqrt(air.sum()), together


def test_the_verb_writes_aligned_volumes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = ["phantom", "-n", "2", "-o", str(out), "--contrasts", "t1", "t2", "--lesions", "--first", "7"]
    done = CliRunner().invoke(app, [*command, "--spacing", "3", "--maps", str(folder), "--seed", "5"])
    assert done.exit_code == 0, done.output
    assert "2 synthetic subjects" in done.output
    assert sorted(path.name for path in out.iterdir()) == ["phantom.json", "sub-007", "sub-008"]
    images = {path.name: nib.load(path) for path in (out / "sub-007").iterdir()}
    assert sorted(images) == [f"sub-007_{kind}.nii.gz" for kind in ("labels", "t1", "t2")]
    labels = images["sub-007_labels.nii.gz"]
    assert labels.get_data_dtype() == np.uint8
    for image in images.values():
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert image.shape == labels.shape and b"synthetic" in image.header["descrip"].tobytes()
    recipe = json.loads((out / "phantom.json").read_text())
    assert recipe["synthetic"] is True and recipe["settings"]["lesions"] is True
    assert recipe["subjects"] == {f"sub-{n:03d}": subject_seed(5, n) for n in (7, 8)}
    subject = make_subject(read_maps(folder), subject_seed(5, 8), ["t2"], Settings(spacing=3.0, lesions=True))
    stored = np.asanyarray(nib.load(out / "sub-008/sub-008_t2.nii.gz").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(stored, np.rint(subject.volumes["t2"]))


def test_the_grid_lies_where_the_template_lies(maps: Maps) -> None:
    # The mean of many: the brain's middle stays near the template's, which is 0 mm on every axis.
    subject = make_subject(maps, 0, ["t1"], COARSE)
    at = np.argwhere((subject.labels == 2) | (subject.labels == 3)).mean(0)[::-1]
    assert np.linalg.norm(subject.affine[:3, :3] @ at + subject.affine[:3, 3]) < 10.0


def test_what_was_interrupted_goes_on(maps: Maps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, settings = tmp_path / "set", Settings(spacing=4.0)
    calls = 0
    real = nib.save

    def dies_in_the_second_subject(image: object, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        real(image, path)

    monkeypatch.setattr(make.nib, "save", dies_in_the_second_subject)
    with pytest.raises(KeyboardInterrupt):
        write_subjects(maps, out, count=2, contrasts=["t1", "t2"], settings=settings)
    monkeypatch.setattr(make.nib, "save", real)
    assert sorted(path.name for path in out.iterdir()) == ["phantom.json", "sub-000"]
    kept = (out / "sub-000/sub-000_t1.nii.gz").stat().st_mtime_ns
    write_subjects(maps, out, count=2, contrasts=["t1", "t2"], settings=settings)
    assert sorted(path.name for path in out.iterdir()) == ["phantom.json", "sub-000", "sub-001"]
    assert (out / "sub-000/sub-000_t1.nii.gz").stat().st_mtime_ns == kept
    with pytest.raises(BadInput, match="another seed"):
        write_subjects(maps, out, count=2, seed=1, contrasts=["t1", "t2"], settings=settings)
    with pytest.raises(BadInput, match="another sequences, settings"):
        write_subjects(maps, out, count=2, contrasts=["t1"], settings=COARSE)
    (out / "phantom.json").write_text("[]")
    with pytest.raises(BadInput, match="not the recipe"):
        write_subjects(maps, out, count=2, contrasts=["t1", "t2"], settings=settings)


def test_missing_maps_say_where_they_come_from(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["phantom", "-o", str(tmp_path / "set"), "--maps", str(tmp_path)])
    assert done.exit_code == 2
    assert "python tools/fetch_data.py phantom" in done.output and FILES["head"] in done.output
    assert not (tmp_path / "set").exists()


def test_maps_on_other_grids_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in FILES.values():
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / FILES["wm"]).unlink()
    image = nib.load(folder / FILES["wm"])
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[1:], AFFINE), tmp_path / FILES["wm"])
    with pytest.raises(BadInput, match=FILES["wm"]):
        read_maps(tmp_path)


def test_bad_requests(maps: Maps, tmp_path: Path) -> None:
    with pytest.raises(ScoreFusionError, match="did you mean 'flair'"):
        make_subject(maps, 0, ["flare"], COARSE)
    with pytest.raises(ScoreFusionError, match="once"):
        make_subject(maps, 0, ["t1", "t1"], COARSE)
    with pytest.raises(ScoreFusionError, match="spacing"):
        make_subject(maps, 0, ["t1"], Settings(spacing=0.01))
    with pytest.raises(ScoreFusionError, match="negative"):
        Settings(snr=-1.0)
    with pytest.raises(ScoreFusionError, match="count >= 1"):
        write_subjects(maps, tmp_path, count=0)
    assert not list(tmp_path.iterdir())
