"""Hash what translations give, case by case, to see whether a change of the code changed a bit.

    python tools/hashes.py -o before.json                        in one checkout
    python tools/hashes.py -o after.json --compare before.json   in another, on the same machine
    python tools/hashes.py --only dicom commands                 some groups of cases

Prints `name sha256` lines. Volumes are small and made of formulas, and only public names and the command line
are used (docs/embed.md), so the same file runs on any version of the package: `PYTHONPATH=CHECKOUT python
.../tools/hashes.py`. Bits are compared on one machine only, with OMP_NUM_THREADS=1; on another processor, or
held to AVX2 (docs/kernels.md, with `--dtypes float32`), they differ. What `demo`, `evaluate`, `tune` and
`denoise-error` measure is kept as numbers, which may differ to rounding. Status 1: something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from scorefusion import (
    ModelConfig,
    Pipeline,
    ScoreFusion,
    make_table,
    read_dicom_series,
    sample,
    save_dicom_series,
)

Value = str | dict[str, float]
BUNDLED = {"t1-sr4": 1, "t1-t2": 1, "t1sr4-t2": 2, "video-sr": 1}
DTYPES = ("float32", "bfloat16")
SOLVERS = ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "euler", "heun", "official")
AFFINE = np.array([[1.5, 0.1, 0, -8], [-0.1, 1.5, 0.2, -9], [0, -0.2, 2.0, -7], [0, 0, 0, 1.0]])
CLOSE = 1e-3
"""By how much of itself a measured number may differ."""

NETWORK = {"widths": (8,), "blocks": 1, "norm": "channel", "time": {"channels": 8, "hidden": 8}}
PAPER = {
    "widths": (8, 16),
    "blocks": 1,
    "groups": 4,
    "attention": True,
    "head_channels": 8,
    "edges": "replicate",
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "conditions": ("t1",),
    "target": "t1",
    "context": 1,
    "branches": [{"plane": plane} for plane in ("axial", "coronal", "sagittal")],
    "slice_networks": {"slice": NETWORK},
    "fusion": NETWORK,
    "feature_scales": (1,),
    "residual": {"base": "trilinear+consistency", "scale": 0.1},
    "degradation": {"kind": "block-mean", "factor": 2},
    "sampling": {"steps": 2},
}
"""A 2x super-resolution model of one level and 8 channels; the cases below change some of its fields."""

PAIR = {
    "conditions": ("t1", "t2"),
    "target": "flair",
    "branches": [{"plane": plane, "conditions": (0, 1)} for plane in ("axial", "coronal", "sagittal")],
    "residual": {"base": "identity", "scale": 2.0},
    "degradation": {"kind": "none"},
}
DEGRADATIONS: dict[str, dict[str, Any]] = {
    "block-mean": {"kind": "block-mean", "edges": (1, 2, 2)},
    "thick-slices": {"kind": "thick-slices", "axis": "y", "thickness": 2, "gap": 1},
    "k-space": {"kind": "k-space", "fraction": (1.0, 0.6, 0.6)},
    "cs-mri": {"kind": "cs-mri", "axis": "z", "acceleration": 2, "centre": 0.2},
    "sparse-view": {"kind": "sparse-view", "views": 5},
    "inpaint": {"kind": "inpaint", "hole": 0.3, "holes": 2, "seed": 3},
}
COARSE = ("block-mean", "thick-slices")


def head(shape: tuple[int, int, int], turn: float = 0.0, margin: float = 0.15) -> np.ndarray:
    """A smooth ball with a pattern, 0 outside, float32 ``[i, j, k]``, up to about 900."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = i**2 + (j / 0.9) ** 2 + (k / 0.95) ** 2 < (1 - margin) ** 2
    pattern = 500 + 200 * np.sin(7 * i + turn) * np.cos(5 * j) + 150 * np.sin(6 * k + turn * j)
    return (inside * np.round(pattern)).astype(np.float32)


def image(shape: tuple[int, int, int], turn: float = 0.0, margin: float = 0.15) -> Any:
    """`head` as an oblique NIfTI image of int16."""
    return nib.Nifti1Image(head(shape, turn, margin).astype(np.int16), AFFINE)


def tiny(**changes: Any) -> ScoreFusion:
    """A tiny model whose weights are small numbers that depend on their own name alone."""
    model = ScoreFusion(ModelConfig.model_validate({**TINY, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            random = np.random.default_rng(zlib.crc32(name.encode()))
            weight.copy_(torch.from_numpy(random.standard_normal(tuple(weight.shape)) * 0.15))
    return model


def digest(*arrays: Any) -> str:
    """SHA-256 of arrays, their types and shapes."""
    total = hashlib.sha256()
    for array in map(np.asarray, arrays):
        total.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def hash_of(result: Any) -> str:
    """Of a translation: the volume, its affine, and what else it may hold."""
    also = [field for field in (result.spread, result.planes_apart) if field is not None]
    return digest(result.volume, result.affine, *also)


def bundled(_: Path, dtypes: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    """Every bundled model with each of its strategies; t1-sr4 with each option of a call."""
    for name, count in BUNDLED.items():
        same = name == "t1-t2"
        images = [image((24, 26, 22) if same else (8, 7, 6), turn) for turn in range(count)]
        for dtype in dtypes:
            pipeline = Pipeline(name, dtype=dtype)
            for strategy in pipeline.config.strategies:
                result = pipeline(images, steps=2, strategy=strategy, seed=3)
                yield f"{name} {dtype} {strategy}", hash_of(result)
    pipeline, small, wide = Pipeline("t1-sr4", dtype="float32"), image((7, 6, 5)), image((11, 12, 10), 1, 0.5)
    choices: dict[str, dict[str, Any]] = {
        "whole": {"crop": False},
        "batch of two": {"samples": 2, "batch": 2},
        "three samples": {"samples": 3, "batch": 2},
        "disagreement": {"disagreement": True},
        "coronal": {"strategy": "single", "planes": ("coronal",)},
        "two in turn": {"strategy": "alternate", "planes": ("sagittal", "axial")},
        "late start": {"start_abar": 0.05, "solver": "ddim"},
        "eta": {"solver": "ddim", "eta": 0.7},
        "clip": {"clip": "input", "output_dtype": "input"},
        **{f"solver {solver}": {"solver": solver, "steps": 3} for solver in SOLVERS},
    }
    yield "t1-sr4 crop", hash_of(pipeline(wide, steps=2))
    for name, options in choices.items():
        given = wide if name == "whole" else small
        yield f"t1-sr4 {name}", hash_of(pipeline(given, **{"steps": 2, "seed": 5, **options}))
    low = Pipeline("t1-sr4", dtype="float32", max_memory="550MB")
    yield "t1-sr4 little memory", hash_of(low(image((16, 16, 16), margin=0.02), steps=1))


def structures(*_: Any) -> Iterator[tuple[str, Value]]:
    """Tiny models of every degradation, kind of network, prediction and strategy."""
    for name, degradation in DEGRADATIONS.items():
        base = "trilinear+consistency" if name in COARSE or name == "k-space" else "identity"
        model = tiny(degradation=degradation, residual={"base": base, "scale": 0.1})
        result = Pipeline(model, dtype="float32")(image((9, 10, 8)), seed=1)
        yield f"tiny {name}", digest(result.volume, np.array(result.consistency_residual))
        if name == "inpaint":
            hole = np.zeros((9, 10, 8), np.uint8)
            hole[3:6, 4:7, 2:5] = 1
            mask = nib.Nifti1Image(hole, AFFINE)
            yield "tiny mask", hash_of(Pipeline(model, dtype="float32")(image((9, 10, 8)), mask=mask))
    strategies = ("single", "alternate", "average", "volume", "fuse", "fuse+features")
    pipeline = Pipeline(tiny(strategies=strategies, **PAIR), dtype="float32")
    for strategy in strategies:
        images = [image((9, 10, 8)), image((9, 10, 8), 2)]
        yield f"tiny pair {strategy}", hash_of(pipeline(images, strategy=strategy, steps=3))
    kinds: dict[str, dict[str, Any]] = {
        "paper": {
            "slice_networks": {"slice": PAPER},
            "fusion": PAPER,
            "feature_scales": (1, 2),
            "feature_kernel": 3,
            "prediction": "eps",
            "intensity": "robust",
        },
        "causal": {"fusion": {**NETWORK, "causal": True}, "feature_scales": ()},
        "strided": {"fusion": {**NETWORK, "widths": (8, 8), "resample": "conv", "patch": 1}},
        "sigma 0.5": {"sigma_data": 0.5, "base_weights": (0.5, 0.3, 0.2), "prediction": "v"},
        "x0, cosine": {
            "prediction": "x0",
            "sampling": {"steps": 3, "schedule": "cosine", "solver": "ddim", "clamp": 1.0},
        },
        "paper's schedule": {"sampling": {"steps": 3, "schedule": "paper", "solver": "official"}},
        "unprojected": {"sampling": {"steps": 2, "consistency": False}},
    }
    for name, changes in kinds.items():
        result = Pipeline(tiny(**changes), dtype="float32")(image((7, 6, 5)), seed=2, samples=2)
        yield f"tiny {name}", hash_of(result)
    table = make_table("ddim", 4, eta=0.5)
    drawn = sample(lambda x, level: 0.3 * x, torch.zeros(2, 1, 6, 5, 4), table, seeds=[7, 8])
    yield "sample", digest(drawn)


def dicom(folder: Path, *_: Any) -> Iterator[tuple[str, Value]]:
    """A series of MR slices, read, translated and written as a series: every byte of its files."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = head((6, 7, 6)).astype(np.uint16)
    (folder / "series").mkdir()
    for k, plane in enumerate(pixels):
        item, meta = Dataset(), FileMetaDataset()
        item.SOPClassUID, item.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"2.25.1{k:03d}"
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = "2.25.2", "2.25.3", "2.25.4"
        item.ImageType, item.Modality, item.PatientName, item.PatientID = (
            ["ORIGINAL", "PRIMARY"],
            "MR",
            "A^B",
            "P1",
        )
        item.StudyDate, item.StudyTime, item.SeriesNumber, item.InstanceNumber = (
            "20200304",
            "101112",
            3,
            k + 1,
        )
        item.ImageOrientationPatient, item.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-3, 4, 2.5 * k]
        item.PixelSpacing, item.SliceThickness, item.SeriesDescription = [1.5, 1.25], 2.5, "t1"
        item.Rows, item.Columns = plane.shape
        item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 0
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 12, 11
        item.PixelData = np.ascontiguousarray(plane).tobytes()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.file_meta = meta
        item.save_as(folder / "series" / f"{k}.dcm", enforce_file_format=True)
    scan = read_dicom_series(folder / "series")
    result = Pipeline(tiny(), dtype="float32")(scan)
    yield "dicom volume", hash_of(result)
    for hidden in (False, True):
        save_dicom_series(result, folder / f"out{hidden}", deidentify=hidden, secret="a")
        files = [file.read_bytes() for file in sorted((folder / f"out{hidden}").glob("*.dcm"))]
        name = "dicom series, no patient" if hidden else "dicom series"
        yield name, hashlib.sha256(b"".join(files)).hexdigest()


def numbers(value: Any, name: str = "") -> dict[str, float]:
    """Every number of a JSON document by its path; times, versions and hashes are left out."""
    if isinstance(value, dict):
        parts = [(f"{name}/{key}", item) for key, item in value.items()]
    elif isinstance(value, list):
        parts = [(f"{name}/{n}", item) for n, item in enumerate(value)]
    else:
        timed = any(word in name for word in ("second", "time", "peak"))
        return {name: value} if isinstance(value, int | float) and not timed else {}
    return {path: number for part, item in parts for path, number in numbers(item, part).items()}


def scorefusion(*arguments: object) -> str:
    """Run the command line; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "scorefusion", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    if done.returncode:
        raise SystemExit(f"scorefusion {' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
    return done.stdout


def commands(folder: Path, *_: Any) -> Iterator[tuple[str, Value]]:
    """The verbs: files hashed, and what is measured on known truth as numbers."""
    truth, coarse, out = folder / "truth.nii.gz", folder / "coarse.nii.gz", folder / "out"
    nib.save(image((34, 38, 36)), truth)
    nib.save(image((8, 7, 6)), coarse)
    tiny().save_pretrained(folder / "tiny", card="# tiny")
    tiny(**PAIR).save_pretrained(folder / "pair", card="# pair")
    quick = ("--dtype", "float32", "-q")
    scorefusion("translate", coarse, "-o", folder / "fine.nii.gz", "--steps", 2, *quick)
    yield "translate", digest(nib.load(folder / "fine.nii.gz").get_fdata())
    scorefusion("translate", coarse, coarse, "-o", folder / "pair.nii", "--model", folder / "pair", *quick)
    yield "translate two", digest(nib.load(folder / "pair.nii").get_fdata())
    scorefusion("demo", "--data", truth, "-o", out / "demo", "--box", "16,16,16", "--steps", 2, *quick)
    yield "demo", numbers(json.loads((out / "demo/table.json").read_text()))
    scorefusion(
        "demo", "--data", truth, "-o", out / "tiny", "--model", folder / "tiny", "--box", "12,12,12", *quick
    )
    yield "demo tiny", numbers(json.loads((out / "tiny/table.json").read_text()))
    given = ("--box", "12,12,12", "--solvers", "ddpm,ddim", "--evaluations", "2,3", "--reference", 6)
    scorefusion("tune", folder / "tiny", truth, "-o", out / "tune", *given, *quick)
    yield "tune", numbers(json.loads((out / "tune/tune.json").read_text()))
    given = ("--box", "16,16,16", "--samples", 2, "--without-consistency", "fuse")
    scorefusion("evaluate", folder / "tiny", truth, "-o", out / "evaluate", *given, *quick)
    yield "evaluate", numbers(json.loads((out / "evaluate/summary.json").read_text()))
    text = scorefusion("denoise-error", truth, "--model", folder / "tiny", "--box", "12,12,12", *quick)
    yield "denoise-error", numbers(json.loads(json.dumps([_number(word) for word in text.split()])))
    crop = {"crop": 16, "warmup": 1}
    stages = [
        {"kind": "slices", "steps": 3, **crop},
        {"kind": "patches", "steps": 2, "margin": 2, **crop},
        {"kind": "features", "steps": 2, "margin": 2, **crop},
    ]
    plan = {
        "model": tiny().config.model_dump(),
        "volumes": [{"file": str(truth), "variants": 1}],
        "stages": stages,
        "seed": 1,
        "precision": "float32",
        "look_every": 2,
    }
    (folder / "train.json").write_text(json.dumps(plan))
    scorefusion("train", folder / "train.json", "-o", out / "train", "--export", out / "model")
    weights = ScoreFusion.from_pretrained(out / "model").state_dict()
    yield "train", digest(*(weights[name] for name in sorted(weights)))


def _number(word: str) -> float | None:
    try:
        return float(word.strip("*|,"))
    except ValueError:
        return None


def difference(new: Value, old: Value) -> str:
    """``""`` for the same bits, else how they differ."""
    if new == old:
        return ""
    if isinstance(new, str) or isinstance(old, str):
        return "DIFFERS"
    lost = sorted(set(old) ^ set(new))
    apart = [
        f"{key}: {old[key]:.6g} -> {new[key]:.6g}"
        for key in old
        if key in new and not close(old[key], new[key])
    ]
    if apart or lost:
        return f"DIFFERS in {len(apart)} numbers {apart[:4]}; {len(lost)} stand in one alone {lost[:4]}"
    return "numbers same to rounding"


def close(a: float, b: float) -> bool:
    """Whether two measured numbers are equal to rounding."""
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-6)


def main() -> int:
    """Print the table; 1 where it differs from another."""
    groups = {"bundled": bundled, "structures": structures, "dicom": dicom, "commands": commands}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="write it as JSON as well")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="say what differs from this table")
    parser.add_argument("--only", nargs="+", default=list(groups), choices=list(groups), metavar="GROUP")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, help="of the bundled models")
    given = parser.parse_args()
    table: dict[str, Value] = {}
    for group in given.only:
        with tempfile.TemporaryDirectory() as folder:
            for name, value in groups[group](Path(folder), tuple(given.dtypes)):
                table[name] = value
                print(name, value if isinstance(value, str) else f"{len(value)} numbers", flush=True)
    if given.output:
        given.output.write_text(json.dumps(table, indent=1))
    if not given.compare:
        return 0
    before = json.loads(given.compare.read_text())
    findings = {name: difference(table[name], before[name]) for name in table if name in before}
    unchanged = sum(not finding for finding in findings.values())
    print(f"\n{len(findings)} of {len(before)} cases compared, {unchanged} the same to the bit")
    for name, finding in findings.items():
        if finding:
            print(f"{name}: {finding}")
    return int(any("DIFFERS" in finding for finding in findings.values()))


if __name__ == "__main__":
    sys.exit(main())
