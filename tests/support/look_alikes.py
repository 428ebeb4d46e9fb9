"""Datasets of tiny volumes in the layouts of real ones, some of their subjects broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from scorefusion.data import DatasetConfig, Found, find_subjects

SHAPE = (8, 9, 7)
AFFINE = np.array([[-1.0, 0, 0, 4], [0, 1.2, 0.1, -5], [0, -0.1, 1.5, -6], [0, 0, 0, 1]])


@dataclass(frozen=True)
class LookAlike:
    """How a dataset names things.

    Attributes:
        path: the file of a subject's number and a contrast as the dataset spells it.
        spelled: two contrasts as it spells them.
        contrasts: the same in our spelling.
        subject: the name of a subject's number.
        group: the person's.
        layout: what it is found to be.
    """

    path: Callable[[int, str], str]
    spelled: tuple[str, str]
    contrasts: tuple[str, str]
    subject: Callable[[int], str]
    group: Callable[[int], str]
    layout: str


def _hcp_raw(i: int, c: str) -> str:
    scan = {"T1w": "T1w_MPR1", "T2w": "T2w_SPC1"}[c]
    return f"10030{i}/unprocessed/3T/{scan}/10030{i}_3T_{scan}.nii.gz"


LOOK_ALIKES = {
    "folder": LookAlike(
        lambda i, c: f"sub-{i:03d}/sub-{i:03d}_{c}.nii.gz",
        ("t1", "flair"),
        ("t1", "flair"),
        lambda i: f"sub-{i:03d}",
        lambda i: f"sub-{i:03d}",
        "folder",
    ),
    "plain names": LookAlike(
        lambda i, c: f"p{i}_ses-2/{c}.nii",
        ("T1", "T2"),
        ("t1", "t2"),
        lambda i: f"p{i}_ses-2",
        lambda i: f"p{i}",
        "folder",
    ),
    "parallel folders": LookAlike(
        lambda i, c: f"{c}/{i:03d}.nii.gz",
        ("CT", "T1w"),
        ("ct", "t1"),
        lambda i: f"{i:03d}",
        lambda i: f"{i:03d}",
        "folder",
    ),
    "BraTS 2020": LookAlike(
        lambda i, c: f"BraTS20_Training_00{i}/BraTS20_Training_00{i}_{c}.nii",
        ("t1", "t1ce"),
        ("t1", "t1c"),
        lambda i: f"BraTS20_Training_00{i}",
        lambda i: f"BraTS20_Training_00{i}",
        "brats",
    ),
    "BraTS 2021": LookAlike(
        lambda i, c: f"BraTS2021_0000{i}/BraTS2021_0000{i}_{c}.nii.gz",
        ("t1", "flair"),
        ("t1", "flair"),
        lambda i: f"BraTS2021_0000{i}",
        lambda i: f"BraTS2021_0000{i}",
        "brats",
    ),
    "BraTS 2023": LookAlike(
        lambda i, c: f"Training/BraTS-GLI-0000{i}-001/BraTS-GLI-0000{i}-001-{c}.nii.gz",
        ("t1n", "t2f"),
        ("t1", "flair"),
        lambda i: f"BraTS-GLI-0000{i}-001",
        lambda i: f"BraTS-GLI-0000{i}",
        "brats",
    ),
    "HCP": LookAlike(
        lambda i, c: f"10030{i}/T1w/{c}_acpc_dc_restore.nii.gz",
        ("T1w", "T2w"),
        ("t1", "t2"),
        lambda i: f"10030{i}",
        lambda i: f"10030{i}",
        "hcp",
    ),
    "HCP as scanned": LookAlike(
        _hcp_raw,
        ("T1w", "T2w"),
        ("t1", "t2"),
        lambda i: f"10030{i}",
        lambda i: f"10030{i}",
        "hcp",
    ),
    "IXI": LookAlike(
        lambda i, c: f"IXI-{c}/IXI00{i}-Guys-0828-{c}.nii.gz",
        ("T1", "T2"),
        ("t1", "t2"),
        lambda i: f"IXI00{i}-Guys-0828",
        lambda i: f"IXI00{i}",
        "ixi",
    ),
    "IXI in one folder": LookAlike(
        lambda i, c: f"IXI00{i}-HH-1211-{c}.nii.gz",
        ("T2", "PD"),
        ("t2", "pd"),
        lambda i: f"IXI00{i}-HH-1211",
        lambda i: f"IXI00{i}",
        "ixi",
    ),
    "fastMRI": LookAlike(
        lambda i, c: f"person{i}/file_brain_{c}_200_20000{i}{len(c)}.nii.gz",
        ("AXT1POST", "AXFLAIR"),
        ("t1c", "flair"),
        lambda i: f"person{i}",
        lambda i: f"person{i}",
        "fastmri",
    ),
    "BIDS": LookAlike(
        lambda i, c: f"sub-0{i}/anat/sub-0{i}_{c}.nii.gz",
        ("T1w", "FLAIR"),
        ("t1", "flair"),
        lambda i: f"sub-0{i}",
        lambda i: f"sub-0{i}",
        "bids",
    ),
    "BIDS with sessions": LookAlike(
        lambda i, c: f"sub-0{i}/ses-pre/anat/sub-0{i}_ses-pre_acq-3d_run-1_{c}.nii.gz",
        ("T1w", "T2w"),
        ("t1", "t2"),
        lambda i: f"sub-0{i}_ses-pre",
        lambda i: f"sub-0{i}",
        "bids",
    ),
}

BROKEN = {
    3: "has no ",
    4: "truncated",
    5: "corners are 2 mm apart",
    6: "shapes differ",
    7: "holds 1 voxels that are NaN or infinite",
}
"""What is wrong with the subjects of these numbers; 1 and 2 are whole."""


def write(
    path: Path, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE, nan: bool = False, seed: int = 0
) -> Path:
    """A volume of random numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    if nan:
        values[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def write_look_alike(root: Path, like: LookAlike) -> None:
    """Seven subjects, two of them whole; it is the second contrast that is broken."""
    first, second = like.spelled
    moved = AFFINE.copy()
    moved[1, 3] += 2
    for number in range(1, 8):
        write(root / like.path(number, first), seed=number)
        path = root / like.path(number, second)
        if number == 3:
            continue
        shape = (8, 9, 6) if number == 6 else SHAPE
        affine = moved if number == 5 else AFFINE
        write(path, shape, affine, nan=number == 7, seed=10 + number)
        if number == 4:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) * 2 // 3])


def find_subjects_at(path: str | Path, contrasts: Sequence[str], *, voxels: bool = False) -> Found:
    """The subjects of a folder in any known layout, a CSV or TSV, or a single NIfTI file."""
    return find_subjects(DatasetConfig(root=str(path), contrasts=tuple(contrasts)), voxels=voxels)
