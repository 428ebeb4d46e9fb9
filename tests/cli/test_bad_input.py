"""Every bad input, through the command line: status 2, one line with file and fix, nothing written."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from tests.support.bad_scans import Write
from tests.support.bad_scans import saved as save
from tests.support.tiny import AFFINE, same_grid_config, tiny_image, tiny_model, write_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, ``tiny``, and a good image, ``in.nii.gz``."""
    path = tmp_path_factory.mktemp("bad")
    write_tiny(path)
    tiny_model(same_grid_config()).save_pretrained(path / "two", card="# two")
    return path


def refused(folder: Path, *arguments: str | Path) -> str:
    """Run ``translate`` in this process; check status, silence and that no file appears; return the line."""
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, ["translate", *map(str, arguments), "--device", "cpu"])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("scorefusion: "), result.stderr
    assert sorted(folder.rglob("*")) == before
    return lines[0]


def refused_image(folder: Path, name: str, write: Write, *options: str) -> str:
    """As :func:`refused`, for a bad file; the line must name it."""
    write(folder / name)
    output, model = str(folder / "out.nii.gz"), str(folder / "tiny")
    line = refused(folder, folder / name, "-o", output, "--model", model, *options)
    assert str(folder / name) in line and line.endswith(".")
    return line


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def header_only(shape: tuple[int, ...], extra: int = 100, compress: bool = False) -> Write:
    """A header that promises ``shape``, and a few bytes."""

    def write(path: Path) -> None:
        header = nib.Nifti1Header()
        header.set_data_dtype(np.float32)
        header.set_data_shape(shape)
        header.set_sform(AFFINE, 1)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        data = header.binaryblock + bytes(4 + extra)
        path.write_bytes(gzip.compress(data) if compress else data)

    return write


def spoiled(**voxels: float) -> np.ndarray:
    data = np.asarray(tiny_image().dataobj, np.float32)
    for index, value in enumerate(voxels.values()):
        data[index, 0, 0] = value
    return data


def test_the_good_input_is_accepted(folder: Path, tmp_path: Path) -> None:
    arguments = ["translate", folder / "in.nii.gz", "-o", tmp_path / "o.nii", "--model", folder / "tiny"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert nib.load(tmp_path / "o.nii").shape == (14, 12, 10)


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("missing.nii", lambda path: None, "does not exist"),
        ("folder.nii", lambda path: path.mkdir(exist_ok=True), "is not a file"),
        ("empty.nii.gz", lambda path: path.write_bytes(b""), "is empty"),
        ("text.nii", lambda path: path.write_text("not a volume " * 99), "is not a NIfTI file"),
        ("short.nii", lambda path: path.write_bytes(b"\x5c\x01\0\0"), "is not a NIfTI file"),
        ("zipped.nii.gz", lambda path: path.write_bytes(gzip.compress(b"text" * 999)), "is not a NIfTI file"),
        ("flat.nii", save(noise(8, 9)), "is not three-dimensional (8 × 9)"),
        ("slice.nii", save(noise(8, 9, 1)), "is not three-dimensional (8 × 9 × 1)"),
        ("film.nii", save(noise(4, 5, 6, 3)), "holds several frames (4 × 5 × 6 × 3)"),
        ("constant.nii.gz", save(np.full((4, 5, 6), 7.0)), "is constant: every voxel is 7"),
        ("nan.nii", save(spoiled(a=np.nan, b=np.inf, c=-np.inf)), "holds 3 voxels that are NaN or infinite"),
        ("complex.nii", save(np.ones((4, 5, 6), np.complex64)), "not real numbers"),
        ("nowhere.nii", save(spoiled(), None), "has no affine (its qform and sform codes are 0)"),
        ("singular.nii", save(spoiled(), np.diag([1.0, 1.0, 0.0, 1.0])), "has a singular affine"),
        ("plane.nii", save(spoiled(), AFFINE[:, [0, 1, 1, 3]]), "has a singular affine"),
        ("infinite.nii", save(spoiled(), np.diag([1.0, 1.0, np.inf, 1.0])), "has a singular affine"),
        ("huge.nii", header_only((32767, 32767, 32767)), "promises 32767 × 32767 × 32767 voxels, more than"),
        ("huge.nii.gz", header_only((32767, 32767, 32767), compress=True), "more than 1,073,741,824"),
        ("liar.nii", header_only((900, 900, 900)), "promises 2,916,000,352 bytes, the file has 452"),
        ("liar.nii.gz", header_only((900, 900, 900), compress=True), "holds at most"),
        ("cut.nii", header_only((4, 5, 6)), "is truncated"),
        ("cut.nii.gz", header_only((4, 5, 6), compress=True), "is truncated"),
        ("negative.nii", header_only((4, 5, 6)), ""),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and " " not in value else "",
)  # fmt: skip
def test_bad_images(folder: Path, name: str, write: Write, problem: str) -> None:
    if name == "negative.nii":
        good = write

        def write(path: Path) -> None:
            good(path)
            data = bytearray(path.read_bytes())
            data[42:44] = np.int16(-4).tobytes()
            path.write_bytes(data)

        problem = "impossible dimensions, -4 × 5 × 6"
    assert problem in refused_image(folder, name, write)


@pytest.mark.parametrize("keep", [3, 12, 100, 0.5, 0.9, -4], ids=str)
def test_truncated_gzip(folder: Path, keep: float) -> None:
    whole = gzip.compress((folder / "whole.nii").read_bytes()) if (folder / "whole.nii").exists() else None
    if whole is None:
        nib.save(tiny_image((24, 24, 24)), folder / "whole.nii")
        whole = gzip.compress((folder / "whole.nii").read_bytes())
    count = int(keep * len(whole)) if isinstance(keep, float) else keep
    line = refused_image(folder, f"truncated{keep}.nii.gz", lambda path: path.write_bytes(whole[:count]))
    assert "is a truncated or damaged gzip file" in line and "download it again" in line


def test_fixes_are_named_and_work(folder: Path, tmp_path: Path) -> None:
    common = ["-o", str(tmp_path / "out.nii"), "--model", str(folder / "tiny"), "--device", "cpu", "-q"]
    for name, write, fix in (
        ("nan.nii", save(spoiled(a=np.nan)), ["--nan", "zero"]),
        ("nowhere.nii", save(spoiled(), None), ["--assume-affine"]),
        ("singular.nii", save(spoiled(), np.diag([1.0, 1.0, 0.0, 1.0])), ["--assume-affine"]),
    ):
        assert " ".join(fix) in refused_image(folder, name, write)
        result = CliRunner().invoke(app, ["translate", str(folder / name), *common, *fix])
        assert result.exit_code == 0 and result.output == "", result.output


def test_an_assumed_affine_needs_a_voxel_size(folder: Path) -> None:
    def write(path: Path) -> None:
        image = nib.Nifti1Image(spoiled(), None)
        image.header["pixdim"][3] = np.nan
        nib.save(image, path)

    assert "has no usable voxel size" in refused_image(folder, "pixdim.nii", write, "--assume-affine")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--strategy", "fused"], "unknown strategy 'fused'; did you mean 'fuse'?"),
        (["--solver", "ddmi"], "unknown solver 'ddmi'; did you mean 'ddim'?"),
        (["--solver", "heum"], "unknown solver 'heum'; did you mean 'heun'?"),
        (["--plane", "axail", "--strategy", "single"], "unknown plane 'axail'; did you mean 'axial'?"),
        (["--dtype", "bfloat"], "unknown dtype 'bfloat'; did you mean 'bfloat16'?"),
        (["--nan", "zeros"], "unknown treatment of NaN 'zeros'; did you mean 'zero'?"),
        (["--output-dtype", "inputs"], "unknown output dtype 'inputs'; did you mean 'input'?"),
        (["--steps", "0"], "at least 1 step, got 0"),
        (["--samples", "0"], "samples and batch must be at least 1"),
        (["--seed", str(2**64)], "a seed must be within"),
        (["--spread", "sd.nii"], "--spread needs --samples 2 or more"),
        (["--max-voxels", "400"], "would become 1,680 voxels, 2× finer; the limit is 400"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_options(folder: Path, options: list[str], problem: str) -> None:
    image, output, model = folder / "in.nii.gz", folder / "out.nii.gz", folder / "tiny"
    assert problem in refused(folder, image, "-o", output, "--model", model, *options)


def test_wrong_number_of_conditions(folder: Path) -> None:
    image, out = folder / "in.nii.gz", folder / "out.nii"
    line = refused(folder, image, image, "-o", out, "--model", folder / "tiny")
    assert "model 'tiny' takes 1 image (t1), got 2: " in line and str(image) in line
    line = refused(folder, image, "-o", out, "--model", folder / "two")
    assert "takes 2 images (t1, t2), got 1" in line


def test_conditions_on_different_grids(folder: Path) -> None:
    nib.save(tiny_image((6, 6, 5)), folder / "other.nii")
    moved = AFFINE.copy()
    moved[:3, 3] += 1
    nib.save(tiny_image(affine=moved), folder / "moved.nii")
    for name, problem in (("other.nii", "has 6 × 6 × 5 voxels"), ("moved.nii", "lies elsewhere")):
        image, model = folder / "in.nii.gz", folder / "two"
        line = refused(folder, image, folder / name, "-o", folder / "out.nii", "--model", model)
        assert problem in line and str(image) in line and str(folder / name) in line


def test_bad_outputs_are_found_before_computing(folder: Path) -> None:
    (folder / "file").write_text("")
    (folder / "taken.nii").mkdir()
    (folder / "link.nii.gz").symlink_to(folder / "in.nii.gz")
    for output, problem in (
        ("out.mif", "has the wrong ending"),
        ("out.mhd", "End its name in .mha"),
        ("out.img", "End its name in .nii.gz"),
        (".nii", "has the wrong ending"),
        ("none/out.nii", "none does not exist"),
        ("file/out.nii", "file is not a folder"),
        ("taken.nii", "is a folder"),
        ("in.nii.gz", "is an input as well as the output"),
        ("link.nii.gz", "is an input as well as the output"),
        ("../bad0/in.nii.gz" if folder.name == "bad0" else "./in.nii.gz", "is an input as well"),
    ):
        # The model does not exist: the output must be looked at first.
        line = refused(folder, folder / "in.nii.gz", "-o", folder / output, "--model", "no/such/model")
        assert problem in line and Path(output).name in line
    good = ["-o", str(folder / "out.nii"), "--model", "no/such/model"]
    line = refused(folder, folder / "in.nii.gz", *good, "--figure", folder / "none" / "out.png")
    assert "out.png: cannot be written" in line
    line = refused(folder, folder / "in.nii.gz", *good, "--figure", folder / "out.gif")
    assert "has the wrong ending" in line and ".png" in line


def test_bad_models(folder: Path) -> None:
    image, output = folder / "in.nii.gz", folder / "out.nii"

    def line(model: str | Path) -> str:
        return refused(folder, image, "-o", output, "--model", model)

    assert "unknown model 't1_sr4'" in line("t1_sr4")
    assert "no/such/model: does not exist" in line("no/such/model")

    pickled = folder / "model.pt"
    torch.save(tiny_model().state_dict(), pickled)
    assert f"{pickled}: is a pickled checkpoint" in line(pickled) and "import-official" in line(pickled)

    bare = folder / "bare"
    bare.mkdir()
    assert "bare: holds no config.json" in line(bare)
    config = json.loads((folder / "tiny" / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config))
    assert "model.safetensors: does not exist" in line(bare)
    (bare / "model.pt").write_bytes(pickle.dumps({}))
    assert "model.pt: is a pickled checkpoint where model.safetensors is expected" in line(bare)
    (bare / "model.safetensors").write_bytes(pickled.read_bytes())
    assert "model.safetensors: is a pickled checkpoint where safetensors is expected" in line(bare)
    (bare / "model.safetensors").write_bytes((folder / "tiny" / "model.safetensors").read_bytes()[:-50])
    assert "model.safetensors: is damaged" in line(bare)

    (bare / "config.json").write_text(json.dumps({**config, "contxt": 3}))
    assert "unknown key 'contxt'; did you mean 'context'?" in line(bare)
    config["slice_networks"]["slice"]["width"] = [8]
    (bare / "config.json").write_text(json.dumps(config))
    assert "config.json: unknown key 'width'; did you mean 'widths'?" in line(bare)
    (bare / "config.json").write_text("{")
    assert "config.json: is not valid" in line(bare)


def test_refused_before_allocating(folder: Path) -> None:
    """In 3 GiB of address space, a header that promises 3 GB is refused by its words, not by the system."""
    header_only((900, 900, 900))(folder / "liar.nii")
    code = (
        "import resource, scorefusion.cli as cli, sys, torch, scorefusion.pipeline.pipeline\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))\n"
        "cli.main()\n"
    )
    arguments = ["translate", "liar.nii", "-o", "out.nii", "--model", "tiny", "--device", "cpu"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert run.returncode == 2 and "is truncated: its header promises" in run.stderr, run.stderr


def test_an_interrupt_while_computing_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scorefusion.pipeline.pipeline.draw_residuals", interrupted)
    before = sorted(folder.rglob("*"))
    arguments = ["translate", folder / "in.nii.gz", "-o", folder / "out.nii", "--model", folder / "tiny"]
    assert CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"]).exit_code != 0
    assert sorted(folder.rglob("*")) == before


def test_a_kill_while_saving_leaves_no_output(folder: Path) -> None:
    code = (
        "import os, signal, scorefusion.cli as cli\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.main()\n"
    )
    arguments = ["translate", "in.nii.gz", "-o", "killed.nii.gz", "--model", "tiny", "--device", "cpu"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, env=environment()
    )
    assert run.returncode == -signal.SIGKILL
    assert not (folder / "killed.nii.gz").exists()
    for left in folder.glob(".*killed.nii.gz"):
        left.unlink()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
