"""Model configurations by name: the paper's, a small one, and the bundled models'."""

import functools
from collections.abc import Callable
from typing import Any

from scorefusion.degradations import (
    BlockMean,
    CompressedSensing,
    FewViews,
    Inpaint,
    Measurement,
    Nothing,
    SliceAverages,
    SliceStack,
)
from scorefusion.errors import unknown_name
from scorefusion.models.config import (
    PLANES,
    BranchConfig,
    ModelConfig,
    ResidualConfig,
    SamplingConfig,
    TimeConfig,
    UNetConfig,
)

NO_DEGRADATION = Nothing()
BLOCK_MEANS = BlockMean(factor=4)
#: of ddim, ddpm and dpmpp_2m_sde with sigma_min from 0.02 to 2.5 on a training head, six ddpm steps gave the
#: highest correlation with the true residual, and a spectrum nearer to it than one step's (docs/models.md)
FEW_STEPS = SamplingConfig(solver="ddpm", steps=6, sigma_max=20.0, sigma_min=0.3)
SMALLER_FRAMES = BlockMean(edges=(1, 4, 4))
#: for a residual whose mean over a region is large: up to a high sigma the noisy volume still tells it, and a
#: start from noise alone would tell that it is zero. On training subjects t1-t2 gave 3 dB less from sigma 20
#: (docs/results.md).
FAR_APART = SamplingConfig(solver="ddpm", steps=8, sigma_max=80.0, sigma_min=0.3)

#: about the root mean square of T2 - T1 over heads and their surroundings, both normalised.
T1_T2_SCALE = 0.7


_SUPER_RESOLUTION: dict[str, Any] = {
    "conditions": ("t1",),
    "target": "t1",
    "degradation": BLOCK_MEANS,
    "residual": ResidualConfig(base="trilinear+consistency", scale=0.144),
}


def small() -> ModelConfig:
    """A few hundred thousand parameters, every part present: for tests and first experiments."""
    own: dict[str, Any] = {**_SUPER_RESOLUTION, "patch": 1, "channels": 32, "hidden": 64}
    return _own("small", (32, 48), (32, 48), (1, 2), **own)


def t1_t2() -> ModelConfig:
    """The bundled model from T1 to T2: the residual is their difference."""
    model = _own(
        "t1-t2", (40, 56, 72), (32, 48), (2, 4),
        conditions=("t1",), target="t2",
        residual=ResidualConfig(base="identity", scale=T1_T2_SCALE),
    )  # fmt: skip
    return model.model_copy(update={"sampling": FAR_APART})


def t1sr4_t2() -> ModelConfig:
    """The bundled model of both conditions: 4x4x4-pooled T1, and T2 at full resolution; six branches."""
    values = _own(
        "t1sr4-t2", (40, 56, 72), (32, 48), (2, 4),
        conditions=("t1", "t2"), target="t1",
        residual=ResidualConfig(base="trilinear+consistency", scale=0.144),
        degradation=BLOCK_MEANS,
    ).model_dump()  # fmt: skip
    (network,) = values["slice_networks"].values()
    values["slice_networks"] = {"t1": network, "t2": network}
    values["branches"] = [
        {"plane": plane, "conditions": (index,), "network": name}
        for index, name in enumerate(("t1", "t2"))
        for plane in PLANES
    ]
    return ModelConfig.model_validate(values)


def video_sr() -> ModelConfig:
    """Clips of four times as many rows and columns: z is time, so coronal and sagittal are time slices."""
    return _own(
        "video-sr", (24, 40, 56), (16, 32), (2, 4), channels=32, hidden=64,
        conditions=("video",), target="video",
        residual=ResidualConfig(base="trilinear+consistency", scale=0.11),
        degradation=SMALLER_FRAMES,
    )  # fmt: skip


def video_sr_causal() -> ModelConfig:
    """The same, fused without a look at later frames; the slice networks still take one."""
    values = video_sr().model_dump()
    values["fusion"]["causal"] = True
    values |= {"name": "video-sr-causal", "feature_scales": ()}
    values["strategies"] = ("single", "alternate", "average", "fuse")
    values["sampling"]["strategy"] = "fuse"
    return ModelConfig.model_validate(values)


def ct_thick() -> ModelConfig:
    """CT of four times as many axial slices, each a quarter as thick."""
    return _own(
        "ct-thick", (24, 40, 56), (16, 32), (2, 4), channels=32, hidden=64,
        conditions=("ct",), target="ct",
        residual=ResidualConfig(base="trilinear+consistency", scale=0.07),
        degradation=SliceAverages(axis="z", thickness=4),
    )  # fmt: skip


def brain_iso() -> ModelConfig:
    """The bundled model of thick slices: z is the axis they are stacked along, whatever the head's.

    Coronal and sagittal slices hold that axis and share a network. Axial ones lie in the measured plane: a
    network of theirs came no more than 0.1 dB above interpolation, and made the average worse.
    """
    values = _own(
        "brain-iso", (48, 72, 96), (32, 64), (2, 4), channels=32, hidden=128,
        conditions=("mri",), target="mri",
        residual=ResidualConfig(base="trilinear+consistency", scale=0.14),
        degradation=SliceStack(gains=0.03),
    ).model_dump()  # fmt: skip
    values["slice_networks"] = {"through": values["slice_networks"].pop("slice")}
    values["branches"] = [{"plane": plane, "network": "through"} for plane in ("coronal", "sagittal")]
    values["sampling"] |= {
        "solver": "ddim", "steps": 1, "draw_steps": 4, "sigma_max": 20.0, "sigma_min": 0.3
    }  # fmt: skip
    return ModelConfig.model_validate(values)


def _own(
    name: str,
    slice_widths: tuple[int, ...],
    fusion_widths: tuple[int, ...],
    scales: tuple[int, ...],
    *,
    conditions: tuple[str, ...],
    target: str,
    residual: ResidualConfig,
    degradation: Measurement = NO_DEGRADATION,
    patch: int = 2,
    channels: int = 64,
    hidden: int = 192,
) -> ModelConfig:
    """A model of our own kind: preconditioned, one slice network shared by three planes."""
    time = TimeConfig(value="log_sigma", scale=16.0, channels=channels, hidden=hidden)

    def network(widths: tuple[int, ...]) -> UNetConfig:
        return UNetConfig(widths=widths, blocks=1, patch=patch, norm="channel", time=time)

    return ModelConfig(
        name=name,
        conditions=conditions,
        target=target,
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
        residual=residual,
        degradation=degradation,
        intensity="robust",
        sampling=FEW_STEPS,
    )


def _paper(
    name: str, conditions: tuple[str, ...], target: str, base: str, degradation: Measurement
) -> ModelConfig:
    """A 2D network for each plane and condition, and a 3D network that fuses their scores."""
    several = len(conditions) > 1
    slices = UNetConfig(  # Palette's U-Net, conditioned on abar
        widths=(64, 128, 256, 512),
        attention=True,
        dropout=0.2,
        time=TimeConfig(value="abar", channels=64, hidden=256, max_period=1e4),
    )
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
        slice_networks=dict.fromkeys((branch.network for branch in branches), slices),
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
        sampling=SamplingConfig(solver="official", steps=50, schedule="paper", clamp=1.0),
    )


_PAPER: dict[str, tuple[tuple[str, ...], str, str, Measurement]] = {
    "paper": (("t1",), "t1", "nearest", BLOCK_MEANS),
    "paper-translate": (("t1",), "t2", "identity", NO_DEGRADATION),
    "paper-flair": (("t1", "t2"), "flair", "identity", NO_DEGRADATION),
    "paper-both": (("t1", "t2"), "t1", "nearest", BLOCK_MEANS),
    "paper-inpaint": (("t1",), "t1", "pseudo-inverse", Inpaint(hole=0.5)),
    "paper-ct-sparse": (("ct",), "ct", "pseudo-inverse", FewViews(views=24)),
    "paper-cs-mri": (
        ("t1",), "t1", "pseudo-inverse", CompressedSensing(acceleration=4, axis="z", seed=0),
    ),
    "paper-thick-slices": (
        ("t1",), "t1", "trilinear+consistency", SliceAverages(axis="z", thickness=5),
    ),
    "paper-video-sr": (("video",), "video", "trilinear+consistency", SMALLER_FRAMES),
}  # fmt: skip
"""The paper's tasks (Zhu et al., ICML 2025, arXiv 2501.07430): conditions, target, base, degradation.

``paper`` has 62.6 M parameters per plane and 55.5 M to fuse.
"""

PRESETS: dict[str, Callable[[], ModelConfig]] = {
    **{name: functools.partial(_paper, name, *task) for name, task in _PAPER.items()},
    "small": small,
    # the bundled model: 4x4x4-pooled T1 to full resolution, one slice network shared by three planes
    "t1-sr4": functools.partial(_own, "t1-sr4", (48, 80, 96), (48, 64), (2, 4), **_SUPER_RESOLUTION),
    "t1-t2": t1_t2,
    "t1sr4-t2": t1sr4_t2,
    "video-sr": video_sr,
    "video-sr-causal": video_sr_causal,
    "ct-thick": ct_thick,
    "brain-iso": brain_iso,
}


def preset(name: str) -> ModelConfig:
    """The configuration of that name.

    Raises:
        ScoreFusionError: for an unknown name, with the nearest.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]()
