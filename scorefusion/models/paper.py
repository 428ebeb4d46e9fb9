"""The paper's networks for each of its tasks (Zhu et al., ICML 2025, arXiv 2501.07430)."""

from __future__ import annotations

from collections.abc import Callable

from scorefusion.degradations.config import DegradationConfig
from scorefusion.models.config import (
    PLANES,
    BranchConfig,
    ModelConfig,
    ResidualConfig,
    SamplingConfig,
    TimeConfig,
    UNetConfig,
)

PAPER_SAMPLING = SamplingConfig(solver="official", steps=50, schedule="paper", clamp=1.0)
NO_DEGRADATION = DegradationConfig()


def paper() -> ModelConfig:
    """The networks for 4x super-resolution: 62.6 M parameters a plane, 55.5 M to fuse."""
    return _model("paper", ("t1",), "t1", DegradationConfig(kind="block-mean", factor=4), "nearest")


def paper_translate() -> ModelConfig:
    """One contrast into another: T1 to T2."""
    return _model("paper-translate", ("t1",), "t2", NO_DEGRADATION, "identity")


def paper_flair() -> ModelConfig:
    """Two contrasts into a third: T1 and T2 to FLAIR, a branch for each plane and contrast."""
    return _model("paper-flair", ("t1", "t2"), "flair", NO_DEGRADATION, "identity")


def paper_both() -> ModelConfig:
    """Super-resolution and translation at once: pooled T1 and full T2, six branches."""
    return _model("paper-both", ("t1", "t2"), "t1", DegradationConfig(kind="block-mean", factor=4), "nearest")


def paper_inpaint() -> ModelConfig:
    """What is missing in a box of half the volume's edges."""
    return _model(
        "paper-inpaint", ("t1",), "t1", DegradationConfig(kind="inpaint", hole=0.5), "pseudo-inverse"
    )


def paper_ct_sparse() -> ModelConfig:
    """CT from 24 parallel views of every axial slice."""
    return _model(
        "paper-ct-sparse", ("ct",), "ct", DegradationConfig(kind="sparse-view", views=24), "pseudo-inverse"
    )


def paper_cs_mri() -> ModelConfig:
    """MRI from a quarter of the lines of every axial slice's k-space."""
    lines = DegradationConfig(kind="cs-mri", acceleration=4, axis="z", seed=0)
    return _model("paper-cs-mri", ("t1",), "t1", lines, "pseudo-inverse")


def paper_thick_slices() -> ModelConfig:
    """Axial slices of 5 voxels, next to each other."""
    thick = DegradationConfig(kind="thick-slices", axis="z", thickness=5)
    return _model("paper-thick-slices", ("t1",), "t1", thick, "trilinear+consistency")


def paper_video_sr() -> ModelConfig:
    """Video as a volume of (time, row, column), 4x finer in space: planes are frames and time-space."""
    frames = DegradationConfig(kind="block-mean", edges=(1, 4, 4))
    return _model("paper-video-sr", ("video",), "video", frames, "trilinear+consistency")


def paper_slice() -> UNetConfig:
    """The 2D network: Palette's U-Net, told abar."""
    return UNetConfig(
        widths=(64, 128, 256, 512),
        attention=True,
        dropout=0.2,
        time=TimeConfig(value="abar", channels=64, hidden=256, max_period=1e4),
    )


def _model(
    name: str, conditions: tuple[str, ...], target: str, degradation: DegradationConfig, base: str
) -> ModelConfig:
    """A 2D network for each plane and condition, and one 3D network that fuses their scores."""
    several = len(conditions) > 1
    branches = [
        BranchConfig(plane=plane, conditions=(index,), network=f"{plane}-{condition}" if several else plane)
        for index, condition in enumerate(conditions)
        for plane in PLANES
    ]
    return ModelConfig(
        name=name,
        conditions=conditions,
        target=target,
        prediction="eps",
        branches=tuple(branches),
        slice_networks={branch.network: paper_slice() for branch in branches},
        fusion=UNetConfig(
            widths=(64, 128, 192, 256),
            conditioning="add",
            resample="conv",
            edges="replicate",
            time=TimeConfig(value="step", channels=64, hidden=256, max_period=1e3),
        ),
        feature_scales=(8, 4, 2, 1),
        residual=ResidualConfig.model_validate({"base": base, "scale": 2.0}),
        degradation=degradation,
        sampling=PAPER_SAMPLING,
    )


PAPER: dict[str, Callable[[], ModelConfig]] = {
    "paper": paper,
    "paper-translate": paper_translate,
    "paper-flair": paper_flair,
    "paper-both": paper_both,
    "paper-inpaint": paper_inpaint,
    "paper-ct-sparse": paper_ct_sparse,
    "paper-cs-mri": paper_cs_mri,
    "paper-thick-slices": paper_thick_slices,
    "paper-video-sr": paper_video_sr,
}
