"""Measurements of a target volume: configuration, operator, base and projection, one class per kind.

A measurement is a frozen value, the ``degradation`` section of a model's ``config.json``. One that depends on
the scan or is drawn at random is another value of the same class, put into the configuration of that scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from pydantic import ModelWrapValidatorHandler as Handler
from torch import Tensor

from scorefusion.degradations.operator import LinearOperator, Operator, add_noise
from scorefusion.errors import ScoreFusionError, unknown_name

Factor = int | Sequence[int]
_ROUNDS = 32


def block_edges(factor: Factor) -> tuple[int, int, int]:
    """Return the block's (z, y, x) edges.

    Raises:
        ScoreFusionError: unless they are one number, or three, of at least 1.
    """
    edges = (factor,) * 3 if isinstance(factor, int) else tuple(int(edge) for edge in factor)
    if len(edges) != 3 or min(edges) < 1:
        raise ScoreFusionError(f"a block needs one edge, or three, of at least 1; got {factor}")
    return edges


def block_mean(x: Tensor, factor: Factor) -> Tensor:
    """Return the mean of every block.

    Args:
        x: ``[B, C, D, H, W]``.
        factor: the block's edge, or its (z, y, x) edges.

    Returns:
        ``[B, C, D/rz, H/ry, W/rx]``.

    Raises:
        ScoreFusionError: if the volume is not a whole number of blocks.
    """
    rz, ry, rx = edges = block_edges(factor)
    b, c, d, h, w = _size_of(x)
    if any(length % edge for length, edge in zip((d, h, w), edges, strict=True)):
        size, block = (" x ".join(str(n) for n in lengths) for lengths in ((d, h, w), edges))
        raise ScoreFusionError(f"a volume of {size} voxels is not a whole number of {block} blocks")
    return x.reshape(b, c, d // rz, rz, h // ry, ry, w // rx, rx).mean(dim=(3, 5, 7))


def upsample_blocks(x: Tensor, factor: Factor) -> Tensor:
    """Return ``x [B, C, D, H, W]`` with every voxel repeated as a block: ``[B, C, D*rz, H*ry, W*rx]``."""
    rz, ry, rx = block_edges(factor)
    b, c, d, h, w = _size_of(x)
    blocks = x[:, :, :, None, :, None, :, None].expand(b, c, d, rz, h, ry, w, rx)
    return blocks.reshape(b, c, d * rz, h * ry, w * rx)


class Pooling(LinearOperator):
    """``A`` takes the mean of every block; ``A_dagger`` repeats a value over its block.

    Args:
        factor: the block's edge, or its (z, y, x) edges: ``(4, 1, 1)`` pools along z alone, as in a volume
            of anisotropic spacing.

    Raises:
        ScoreFusionError: for an edge below 1, and in ``A`` for a volume that is not a whole number of blocks.
    """

    local = True

    def __init__(self, factor: Factor) -> None:
        self.factor = self.blocks = block_edges(factor)

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to ``[B, C, D/rz, H/ry, W/rx]``."""
        return block_mean(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return upsample_blocks(y, self.factor) / math.prod(self.factor)

    def A_dagger(self, y: Tensor) -> Tensor:
        return upsample_blocks(y, self.factor)

    def bounded(self, x: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
        """Limit x to [lo, hi] with block means ``y``, which lie between them, to rounding.

        What clipping takes from a block, its other voxels share.
        """
        x = x.clamp(lo, hi)
        for _ in range(_ROUNDS):
            apart = self.A(x) - y
            if float(apart.abs().max()) <= 1e-6 * (hi - lo):
                break
            free = torch.where(upsample_blocks(apart, self.factor) > 0, x > lo, x < hi)
            apart = apart / self.A(free.to(x.dtype)).clamp_min(1 / math.prod(self.factor))
            x = torch.where(free, x - upsample_blocks(apart, self.factor), x).clamp(lo, hi)
        return x


def _size_of(x: Tensor) -> tuple[int, ...]:
    if x.ndim != 5:
        raise ScoreFusionError(f"expected a volume [B, C, D, H, W], got shape {list(x.shape)}")
    return tuple(x.shape)


Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, ...] = ("z", "y", "x")
BASES = ("nearest", "trilinear", "trilinear+consistency", "pseudo-inverse", "identity")
MEASUREMENTS: dict[str, type[Measurement]] = {}

Kind = TypeVar("Kind", bound="Measurement")
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Degraded(NamedTuple):
    """What is known of a target."""

    #: y, of the operator's own shape, complex for k-space; None where nothing is measured
    measured: Tensor | None
    #: ``[B, 1, D, H, W]`` on the target's grid: the networks' first condition, and the base that the residual
    #: is added to
    condition: Tensor


class Measurement(BaseModel):
    """How the first condition is measured from the target; docs/degradations.md describes every kind.

    A subclass declares ``kind`` (a literal), its fields and :meth:`make_operator`, and is registered with
    :func:`register`. ``Measurement.model_validate`` reads a mapping as the kind that it names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: whether the measurement is itself an image, on a grid ``factors`` times coarser
    coarse: ClassVar[bool] = False
    measures: ClassVar[bool] = True  #: whether anything is measured of the target
    takes_mask: ClassVar[bool] = False  #: whether the caller may give the voxels that are not measured
    #: whether the pseudo-inverse is the base ``nearest``, and so no baseline of its own
    inverse_is_nearest: ClassVar[bool] = False
    #: whether the operator runs on the meta device, so that its memory can be forecast
    traceable: ClassVar[bool] = True
    channels: ClassVar[int] = 0  #: how many channels of the networks' input describe the measurement
    #: whether a scan's header tells its own measurement, and the model's is a typical one
    of_each_scan: ClassVar[bool] = False
    #: whether a crop is measured as the whole is but for its border, so that crops are measured in training
    crops_measure_alike: ClassVar[bool] = False

    kind: str = ""  #: name of the kind
    #: standard deviation of the Gaussian noise in the measurement, in normalised intensity
    noise: float = Field(default=0.0, ge=0)

    @model_validator(mode="wrap")
    @classmethod
    def _of_kind(cls, values: Any, handler: Handler[Measurement]) -> Measurement:
        """Read a mapping as the kind that it names; fields of other kinds may be there if not set."""
        if not isinstance(values, Mapping):
            return handler(values)
        if cls is Measurement:
            kind = values.get("kind", "none")
            if kind not in MEASUREMENTS:
                raise ValueError(str(unknown_name("degradation", str(kind), tuple(MEASUREMENTS))))
            return MEASUREMENTS[kind].model_validate(values)
        own, kind = dict(values), cls.model_fields["kind"].default
        for name in [name for name in own if name not in cls.model_fields]:
            takers = {other: m for other, m in MEASUREMENTS.items() if name in m.model_fields}
            defaults = [taker.model_fields[name].get_default() for taker in takers.values()]
            if takers and own[name] is not None and own[name] not in defaults:
                raise ValueError(f"'{name}' is for degradation {' and '.join(takers)}, not {kind}")
            if takers:
                del own[name]
        for name, field in cls.model_fields.items():
            if field.is_required() and own.get(name) is None:
                raise ValueError(f"degradation {kind} needs '{name}'")
        return handler(own)

    @model_serializer
    def _saved(self) -> dict[str, Any]:
        """Save what the kind takes; ``kind`` and ``factor`` always, as older readers expect them."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        noise = own.pop("noise") or None
        saved = {"kind": self.kind, "factor": 1} | own | {"noise": noise}
        return {name: value for name, value in saved.items() if value is not None}

    @property
    def factors(self) -> tuple[int, int, int]:
        """By how much the measured image's grid is coarser along z, y and x."""
        return (1, 1, 1)

    @property
    def blocks(self) -> tuple[int, int, int] | None:
        """(z, y, x) edges of the blocks whose plain means are measured; None for any other measurement."""
        return None

    @property
    def whole(self) -> tuple[bool, bool, bool]:
        """Along which of z, y, x every voxel matters to what is measured, so that none may be cropped off."""
        return (False, False, False)

    def drawn(self, random: np.random.Generator) -> Measurement:
        """Return the measurement of one training example; itself where all are alike."""
        return self

    def describe(self, depth: int, first: int, device: torch.device | str) -> Tensor:
        """Return what describes it to the networks, float32 ``[channels, depth]``, one number for each z.

        ``first`` is the number of the first of ``depth`` voxels in the whole volume.
        """
        return torch.empty(0, depth, device=device)

    def grid(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Return the size (z, y, x) of the target's grid for a measured image of ``size``."""
        z, y, x = (length * factor for length, factor in zip(size, self.factors, strict=True))
        return z, y, x

    def make_operator(
        self, size: Sequence[int], seed: int | None, device: torch.device | str
    ) -> LinearOperator | None:
        """Make the operator for a size (z, y, x) of whole ``factors``; :meth:`operator` calls it."""
        raise NotImplementedError

    def operator(
        self, size: Sequence[int], *, seed: int | None = None, device: torch.device | str = "cpu"
    ) -> LinearOperator | None:
        """Return the operator for volumes of one size, without noise; None where nothing is measured.

        Args:
            size: (z, y, x) of the target's grid.
            seed: of what is random, such as lines or holes; the measurement's own if None.
            device: of the operator's tensors.

        Raises:
            ScoreFusionError: for a size that cannot be measured.
        """
        for length, factor, axis in zip(size, self.factors, AXES, strict=True):
            if length % factor:
                raise ScoreFusionError(
                    f"degradation {self.kind} needs a length along {axis} that is a multiple of {factor}; "
                    f"got {length}"
                )
        return self.make_operator(size, getattr(self, "seed", None) if seed is None else seed, device)

    def _measure(self, target: Tensor, seed: int | None) -> tuple[LinearOperator | None, Tensor]:
        """Return the operator and what it measures with noise; None and the target if nothing is measured."""
        operator = self.operator(target.shape[2:], seed=seed, device=target.device)
        if operator is None:
            return None, target
        seed = getattr(self, "seed", None) if seed is None else seed
        measured = operator.A(target)
        return operator, add_noise(measured, self.noise, seed or 0) if self.noise else measured

    def image(self, target: Tensor, *, seed: int | None = None) -> Tensor:
        """Return what a pipeline is given where a target is known.

        Args:
            target: ``[B, 1, D, H, W]``, any units; in normalised intensity if there is noise.
            seed: of noise, random lines and holes; the measurement's own, or 0, if None.

        Returns:
            The measured image: ``[B, 1, d, h, w]`` if it is coarser, else ``[B, 1, D, H, W]``, put back by
            the pseudo-inverse.

        Raises:
            ScoreFusionError: for a size that cannot be measured.
        """
        operator, measured = self._measure(target, seed)
        return measured if self.coarse or operator is None else operator.A_dagger(measured)

    def degrade(
        self, target: Tensor, *, base: str = "trilinear+consistency", seed: int | None = None
    ) -> Degraded:
        """Measure a target and bring the measurement back to its grid.

        The target, ``[B, 1, D, H, W]``, is normalised, and a crop whole along the axes of :attr:`whole`;
        where nothing is measured it is itself the condition. Bases are those of :func:`base_volume`.

        Raises:
            ScoreFusionError: for a size that cannot be measured, or an unknown base.
        """
        operator, measured = self._measure(target, seed)
        if operator is None:
            return Degraded(None, target)
        image = measured if self.coarse else operator.A_dagger(measured)
        return Degraded(measured, base_volume(image, base, self.factors, operator))

    def base_agrees(self, base: str, operator: LinearOperator) -> bool:
        """Whether a base of that name measures as the first condition does, to rounding."""
        if self.coarse:
            exact = ("trilinear+consistency", "pseudo-inverse", *(["nearest"] if operator.blocks else []))
            return base in exact
        return operator.exact_inverse

    def disagreement(self, operator: LinearOperator, volume: Tensor, given: Tensor) -> tuple[float, float]:
        """The greatest and the mean difference of what is measured of a volume from what was given.

        Any units, the same for ``volume [1, 1, D, H, W]`` and the measured image ``given``: coarse, or else
        on the volume's grid, where it is measured again. The mean is over what is measured.
        """
        apart = operator.A(volume) - given if self.coarse else operator.A(volume - given)
        size = apart.abs()
        return float(size.max()), float(size.double().mean()) / operator.share


def register(measurement: type[Kind]) -> type[Kind]:
    """Add a kind of measurement, by the default of its ``kind``; usable as a decorator."""
    MEASUREMENTS[measurement.model_fields["kind"].default] = measurement
    return measurement


@register
class Nothing(Measurement):
    """Nothing is measured of the target: the first condition is an image of another kind."""

    measures: ClassVar[bool] = False
    kind: Literal["none"] = "none"

    def make_operator(self, size: Sequence[int], seed: int | None, device: torch.device | str) -> None:
        return None


@register
class BlockMean(Measurement):
    """Means of blocks of voxels."""

    coarse: ClassVar[bool] = True
    inverse_is_nearest: ClassVar[bool] = True
    kind: Literal["block-mean"] = "block-mean"
    factor: Count = 1  #: the blocks' edge r, in voxels
    #: (z, y, x) edges, where they differ; ``factor`` is then 1
    edges: tuple[Count, Count, Count] | None = None

    @model_validator(mode="after")
    def _check(self) -> BlockMean:
        if self.edges is not None and self.factor != 1:
            raise ValueError("give 'factor' or 'edges', not both")
        return self

    @property
    def factors(self) -> tuple[int, int, int]:
        return self.edges or (self.factor,) * 3

    @property
    def blocks(self) -> tuple[int, int, int]:
        return self.factors

    def make_operator(self, size: Sequence[int], seed: int | None, device: torch.device | str) -> Pooling:
        return Pooling(self.factors)


def base_volume(
    condition: Tensor, kind: str, factor: int | Sequence[int], operator: Operator | None = None
) -> Tensor:
    """Return the volume that the residual is added to: target = base + scale · residual.

    The fine grid is the one whose blocks are the coarse voxels: fine voxel j lies at coarse coordinate
    (j + 1/2)/factor - 1/2 along each axis.

    Args:
        condition: ``[B, C, d, h, w]``, any units: the measured image, coarse or on the target's grid.
        kind: ``nearest`` (each voxel repeated as a block), ``trilinear`` (edges replicated; linear along
            those axes that are coarser), ``trilinear+consistency`` (that, moved as little as possible until
            it measures as the condition does), ``pseudo-inverse`` (the smallest volume that measures so), or
            ``identity`` for a condition that is on the target's grid.
        factor: how much coarser the condition is, one number or (z, y, x).
        operator: what was measured; means of blocks if None. Only for a coarser condition: one on the
            target's grid is its own measurement, put back by the pseudo-inverse already.

    Returns:
        ``[B, C, d·rz, h·ry, w·rx]``.

    Raises:
        ScoreFusionError: for an unknown kind, or ``identity`` with a factor other than 1.
    """
    if kind not in BASES:
        raise unknown_name("base", kind, BASES)
    factors = block_edges(factor)
    if kind == "identity" and max(factors) > 1:
        raise ScoreFusionError(f"base 'identity' keeps the grid, so its factor is 1; got {factor}")
    if max(factors) == 1:
        return condition
    if kind == "nearest":
        return upsample_blocks(condition, factors)
    operator = operator or Pooling(factors)
    if kind == "pseudo-inverse":
        return operator.A_dagger(condition)
    scales = tuple(float(edge) for edge in factors)
    base = F.interpolate(condition, scale_factor=scales, mode="trilinear", align_corners=False)
    if kind == "trilinear+consistency":
        base = base - operator.A_dagger(operator.A(base) - condition)
    return base
