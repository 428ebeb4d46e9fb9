"""What a model is: frozen, typed, validated descriptions that are saved as ``config.json``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from scorefusion.degradations import MEASUREMENTS, Measurement, Nothing
from scorefusion.errors import BadInput, unknown_name
from scorefusion.models.strategies import BUILT_IN, strategy_named

Plane = Literal["axial", "coronal", "sagittal"]
Prediction = Literal["eps", "v", "x0", "edm"]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
StrategyName = Annotated[str, AfterValidator(lambda name: strategy_named(name).name)]


class Frozen(BaseModel):
    """A configuration that cannot change and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeConfig(Frozen):
    """How a network is told the noise level: a sinusoid ``[cos, sin]`` of one number.

    ``abar`` and ``step`` are the authors' choices for their 2D and 3D networks; ``log_sigma`` is
    ``scale · ln(sigma)``, smooth over the whole range.
    """

    value: Literal["abar", "step", "log_sigma"] = "log_sigma"
    channels: int = 64
    hidden: int = 256
    max_period: float = 1e4
    scale: float = 1.0


class UNetConfig(Frozen):
    """A 2D or 3D U-Net. ``widths`` has one entry a level; each level halves the grid.

    The encoder has ``blocks`` residual blocks a level and the decoder ``blocks + 1``. ``patch`` folds
    patch^dims voxels into channels first (space to depth), so the network works on a coarser grid.
    ``edges`` pads the first and last convolution; all others are zero-padded. A ``causal`` 3D network sees
    nothing later along the first axis, time: its convolutions look back alone, and neither ``patch`` nor a
    level makes that axis coarser.
    """

    widths: tuple[int, ...]
    blocks: int = 2
    patch: int = 1
    norm: Literal["group", "channel"] = "group"
    groups: int = 32
    conditioning: Literal["film", "add"] = "film"
    attention: bool = False
    head_channels: int = 32
    resample: Literal["res", "conv"] = "res"
    edges: Literal["zeros", "replicate"] = "zeros"
    dropout: float = 0.0
    causal: bool = False
    time: TimeConfig = TimeConfig()

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        if not self.widths:
            raise ValueError("widths is empty; a U-Net needs at least one level")
        if self.norm == "group" and any(width % self.groups for width in self.widths):
            raise ValueError(f"widths {self.widths} are not all multiples of groups={self.groups}")
        if self.causal and (self.norm == "group" or self.attention or self.resample == "conv"):
            raise ValueError("a causal network needs norm 'channel', resample 'res' and no attention")
        return self

    @property
    def scales(self) -> tuple[int, ...]:
        """The grid spacing of each level in voxels, finest first."""
        return tuple(self.patch * 2**level for level in range(len(self.widths)))

    def injected_channels(self, scale: int) -> int:
        """Channels of the encoder's activations where features of ``scale`` are added."""
        level = self.scales.index(scale)
        deeper = level < len(self.widths) - 1 and self.blocks > 1
        return self.widths[level if deeper else max(level - 1, 0)]


class BranchConfig(Frozen):
    """One frozen 2D model at work: a plane, the conditions it sees (by index) and the network it uses."""

    plane: Plane
    conditions: tuple[int, ...] = (0,)
    network: str = "slice"


class ResidualConfig(Frozen):
    """The networks learn the residual to a base, which is made from the first condition as ``base`` says."""

    base: Literal["nearest", "trilinear", "trilinear+consistency", "pseudo-inverse", "identity"] = (
        "trilinear+consistency"
    )
    scale: float = 2.0
    #: for a target of another contrast: ascending intensities of the first condition, each with what it
    #: becomes in the base, straight lines between them and constant beyond; empty leaves the base as it is
    curve: tuple[tuple[float, float], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> ResidualConfig:
        inputs = [given for given, _ in self.curve]
        if len(inputs) == 1 or any(later <= former for former, later in pairwise(inputs)):
            raise ValueError(f"the inputs of curve must be two or more and ascending, got {inputs}")
        if inputs and self.base != "identity":
            raise ValueError(
                f"curve is for the base 'identity', not {self.base!r}: it would not be consistent"
            )
        return self

    def of(self, volume: Tensor, base: Tensor) -> Tensor:
        """Return the residual of a volume to its base."""
        return (volume - self._curved(base)) / self.scale

    def added_to(self, base: Tensor, residual: Tensor) -> Tensor:
        """Return the volume that a residual stands for."""
        return self._curved(base) + self.scale * residual

    def _curved(self, base: Tensor) -> Tensor:
        if not self.curve:
            return base
        result = torch.full_like(base, self.curve[0][1])
        for (start, low), (end, high) in pairwise(self.curve):
            result += (base.clamp(start, end) - start) * ((high - low) / (end - start))
        return result


class DomainConfig(Frozen):
    """What a condition of a model was made for; what is empty or None is not known, and not checked."""

    contrasts: tuple[str, ...] = ()  #: in any usual spelling: ``t1``, ``T1w``
    #: least and greatest voxel size in mm along z, y and x (RAS+ order) of the image that is given
    spacing: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] | None = None
    #: at most how many times longer than its shortest edge a voxel's longest may be
    anisotropy: float | None = None
    #: ``zero``, where voxels outside the object are 0 and darker than it, as in a magnitude MRI
    background: Literal["zero"] | None = None
    #: ``non-negative`` for any unit from 0 up, ``hounsfield``, or ``8-bit`` for 0 to 255
    intensity: Literal["non-negative", "hounsfield", "8-bit"] | None = None

    @model_validator(mode="after")
    def _check(self) -> DomainConfig:
        if any(not 0 < least <= greatest for least, greatest in self.spacing or ()):
            raise ValueError(f"spacing {self.spacing} is not three pairs of least and greatest mm (z, y, x)")
        if self.anisotropy is not None and self.anisotropy < 1:
            raise ValueError(f"anisotropy is at least 1, got {self.anisotropy:g}")
        return self


class ErrorBarConfig(Frozen):
    """What makes an error bar of the deviation over samples.

    In ``share`` of the voxels of heads that the model did not see, the samples' mean was off by at most
    ``factor`` standard deviations. Measured with ``samples`` samples of ``steps`` steps.
    """

    factor: float = Field(gt=0)
    samples: int = Field(ge=2)
    steps: int = Field(ge=1)
    share: float = Field(default=0.8, gt=0, lt=1)


class SamplingConfig(Frozen):
    """What the model is sampled with when the caller does not say.

    ``draw_steps`` stands for ``steps`` where several samples are drawn: one step gives the posterior mean,
    from which samples hardly differ. ``error_bar`` says what their deviation is worth. ``sigma_max``,
    ``sigma_min`` and ``rho`` place the levels of the ``karras`` schedule; ``eta`` and ``spread`` are for the
    solvers that take them. Without ``consistency`` steps are not projected onto what was measured, for
    comparison.
    """

    strategy: StrategyName = "fuse+features"
    single_plane: Plane | None = None
    solver: str = "ddim"
    steps: int = 6
    draw_steps: int | None = Field(default=None, ge=1)
    schedule: Literal["karras", "paper", "cosine"] = "karras"
    sigma_max: float = 20.0
    sigma_min: float = 0.02
    rho: float = 7.0
    eta: float | None = None
    spread: float | None = None
    clamp: float | None = None
    consistency: bool = True
    error_bar: ErrorBarConfig | None = None

    def steps_for(self, samples: int) -> int:
        """Number of noise levels of each of so many samples."""
        return self.draw_steps if self.draw_steps and samples > 1 else self.steps


class ModelConfig(Frozen):
    """Everything but the weights of a :class:`~scorefusion.models.score_fusion.ScoreFusion`.

    A model without branches is the 3D network alone, for strategy ``volume``. ``fusion_start`` is what the 3D
    network does before training: ``mean`` (its output is zero, so the branches are averaged) or ``random``;
    ``feature_start`` likewise for the ensemble-2D-feature layers. Random starts are for comparison.
    ``domain`` says what each condition was made for, by its name in ``conditions``; one that is not named is
    not checked.
    """

    name: str
    conditions: tuple[str, ...]
    target: str
    prediction: Prediction = "edm"
    sigma_data: float = 1.0
    context: int = 2
    context_order: Literal["modality", "slice"] = "modality"
    position: bool = True
    mask: bool = True
    branches: tuple[BranchConfig, ...] = ()
    base_weights: tuple[float, ...] | None = None
    slice_networks: dict[str, UNetConfig] = {}
    fusion: UNetConfig | None = None
    fusion_start: Literal["mean", "random"] = "mean"
    feature_scales: tuple[int, ...] = ()
    feature_start: Literal["zero", "random"] = "zero"
    feature_kernel: Literal[1, 3] = 1
    residual_gain: float = 1.0
    halved_slice_time: bool = False
    strategies: tuple[StrategyName, ...] = BUILT_IN
    residual: ResidualConfig = ResidualConfig()
    degradation: Measurement = Nothing()
    intensity: Literal["minmax", "robust"] = "minmax"
    sampling: SamplingConfig = SamplingConfig()
    domain: dict[str, DomainConfig] = {}

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if strange := sorted(set(self.domain) - set(self.conditions)):
            raise ValueError(f"domain names {strange}, which are not conditions: {list(self.conditions)}")
        for branch in self.branches:
            if branch.network not in self.slice_networks:
                known = sorted(self.slice_networks)
                raise ValueError(f"branch network {branch.network!r} is not one of {known}")
            if any(not 0 <= index < len(self.conditions) for index in branch.conditions):
                raise ValueError(f"branch conditions {branch.conditions} do not index {self.conditions}")
        for name in self.slice_networks:
            if len({len(b.conditions) for b in self.branches if b.network == name}) > 1:
                share = f"the branches that share network {name!r}"
                raise ValueError(f"{share} see different numbers of conditions")
        if self.base_weights is not None and len(self.base_weights) != len(self.branches):
            raise ValueError(f"{len(self.base_weights)} base_weights for {len(self.branches)} branches")
        runs_slices = any(strategy_named(name).runs_slices for name in self.strategies)
        if self.fusion is not None and len(self.branches) < 2 and runs_slices:
            raise ValueError(f"fusing needs at least 2 branches, got {len(self.branches)}")
        if self.fusion is None and not self.branches:
            raise ValueError("a model needs branches, or a fusion network for strategy 'volume'")
        wrong = set(self.feature_scales) - set(self.fusion.scales if self.fusion else ())
        for network in self.slice_networks.values():
            wrong |= set(self.feature_scales) - set(network.scales)
        if wrong:
            raise ValueError(f"feature_scales {sorted(wrong)} are not scales of every network")
        if any(network.causal for network in self.slice_networks.values()):
            raise ValueError("'causal' is for the fusion network; slices have no time axis of their own")
        if self.fusion is not None and self.fusion.causal and self.feature_scales:
            raise ValueError("a causal fusion network takes no feature_scales: features are sums over time")
        only = self.sampling.single_plane
        if only is not None and only not in {branch.plane for branch in self.branches}:
            raise ValueError(f"sampling.single_plane {only!r} is no branch's plane")
        return self

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes that there are branches for, in the usual order."""
        return tuple(plane for plane in PLANES if self.branches_of([plane]))

    def branches_of(self, planes: Sequence[Plane]) -> tuple[int, ...]:
        """Numbers of the branches of some planes."""
        return tuple(k for k, branch in enumerate(self.branches) if branch.plane in planes)

    @property
    def scales_input(self) -> bool:
        """Whether the networks see x_t times a factor other than 1."""
        return self.prediction == "edm" and self.sigma_data != 1.0

    @property
    def common_channels(self) -> int:
        """Channels of position, mask and measurement, which every network is given."""
        return 3 * self.position + self.mask + self.degradation.channels

    def slice_channels(self, conditions: int) -> int:
        """Input channels of a 2D network: conditions with neighbouring slices, position, mask, x_t."""
        return conditions * (2 * self.context + 1) + self.common_channels + 1

    @property
    def volume_channels(self) -> int:
        """Input channels of the 3D network: x_t, conditions, position and mask, the branches' outputs."""
        return 1 + len(self.conditions) + self.common_channels + len(self.branches)

    def labels(self, network: str) -> int:
        """Labels of a 2D network: one for each plane where planes share it, else none."""
        planes = {branch.plane for branch in self.branches if branch.network == network}
        return len(PLANES) if len(planes) > 1 else 0

    @property
    def block(self) -> int:
        """Slices that 2D networks are given at once are whole blocks of so many."""
        return max(self.feature_scales, default=1)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of each branch before the fusion network has a say."""
        return self.base_weights or (1.0 / max(len(self.branches), 1),) * len(self.branches)

    @property
    def multiple(self) -> int:
        """Spatial sizes are padded inside to a multiple of this."""
        networks = [*self.slice_networks.values(), *([self.fusion] if self.fusion else [])]
        return max(network.scales[-1] for network in networks)

    @property
    def multiples(self) -> tuple[int, int, int]:
        """(z, y, x) that the size of a sampled box is a multiple of: whole patches and whole blocks."""
        z, y, x = (math.lcm(factor, self.multiple) for factor in self.degradation.factors)
        return z, y, x

    def grid(self, size: Sequence[int]) -> tuple[int, int, int]:
        """The spatial size that the networks see: (z, y, x) padded to ``multiple``."""
        z, y, x = (-(-length // self.multiple) * self.multiple for length in size)
        return z, y, x


Config = TypeVar("Config", bound=BaseModel)


def parse(kind: type[Config], values: Mapping[str, Any], source: str | Path) -> Config:
    """Validate ``values`` as ``kind``; an unknown key is refused with the nearest valid name.

    Raises:
        BadInput: naming ``source``, each wrong key and what would be right.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            path = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                valid = _fields_at(kind, item["loc"][:-1])
                problems.append(str(unknown_name("key", str(item["loc"][-1]), valid)))
            else:
                problems.append(f"{path or kind.__name__}: {item['msg']}")
        raise BadInput(source, "; ".join(problems), "Correct the configuration.") from None


def read_config(kind: type[Config], file: str | Path) -> Config:
    """Read a JSON or TOML file as ``kind``.

    Raises:
        BadInput: if the file is missing, is neither JSON nor TOML, or does not validate.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise BadInput(path, problem, "Give an existing configuration file.") from None
    try:
        toml = "tomllib" if sys.version_info >= (3, 11) else "tomli"
        values = importlib.import_module(toml if path.suffix == ".toml" else "json").loads(text)
    except ValueError as error:
        raise BadInput(path, f"is not valid {path.suffix or 'JSON'} ({error})", "Correct the file.") from None
    if not isinstance(values, dict):
        raise BadInput(path, "does not hold an object", "A configuration is a table of names and values.")
    return parse(kind, values, path)


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The valid keys at a place inside a configuration, found through its type annotations."""
    current: Any = kind
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif hasattr(current, "__args__"):
            current = current.__args__[-1] if not isinstance(part, int) else current.__args__[0]
        while hasattr(current, "__args__") and type(None) in getattr(current, "__args__", ()):
            current = next(arg for arg in current.__args__ if arg is not type(None))
    if current is Measurement:
        return list({name: None for kind in MEASUREMENTS.values() for name in kind.model_fields})
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []
