"""The typed description of a degradation, a part of every model's ``config.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic.functional_serializers import SerializerFunctionWrapHandler

Kind = Literal["none", "block-mean", "thick-slices", "k-space", "cs-mri", "sparse-view", "inpaint"]
Axis = Literal["z", "y", "x"]

AXES: tuple[Axis, ...] = ("z", "y", "x")

_FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "block-mean": ("factor", "edges"),
    "thick-slices": ("axis", "thickness", "gap", "profile"),
    "k-space": ("fraction",),
    "cs-mri": ("axis", "acceleration", "centre", "seed"),
    "sparse-view": ("views", "detector"),
    "inpaint": ("hole", "holes", "seed"),
}
_NEEDED = {"thick-slices": ("axis", "thickness"), "cs-mri": ("acceleration",), "sparse-view": ("views",)}


class DegradationConfig(BaseModel):
    """How the first condition comes about from the target; docs/degradations.md tells them all.

    Attributes:
        kind: ``none``, or what is measured. Each kind takes its own fields and ``noise``, and no others.
        factor: block-mean: the blocks' edge r, in voxels.
        edges: block-mean: (z, y, x) edges, where they differ; ``factor`` is then 1.
        axis: thick-slices: that the slices are stacked along. cs-mri: of the slices that are each measured
            by itself, along lines of their plane; None for lines through a 3D k-space.
        thickness: thick-slices: of a slice, in voxels.
        gap: thick-slices: between two slices, in voxels.
        profile: thick-slices: ``box``, or ``gaussian`` with the thickness as full width at half maximum.
        fraction: k-space: share of the frequencies kept along each axis, one number or (z, y, x).
        acceleration: cs-mri: lines in all for each line measured.
        centre: cs-mri: share of the lines, in the middle of k-space, that are all measured.
        seed: cs-mri: of the random lines. inpaint: of the holes' places; one hole lies in the middle if None.
        views: sparse-view: parallel projections over half a turn of every axial slice.
        detector: sparse-view: detector bins, a voxel wide; as many as cover the slice's diagonal if None.
        hole: inpaint: edge of a missing box as a share of the volume's, along each axis.
        holes: inpaint: how many boxes.
        noise: standard deviation of the Gaussian noise in the measurement, in normalised intensity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "none"
    factor: int = 1
    edges: tuple[int, int, int] | None = None
    axis: Axis | None = None
    thickness: int | None = None
    gap: int = 0
    profile: Literal["box", "gaussian"] = "box"
    fraction: float | tuple[float, float, float] = 0.5
    acceleration: float | None = None
    centre: float = 0.08
    seed: int | None = None
    views: int | None = None
    detector: int | None = None
    hole: float = 0.25
    holes: int = 1
    noise: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> DegradationConfig:
        own = _FIELDS[self.kind]
        for name, field in type(self).model_fields.items():
            if name not in ("kind", "noise", *own) and getattr(self, name) != field.default:
                kinds = " and ".join(kind for kind, fields in _FIELDS.items() if name in fields)
                raise ValueError(f"'{name}' is for degradation {kinds}, not {self.kind}")
        for name in _NEEDED.get(self.kind, ()):
            if getattr(self, name) is None:
                raise ValueError(f"degradation {self.kind} needs '{name}'")
        if self.edges is not None and self.factor != 1:
            raise ValueError("give 'factor' or 'edges', not both")
        for name in ("factor", "thickness", "views", "detector", "holes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"'{name}' is at least 1, got {getattr(self, name)}")
        if min(self.edges or (1,)) < 1 or self.gap < 0 or self.noise < 0:
            raise ValueError("'edges' are at least 1, 'gap' and 'noise' at least 0")
        if self.acceleration is not None and self.acceleration < 1:
            raise ValueError(f"'acceleration' is at least 1, got {self.acceleration:g}")
        for name, shares in (
            ("fraction", self.fractions),
            ("centre", (self.centre,)),
            ("hole", (self.hole,)),
        ):
            if not all(0 < share <= 1 for share in shares):
                raise ValueError(f"'{name}' is a share above 0 and at most 1, got {getattr(self, name)}")
        if self.kind == "k-space" and min(self.fractions) == 1:
            raise ValueError("'fraction' is 1 along every axis, so nothing would be missing")
        return self

    @model_serializer(mode="wrap")
    def _own_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Save what the kind takes; ``kind`` and ``factor`` always, as older readers expect them."""
        values = handler(self)
        keep = ("kind", "factor", *_FIELDS[self.kind], *(("noise",) if self.noise else ()))
        return {name: values[name] for name in keep if values[name] is not None}

    @property
    def factors(self) -> tuple[int, int, int]:
        """By how much the measurement's own image grid is coarser along z, y and x."""
        if self.kind == "block-mean":
            return self.edges or (self.factor,) * 3
        if self.kind == "thick-slices":
            step = (self.thickness or 1) + self.gap
            z, y, x = (step if axis == self.axis else 1 for axis in AXES)
            return z, y, x
        return (1, 1, 1)

    @property
    def blocks(self) -> tuple[int, int, int] | None:
        """(z, y, x) edges of the blocks whose plain means are measured; None for any other measurement."""
        plain = self.kind == "thick-slices" and self.gap == 0 and self.profile == "box"
        return self.factors if plain or self.kind == "block-mean" else None

    @property
    def coarse(self) -> bool:
        """Whether the measurement is itself an image, on a grid ``factors`` times coarser."""
        return self.kind in ("block-mean", "thick-slices")

    @property
    def fractions(self) -> tuple[float, float, float]:
        """``fraction`` along z, y and x."""
        return self.fraction if isinstance(self.fraction, tuple) else (self.fraction,) * 3

    @property
    def whole(self) -> tuple[bool, bool, bool]:
        """Along which of z, y, x every voxel matters to what is measured, so that none may be cropped off."""
        if self.kind == "k-space":
            z, y, x = (fraction < 1 for fraction in self.fractions)
            return z, y, x
        if self.kind == "cs-mri":
            z, y, x = (axis != self.axis for axis in AXES)
            return z, y, x
        if self.kind == "sparse-view":
            return False, True, True
        return False, False, False
