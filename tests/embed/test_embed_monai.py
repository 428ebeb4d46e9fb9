"""MONAI: the transform in Compose and DataLoader, and an exported bundle run by MONAI itself."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.pipeline import Pipeline
from tests.support.tiny import AFFINE, same_grid_config, tiny_image, tiny_model, write_tiny

pytest.importorskip("monai")
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, LoadImaged

from scorefusion.embed.monai import FusionInferer, ScoreFusiond, datalist

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec", "ignore:.*fork.*:DeprecationWarning")
ROOT = Path(__file__).parents[2]
OPTIONS: Any = {"device": "cpu", "dtype": "float32", "seed": 4, "steps": 2}


def transform(model: Path) -> Compose:
    return Compose(
        [LoadImaged("t1", image_only=True, ensure_channel_first=True), ScoreFusiond("t1", model, **OPTIONS)]
    )


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path, Any]:
    model, file = write_tiny(tmp_path)
    return model, file, Pipeline(model, device="cpu", dtype="float32")(file, seed=4, steps=2)


def test_in_a_compose_and_pickled(tiny: tuple[Path, Path, Any]) -> None:
    model, file, expected = tiny
    chain = transform(model)
    for own in (chain, pickle.loads(pickle.dumps(chain)), copy.deepcopy(chain)):
        item = own({"t1": str(file), "name": "a"})
        assert (
            isinstance(item["pred"], MetaTensor)
            and item["name"] == "a"
            and tuple(item["t1"].shape) == (1, 7, 6, 5)
        )
        np.testing.assert_array_equal(item["pred"][0], expected.volume)
        np.testing.assert_allclose(item["pred"].affine, expected.affine)
    assert len(pickle.dumps(chain)) < 20_000  # names, no weights


def test_warnings_of_a_translation_are_issued(tiny: tuple[Path, Path, Any]) -> None:
    model, _, _ = tiny
    values = np.random.default_rng(0).random((1, 7, 6, 5), np.float32)
    values[0, 0, 0, 0] = -1000  # a spike, which does not count
    with pytest.warns(UserWarning, match="has 1 voxel far below the rest"):
        ScoreFusiond("t1", model, **OPTIONS)({"t1": MetaTensor(values)})


def test_keys_that_are_missing(tiny: tuple[Path, Path, Any]) -> None:
    with pytest.raises(KeyError, match="t2"):
        ScoreFusiond(["t1", "t2"], tiny[0])({"t1": 1})
    assert ScoreFusiond("t2", tiny[0], allow_missing_keys=True)({"t1": 1}) == {"t1": 1}


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_a_data_loader_with_workers(tiny: tuple[Path, Path, Any], start: str) -> None:
    model, file, expected = tiny
    if start == "fork" and not hasattr(os, "fork"):
        pytest.skip("needs fork")
    workers = {"fork": 2, "spawn": 1}[start]
    data = Dataset([{"t1": str(file)}] * 3, transform(model))
    loader = DataLoader(data, batch_size=1, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    assert len(batches) == 3
    for batch in batches:
        np.testing.assert_array_equal(batch["pred"][0, 0], expected.volume)


def test_a_bundle_has_monais_layout(tiny: tuple[Path, Path, Any], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export-bundle", str(tiny[0]), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    found = {str(path.relative_to(tmp_path / "bundle")) for path in (tmp_path / "bundle").rglob("*.*")}
    models = {f"models/tiny/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    assert found == {"configs/metadata.json", "configs/inference.json", "docs/README.md", *models}
    meta = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    required = (
        "version changelog monai_version pytorch_version numpy_version required_packages_version task "
        "description authorship copyright network_data_format schema"
    )
    assert set(required.split()) <= set(meta) and all(meta[name] for name in required.split())
    for part in (
        meta["network_data_format"]["inputs"]["image"],
        meta["network_data_format"]["outputs"]["pred"],
    ):
        fields = "type format num_channels spatial_shape dtype value_range is_patch_data channel_def"
        assert set(fields.split()) <= set(part) and len(part["channel_def"]) == part["num_channels"]
    again = CliRunner().invoke(app, ["export-bundle", str(tiny[0]), "-o", str(tmp_path / "bundle")])
    assert again.exit_code == 2 and "is there already" in again.output


def export(model: Path, folder: Path) -> Path:
    from scorefusion.embed.bundle import export_bundle

    return export_bundle(model, folder)


def workflow(bundle: Path, **changes: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        str(bundle / "configs/inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        device="cpu",
        dtype="float32",
        seed=4,
        steps=2,
        **changes,
    )


def test_a_bundle_gives_the_pipelines_bits(tiny: tuple[Path, Path, Any], tmp_path: Path) -> None:
    model, file, expected = tiny
    bundle = export(model, tmp_path / "bundle")
    (tmp_path / "scans").mkdir()
    file.rename(tmp_path / "scans" / "a.nii.gz")
    flow = workflow(bundle, dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"))
    flow.initialize()
    assert flow.check_properties() == []
    assert flow.run() == [1]
    written = nib.load(tmp_path / "out" / "a_tiny.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), expected.volume)
    np.testing.assert_allclose(written.affine, expected.affine, atol=1e-5)


def test_a_bundle_of_several_conditions(tmp_path: Path) -> None:
    tiny_model(same_grid_config()).save_pretrained(tmp_path / "two", card="# two")
    first, second = tiny_image(), nib.Nifti1Image(np.asarray(tiny_image().dataobj)[::-1].copy(), AFFINE)
    for name, image in (("t1", first), ("t2", second)):
        (tmp_path / "scans" / name).mkdir(parents=True)
        nib.save(image, tmp_path / "scans" / name / "a.nii.gz")
    bundle = export(tmp_path / "two", tmp_path / "bundle")
    flow = workflow(bundle, dataset_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "out"))
    flow.initialize()
    flow.run()
    expected = Pipeline(tmp_path / "two", device="cpu", dtype="float32")([first, second], seed=4, steps=2)
    written = nib.load(next((tmp_path / "out").glob("a_*.nii.gz")))
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), expected.volume)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "a' + str(open('X', 'w')) + '"),
        ("name", "../outside"),
        ("name", "$open('X', 'w')"),
        ("target", "@device"),
        ("target", "%configs/inference.json"),
        ("target", "two words"),
        ("conditions", ["$open('X', 'w')"]),
    ],
)
def test_names_that_a_bundle_would_run_as_code(
    tiny: tuple[Path, Path, Any], tmp_path: Path, key: str, value: Any
) -> None:
    """MONAI evaluates text that begins with `$`, and a model folder may come from anywhere."""
    model = tmp_path / "model"
    shutil.copytree(tiny[0], model)
    config = json.loads((model / "config.json").read_text())
    if key == "conditions":
        text = json.dumps({**config, "target": "z"}).replace(json.dumps(config[key][0]), json.dumps(value[0]))
        config = json.loads(text)
    (model / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(BadInput, match="a name that a bundle cannot hold as plain text"):
        export(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "outside").exists()


def test_a_bundle_runs_from_its_own_folder(tiny: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """As docs/README.md of the bundle says, by MONAI's command line."""
    model, file, expected = tiny
    bundle = export(model, tmp_path / "bundle")
    (bundle / "data").mkdir()
    file.rename(bundle / "data" / "a.nii.gz")
    command = "-m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json"
    options = ["--dtype", "float32", "--seed", "4", "--steps", "2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, *command.split(), *options],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    written = nib.load(bundle / "eval" / "a_tiny.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_allclose(written, expected.volume, atol=1e-4 * np.ptp(expected.volume))


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "t1").mkdir()
    (tmp_path / "t2").mkdir()
    with pytest.raises(BadInput, match="holds no NIfTI files"):
        datalist(tmp_path / "t1", ["t1"])
    (tmp_path / "t1" / "a.nii").touch()
    assert datalist(tmp_path / "t1", ["t1"]) == [{"t1": str(tmp_path / "t1" / "a.nii")}]
    with pytest.raises(BadInput, match=r"does not have the same names.*a\.nii"):
        datalist(tmp_path, ["t1", "t2"])
    with pytest.raises(ScoreFusionError, match="ScoreFusion network, got a function"):
        FusionInferer()(1, export)
