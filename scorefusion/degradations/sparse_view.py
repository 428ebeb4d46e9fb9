"""Sparse-view computed tomography: parallel projections of axial slices from a few directions."""

import functools
import math
import threading
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scorefusion.degradations.measurement import Count, Measurement, register
from scorefusion.degradations.operator import LinearOperator, conjugate_gradients
from scorefusion.errors import ScoreFusionError

_SAYING, _SAID = threading.Lock(), list[bool]()


class SparseView(LinearOperator):
    """``A`` projects every axial slice; its pseudo-inverse is conjugate gradients, and so approximate.

    View v of V looks along angle π v / V: a voxel at (x, y) from the slice's centre falls at
    x cos + y sin on the detector, whose bins are a voxel wide. A bin holds the integral of the slice over
    the strip that it sees, in intensity times voxels. A voxel is a square, so its shadow is a trapezoid and
    the shares of the bins are exact; they sum to one, so each view's bins sum to the slice's sum.

    Args:
        views: over half a turn.
        height: of the slices, voxels along y.
        width: of the slices, voxels along x.
        detector: bins; as many as cover the slice's diagonal if None.
        iterations: of the pseudo-inverse, whose first is a filtered back-projection. 15 leave less
            than 1e-3 of what is measured of an image with edges and grain, and 1% of white noise's.

    Raises:
        ScoreFusionError: for a number below 1, and in ``A`` for slices of another size.
    """

    def __init__(
        self, views: int, height: int, width: int, *, detector: int | None = None, iterations: int = 15
    ) -> None:
        detector = math.ceil(math.hypot(height, width)) if detector is None else detector
        if min(views, height, width, detector, iterations) < 1:
            raise ScoreFusionError(
                f"sparse views need at least 1 view, bin, voxel and iteration; got {views} views, {detector} "
                f"bins, {height} x {width} voxels and {iterations} iterations"
            )
        self.views, self.detector, self.size, self.iterations = views, detector, (height, width), iterations

    def A(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to ``[B, C, D, views, detector]``; 16-bit volumes are summed in float32."""
        if x.ndim != 5 or tuple(x.shape[3:]) != self.size:
            raise ScoreFusionError(
                f"the projector is for slices of {self.size[0]} x {self.size[1]}, got shape {list(x.shape)}"
            )
        return self._apply(x, False).reshape(*x.shape[:3], self.views, self.detector)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Back-projection: see :class:`~scorefusion.degradations.operator.Operator`."""
        return self._apply(y, True).reshape(*y.shape[:3], *self.size)

    def A_dagger(self, y: Tensor) -> Tensor:
        # The weight is nearly the inverse of A A*: the ramp where views overlap in k-space, and flat beyond.
        weigh = functools.partial(self._filter, limit=2 / sum(self.size))
        return conjugate_gradients(self, y, iterations=self.iterations, weigh=weigh)

    def filtered_back_projection(self, y: Tensor) -> Tensor:
        """Reconstruct ``[B, C, D, H, W]`` with the ramp filter of Ramachandran and Lakshminarayanan."""
        return self.A_adjoint(self._filter(y, math.inf))

    def _filter(self, y: Tensor, limit: float) -> Tensor:
        """The ramp over every view, cut off at a limit."""
        wide = y if y.dtype == torch.float64 else y.float()
        ramp = math.pi / self.views * _ramp(2 * self.detector, wide.dtype, wide.device)
        spectrum = torch.fft.rfft(wide, n=2 * self.detector, dim=-1) * ramp.clamp(max=limit)
        return torch.fft.irfft(spectrum, n=2 * self.detector, dim=-1)[..., : self.detector]

    def _apply(self, values: Tensor, back: bool) -> Tensor:
        """One matrix times the slices as columns."""
        wide = values if values.dtype == torch.float64 else values.float()
        pair = _projector(self.views, self.detector, *self.size, wide.dtype, wide.device)
        columns = wide.flatten(3).flatten(0, 2).T
        return _Product.apply(columns, *(pair[::-1] if back else pair)).T


@register
class FewViews(Measurement):
    """Parallel projections of every axial slice from a few directions."""

    traceable: ClassVar[bool] = False
    kind: Literal["sparse-view"] = "sparse-view"
    views: Count  #: projections over half a turn
    detector: Count | None = None  #: bins, each a voxel wide; as many as cover the slice's diagonal if None

    @property
    def whole(self) -> tuple[bool, bool, bool]:
        return False, True, True

    def make_operator(self, size: Sequence[int], seed: int | None, device: torch.device | str) -> SparseView:
        return SparseView(self.views, size[1], size[2], detector=self.detector)


class _Product(torch.autograd.Function):
    """A sparse matrix times a dense one, whose gradient uses the transpose that is at hand."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.pair = transpose, matrix
        return matrix @ columns

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradients[0], *ctx.pair), None, None


@functools.lru_cache(maxsize=16)
def _ramp(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Frequencies in cycles a bin, as the transform of their band-limited kernel: ``[n // 2 + 1]``, > 0."""
    place = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    kernel = torch.where(place % 2 == 0, 0, -1 / (math.pi * place) ** 2)
    kernel[0] = 0.25
    return torch.fft.rfft(kernel).real.clamp(min=1e-6).to(device, dtype)


@functools.lru_cache(maxsize=4)
def _projector(
    views: int, detector: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The projector ``[views · detector, height · width]`` and its transpose, as compressed rows."""
    angles = torch.arange(views, dtype=torch.float64) * math.pi / views
    cosine, sine = angles.cos(), angles.sin()
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    place = (x[None, :, None] * cosine + y[:, None, None] * sine).reshape(-1, views) + detector / 2
    wide, narrow = (cosine.abs() + sine.abs()) / 2, (cosine.abs() - sine.abs()).abs() / 2
    first = torch.floor(place - wide)
    # A shadow is at most sqrt(2) bins wide, so it falls into three bins, between four borders.
    below = torch.stack([_shadow(first + k - place, wide, narrow) for k in range(4)])
    shares = below.diff(dim=0).movedim(0, -1)
    bins = first.long()[..., None] + torch.arange(3)
    kept = (shares > 1e-12) & (bins >= 0) & (bins < detector)
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), kept.flatten(1).sum(dim=1).cumsum(0)])
    columns = (torch.arange(views)[:, None] * detector + bins)[kept]
    # PyTorch's one warning a process, that compressed rows are beta, is given where nobody hears it. The
    # filters of warnings belong to the whole process, so they are changed for one number's time, once.
    with _SAYING:
        if not _SAID:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR")
                torch.eye(1, device="cpu").to_sparse_csr()
            _SAID.append(True)
    transpose = torch.sparse_csr_tensor(
        rows.int(), columns.int(), shares[kept].to(dtype), (height * width, views * detector),
        check_invariants=False,
    )  # fmt: skip
    matrix = transpose.t().to_sparse_csr()
    return matrix.to(device), transpose.to(device)


def _shadow(offset: Tensor, wide: Tensor, narrow: Tensor) -> Tensor:
    """Share of a square's shadow below an offset from its middle, less one half.

    The shadow is a trapezoid: flat up to ``narrow`` on either side, and nought from ``wide`` on.
    """
    height = 1 / (wide + narrow)
    reach = torch.minimum(offset.abs(), wide)
    slope, beyond = (wide - narrow).clamp(min=1e-12), (reach - narrow).clamp(min=0)
    return offset.sign() * height * (torch.minimum(reach, narrow) + beyond - beyond**2 / (2 * slope))
