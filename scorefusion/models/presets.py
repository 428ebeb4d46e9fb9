"""Model configurations by name: the paper's, a small one, and the bundled model's."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import unknown_name
from .config import (
    PLANES,
    BranchConfig,
    DegradationConfig,
    ModelConfig,
    ResidualConfig,
    SamplingConfig,
    TimeConfig,
    UNetConfig,
)

PAPER_SAMPLING = SamplingConfig(solver="official", steps=50, schedule="paper", clamp=1.0)
FEW_STEPS = SamplingConfig(solver="ddpm", steps=6, sigma_max=20.0, sigma_min=0.3)
"""Of ddim, ddpm and dpmpp_2m_sde with sigma_min from 0.02 to 2.5, on a training head: six ddpm steps gave
the highest correlation with the true residual, and a spectrum nearer to it than one step's (docs/models.md).
"""


def paper() -> ModelConfig:
    """The networks of arXiv 2501.07430 for 4x super-resolution: 62.6 M parameters a plane, 55.5 M to fuse."""
    return ModelConfig(
        name="paper",
        conditions=("t1",),
        target="t1",
        prediction="eps",
        branches=tuple(BranchConfig(plane=plane, network=plane) for plane in PLANES),
        slice_networks={plane: paper_slice() for plane in PLANES},
        fusion=UNetConfig(
            widths=(64, 128, 192, 256),
            conditioning="add",
            resample="conv",
            edges="replicate",
            time=TimeConfig(value="step", channels=64, hidden=256, max_period=1e3),
        ),
        feature_scales=(8, 4, 2, 1),
        residual=ResidualConfig(base="nearest", scale=2.0),
        degradation=DegradationConfig(kind="block-mean", factor=4),
        sampling=PAPER_SAMPLING,
    )


def paper_slice() -> UNetConfig:
    """The paper's 2D network: Palette's U-Net, told abar."""
    return UNetConfig(
        widths=(64, 128, 256, 512),
        attention=True,
        dropout=0.2,
        time=TimeConfig(value="abar", channels=64, hidden=256, max_period=1e4),
    )


def small() -> ModelConfig:
    """A few hundred thousand parameters, every part present: for tests and first experiments."""
    return _super_resolution("small", (32, 48), (32, 48), (1, 2), patch=1, channels=32, hidden=64)


def t1_sr4() -> ModelConfig:
    """The bundled model: 4x4x4-pooled T1 to full resolution, one slice network shared by three planes."""
    return _super_resolution("t1-sr4", (48, 80, 96), (48, 64), (2, 4), patch=2, channels=64, hidden=192)


def _super_resolution(
    name: str,
    slice_widths: tuple[int, ...],
    fusion_widths: tuple[int, ...],
    scales: tuple[int, ...],
    *,
    patch: int,
    channels: int,
    hidden: int,
) -> ModelConfig:
    time = TimeConfig(value="log_sigma", scale=16.0, channels=channels, hidden=hidden)

    def network(widths: tuple[int, ...]) -> UNetConfig:
        return UNetConfig(widths=widths, blocks=1, patch=patch, norm="channel", time=time)

    return ModelConfig(
        name=name,
        conditions=("t1",),
        target="t1",
        prediction="edm",
        sigma_data=1.0,
        context=2,
        position=False,
        mask=False,
        branches=tuple(BranchConfig(plane=plane) for plane in PLANES),
        slice_networks={"slice": network(slice_widths)},
        fusion=network(fusion_widths),
        feature_scales=scales,
        strategies=("single", "alternate", "average", "fuse", "fuse+features"),
        residual=ResidualConfig(base="trilinear+consistency", scale=0.144),
        degradation=DegradationConfig(kind="block-mean", factor=4),
        intensity="robust",
        sampling=FEW_STEPS,
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {"paper": paper, "small": small, "t1-sr4": t1_sr4}


def preset(name: str) -> ModelConfig:
    """The configuration of that name.

    Raises:
        ScoreFusionError: for an unknown name, with the nearest.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]()
