"""What a model was made for: warnings for other scans, none for ordinary ones, refusals when strict."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scorefusion.batch.items import Item
from scorefusion.batch.worker import Work, Worker
from scorefusion.cli import main
from scorefusion.data import check_domain, contrast_in, warnings_of
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.nifti import read_scan
from scorefusion.models.config import DomainConfig, ModelConfig, parse
from scorefusion.models.domain import canonical, made_for
from scorefusion.models.folder import load_config
from scorefusion.pipeline import Pipeline
from tests.support.tiny import tiny_config, tiny_model

T1_SR4 = load_config("t1-sr4")


def head(shape: tuple[int, int, int] = (40, 48, 44), seed: int = 0) -> np.ndarray:
    """A textured T1-like head: skin, a dark gap, a brain brighter within; 0 outside."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes)) / 0.9
    tissue = np.select([radius < 0.45, radius < 0.75, radius < 0.85, radius < 1], [800, 600, 90, 500], 0)
    noise = np.random.default_rng(seed).normal(0, 40, shape)
    return np.where(tissue > 0, np.abs(tissue + noise), 0).astype(np.float32)


def image(values: np.ndarray, spacing: tuple[float, float, float] = (4, 4, 4), **header: Any) -> Any:
    made = nib.Nifti1Image(values.astype(np.float32), np.diag([*spacing, 1.0]))
    for field, value in header.items():
        made.header[field] = value
    return made


def found(source: Any, config: ModelConfig = T1_SR4) -> tuple[str, ...]:
    return warnings_of(check_domain([read_scan(source)], config), strict=False)


def saved(folder: Path, name: str, values: np.ndarray | None = None, **header: Any) -> Path:
    nib.save(image(head() if values is None else values, **header), folder / name)
    return folder / name


def z_scored(values: np.ndarray) -> np.ndarray:
    inside = values > 0
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)


def ct(values: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 15, values.shape)
    return np.select([values > 700, values > 400, values > 0], [1100, 40, -90], -1000) + noise


ORDINARY = {
    "a head of 4 mm": lambda v: image(v),
    "of 8 mm": lambda v: image(v, (8, 8, 8)),
    "slices a little thicker": lambda v: image(v, (4, 4, 4.8)),
    "integers": lambda v: image(np.rint(v)),
    "8 bits": lambda v: image(np.rint(v / v.max() * 255)),
    "scaled to 0 and 1": lambda v: image(v / v.max()),
    "a noisy background": lambda v: image(np.abs(v + np.random.default_rng(2).normal(0, 12, v.shape))),
    "a little below zero": lambda v: image(v + np.random.default_rng(3).normal(0, 2, v.shape)),
    "without its skull": lambda v: image(np.where(v > 550, v, 0)),
    "half a head": lambda v: image(v[:20]),
    "turned": lambda v: nib.Nifti1Image(v, np.diag([-4.0, 4, 4, 1])[[1, 0, 2, 3]]),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_scans_pass_without_a_word(name: str) -> None:
    assert found(ORDINARY[name](head())) == ()


def test_an_mri_padded_with_minus_1000_is_no_ct() -> None:
    values = head()
    values[:6] = -1000
    assert found(image(values)) == ()


OTHERS = {
    "1 × 1 × 5 mm": (lambda v: image(v, (1, 1, 5)), "1 × 1 × 5 mm, which would become 0.25 × 0.25 × 1.25 mm"),
    "1 mm": (lambda v: image(v, (1, 1, 1)), "It is finer than the training data"),
    "0.05 mm": (lambda v: image(v, (0.05, 0.05, 0.05)), "0.05 × 0.05 × 0.05 mm"),
    "12 mm": (lambda v: image(v, (12, 12, 12)), "It is coarser than the training data"),
    "4 µm, by its unit": (lambda v: image(v, xyzt_units=3), "0.004 × 0.004 × 0.004 mm (its header's unit"),
    "4 m, by its unit": (lambda v: image(v, xyzt_units=1), "unit is metres"),
    "thick along x": (lambda v: image(v, (8, 4, 4)), "8 × 4 × 4 mm"),
    "a z-scored brain": (lambda v: image(z_scored(np.where(v > 550, v, 0))), "z-scored (the non-zero voxels"),
    "all z-scored": (lambda v: image((v - v.mean()) / v.std()), "z-scored (all voxels"),
    "a CT": (lambda v: image(ct(v)), "looks like a CT in Hounsfield units"),
    "-1 to 1": (lambda v: image(v / v.max() * 2 - 1), "has negative intensities"),
    "phase": (lambda v: image(np.random.default_rng(4).uniform(-4096, 4096, v.shape)), "negative intens"),
    "a z-score of mean 50": (lambda v: image(z_scored(v) * 15 + 50), "Set it to 0, below all tissue"),
    "inverted": (lambda v: image(v.max() - v), "has a bright background"),
    "with an offset": (lambda v: image(v + 400), "has no intensities near 0"),
    "labels": (lambda v: image(np.digitize(v, [50, 300, 700])), "looks like a label map or mask"),
    "many labels": (lambda v: image(np.kron(np.arange(64).reshape(4, 4, 4), np.ones((9, 9, 9)))), "label"),
    "a mask": (lambda v: image(v > 300), "looks like a label map or mask: 2 different values"),
    "a t map": (lambda v: image(v, intent_code=3), "holds a statistic by its header's intent code"),
    "labels by intent": (lambda v: image(v, intent_code=1002), "holds labels"),
    "an echo time": (lambda v: image(v, descrip=b"TE=98;Time=101010"), "has an echo time of 98 ms"),
    "a description": (lambda v: image(v, descrip=b"ax T2 TSE 4mm"), "is T2 by its SeriesDescription"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_t1_sr4_was_not_made_for(name: str) -> None:
    make, text = OTHERS[name]
    (warning,) = found(make(head()))
    assert text in warning and "'t1-sr4' was made for" in warning and warning.endswith(".")


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("sub-01_T2w.nii.gz", "T2"), ("sub-01_ses-2_acq-T1w_FLAIR.nii", "FLAIR"),
        ("sub-1_bold.nii.gz", "BOLD"),
        ("sub-01_ce-gd_T1w.nii.gz", "T1 with contrast agent"), ("head_ct.nii", "CT"), ("T2.nii.gz", "T2"),
        ("t2_flair.nii.gz", "FLAIR"), ("sub-3_dir-AP_dwi.nii.gz", "diffusion"), ("case-t2w.nii", "T2"),
        ("t1-post.nii.gz", "T1 with contrast agent"), ("sub-01_T1map.nii.gz", "a quantitative map"),
    ],
)  # fmt: skip
def test_contrasts_by_name(tmp_path: Path, name: str, contrast: str) -> None:
    (warning,) = found(saved(tmp_path, name))
    assert warning.startswith(f"{name} is {contrast} by its name") and "was made for T1" in warning


@pytest.mark.parametrize(
    "name",
    ["sub-01_T1w.nii.gz", "sub-01_space-T2w_T1w.nii", "mprage.nii.gz", "t1_to_t2.nii", "7.nii.gz"],
)
def test_names_of_t1_and_of_nothing(tmp_path: Path, name: str) -> None:
    assert found(saved(tmp_path, name)) == ()


def test_the_file_beside_a_scan_tells_its_contrast(tmp_path: Path) -> None:
    scan, beside = saved(tmp_path, "7.nii.gz"), tmp_path / "7.json"
    for values, text in (
        ({"SeriesDescription": "t2_spc_sag"}, "is T2 by its SeriesDescription, 't2_spc_sag'"),
        ({"Modality": "PT"}, "is PET by its Modality, PT"),
        ({"Modality": "MR", "EchoTime": 0.101}, "has an echo time of 101 ms"),
    ):
        beside.write_text(json.dumps(values))
        (warning,) = found(scan)
        assert text in warning
    ordinary = ('{"Modality": "MR", "EchoTime": 0.003}', '{"EchoTime": NaN}')
    for text in (*ordinary, "[]", "not JSON", '{"Modality": 3}', "[" * 100_000):
        beside.write_text(text)
        assert found(scan) == ()


def test_words_of_a_description() -> None:
    texts = {
        "MPRAGE sag": "t1", "AX T2* GRE": "t2star", "3D FLAIR T2": "flair", "T1 T2 fused": "", "": "",
        "sub-01_task-rest_bold": "bold", "localizer": "", "T1 +C GD": "t1c", "Ax T1 pre contrast": "t1",
        "T1 w/o contrast": "t1", "t1 non-contrast": "t1", "AX T1 POST": "t1c", "sag t2weighted": "t2",
    }  # fmt: skip
    assert {text: contrast_in(text) for text in texts} == texts


def test_a_dicom_series_tells_its_contrast(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from scorefusion.io.dicom.read import read_dicom_series
    from tests.support.dicom_series import write_series

    def as_ct(header: Any, number: int) -> None:
        header.Modality, header.SeriesDescription, header.ProtocolName = "CT", "", ""
        header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"

    write_series(tmp_path / "ct", change=as_ct)
    config = tiny_config(domain={"t1": DomainConfig(contrasts=("T1w",))})
    scan = read_dicom_series(tmp_path / "ct")
    assert scan.acquisition["Modality"] == "CT"
    (error,) = check_domain([scan], config)
    assert "is CT by" in error.problem


def test_models_of_other_intensities() -> None:
    def config(**domain: Any) -> ModelConfig:
        return tiny_config(domain={"t1": DomainConfig(**domain)})

    plain, hounsfield = config(), config(intensity="hounsfield")
    assert found(image(z_scored(head()), (1, 1, 9)), plain) == ()
    assert found(image(ct(head())), hounsfield) == ()
    assert "not Hounsfield" not in str(found(image(head()), hounsfield)) and found(image(head()), hounsfield)
    assert found(image(head() / 4), config(intensity="8-bit")) == ()
    for values in (head() * 4, head() / 900, z_scored(head())):
        (warning,) = found(image(values), config(intensity="8-bit"))
        assert "intensities from 0 to 255" in warning


def test_strict_refuses(tmp_path: Path) -> None:
    config = tiny_config(domain={"t1": DomainConfig(contrasts=("t1",), spacing=((4, 5),) * 3)})
    pipeline = Pipeline(tiny_model(config), device="cpu", dtype="float32")
    small = head((12, 10, 8))
    scan = saved(tmp_path, "T2.nii", small, spacing=(1, 1, 1))
    result = pipeline(scan)
    assert (
        len(result.warnings) == 2 and "is T2" in result.warnings[0] and "1 × 1 × 1 mm" in result.warnings[1]
    )
    with pytest.raises(BadInput, match=r"T2\.nii: is T2 by .*; has voxels of .* Without --strict"):
        pipeline(scan, strict=True)
    right = image(small, (4, 5, 4.5))
    np.testing.assert_array_equal(pipeline(right, strict=True).volume, pipeline(right).volume)
    assert pipeline(right).warnings == ()


def test_the_command_line_and_a_batch(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(domain={"t1": DomainConfig(contrasts=("t1",))})
    tiny_model(config).save_pretrained(tmp_path / "model", card="# tiny")
    scan = saved(tmp_path, "T2.nii", head((12, 10, 8)))

    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(
            sys,
            "argv",
            ["scorefusion", "translate", "--model", str(tmp_path / "model"), *map(str, arguments)],
        )
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    out = tmp_path / "out.nii.gz"
    status, text = run(scan, "-o", out)
    assert status == 0 and "warning: T2.nii is T2 by its name, T2, and 'tiny' was made for T1." in text
    status, text = run(scan, "-o", tmp_path / "quiet.nii.gz", "--quiet")
    assert (status, text) == (0, "")
    status, text = run(scan, "-o", tmp_path / "none.nii.gz", "--strict")
    assert status == 2 and text.count("\n") == 1 and not (tmp_path / "none.nii.gz").exists()

    item = Item("one", (scan,), tmp_path / "one.nii.gz")
    outcome = Worker(Work(str(tmp_path / "model"), {}, "cpu", "float32")).translate(item)
    assert outcome.error is None and "is T2 by its name" in outcome.warnings[0]
    refused = Worker(Work(str(tmp_path / "model"), {"strict": True}, "cpu", "float32")).translate(item)
    assert "is T2 by its name" in str(refused.error) and "--strict" in str(refused.fix)


def test_a_config_says_its_domain() -> None:
    values = tiny_config().model_dump(mode="json")
    assert tiny_config().domain == {} and "unknown" in made_for(tiny_config())
    del values["domain"]
    assert parse(ModelConfig, values, "config.json") == tiny_config()
    domain = {"t1": {"contrasts": ["T1w"], "spacing": [[3, 6], [1, 1], [1, 1]], "intensity": "8-bit"}}
    text = made_for(parse(ModelConfig, {**values, "domain": domain}, "config.json"))
    assert "T1, voxels of 3 to 6 × 1 × 1 mm (z, y, x), intensities from 0 to 255" in text
    for wrong, message in (
        ({"t2": {}}, "not conditions"),
        ({"t1": {"contrast": ["t1"]}}, "did you mean 'contrasts'"),
        ({"t1": {"spacing": [[2, 1]] * 3}}, "least and greatest"),
        ({"t1": {"anisotropy": 0.5}}, "at least 1"),
    ):
        with pytest.raises(ScoreFusionError, match=message):
            parse(ModelConfig, {**values, "domain": wrong}, "config.json")
    assert canonical(T1_SR4.domain["t1"].contrasts[0]) == "t1"
