"""Noise levels as tensors, and the four things a network may predict.

A network's output m and the clean image are tied by x0 = P x_t + Q m. P and Q follow from the noise level:

    eps   m is the noise z              P = 1/sqrt(abar)                        Q = -sqrt(1-abar)/sqrt(abar)
    v     m = sqrt(abar) z              P = sqrt(abar)                          Q = -sqrt(1-abar)
              - sqrt(1-abar) x0
    x0    m is the clean image          P = 0                                   Q = 1
    edm   EDM's preconditioned F        P = s^2/(sigma^2+s^2) sqrt(1+sigma^2)   Q = sigma s/sqrt(sigma^2+s^2)

where s is `sigma_data`, the data's standard deviation. edm is from Karras et al. 2022, table 1; v from
Salimans and Ho 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorefusion.errors import unknown_name

if TYPE_CHECKING:  # --help reads the solvers' names without PyTorch
    import torch
    from torch import Tensor

PREDICTIONS = ("edm", "eps", "v", "x0")


@dataclass(frozen=True)
class NoiseLevel:
    """The noise level of each item of a batch."""

    abar: Tensor  #: float64 [B] (float32 where the device has no float64), cumulative alpha in (0, 1)
    t: Tensor  #: int64 [B], discrete step of the schedule, -1 where the level is continuous

    @classmethod
    def of(cls, abar: float, t: int, batch: int, device: torch.device | str) -> NoiseLevel:
        """Return one level repeated for `batch` items on `device`."""
        import torch

        device = torch.device(device)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return cls(
            torch.full((batch,), abar, dtype=dtype, device=device),
            torch.full((batch,), t, dtype=torch.int64, device=device),
        )

    @classmethod
    def continuous(cls, abar: Tensor) -> NoiseLevel:
        """Return the levels of a [B] tensor of abar that belong to no discrete schedule."""
        import torch

        return cls(abar, torch.full_like(abar, -1, dtype=torch.int64))

    @property
    def sigma(self) -> Tensor:
        """EDM's noise level sqrt((1 - abar) / abar), [B]."""
        return ((1.0 - self.abar) / self.abar) ** 0.5


def prediction_coefficients(prediction: str, abar: Any, sigma_data: float = 1.0) -> tuple[Any, Any]:
    """Return (P, Q) of x0 = P x_t + Q m.

    Args:
        prediction: "eps", "v", "x0" or "edm".
        abar: cumulative alpha in (0, 1): a float, numpy array or tensor; P and Q are of its kind and shape.
        sigma_data: the data's standard deviation; used by "edm" only.

    Raises:
        ScoreFusionError: for an unknown prediction.
    """
    signal, noise = abar**0.5, (1.0 - abar) ** 0.5
    if prediction == "eps":
        return 1.0 / signal, -noise / signal
    if prediction == "v":
        return signal, -noise
    if prediction == "x0":
        return abar * 0.0, abar * 0.0 + 1.0
    if prediction == "edm":
        # With sigma = noise/signal, both forms multiplied through by signal, which may be tiny.
        power = noise**2 + (sigma_data * signal) ** 2
        return sigma_data**2 * signal / power, noise * sigma_data / power**0.5
    raise unknown_name("prediction", prediction, PREDICTIONS)


def input_scale(prediction: str, abar: Any, sigma_data: float = 1.0) -> Any:
    """Return the factor on x_t that makes the network's input.

    It is 1 for eps, v and x0. For "edm" it is c_in sqrt(1 + sigma^2) with c_in = 1/sqrt(sigma^2 + s^2), which
    gives the input unit variance; computed as 1/sqrt(1 - abar + s^2 abar).
    """
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    if prediction != "edm":
        return abar * 0.0 + 1.0
    return (1.0 - abar + sigma_data**2 * abar) ** -0.5


def add_noise(x0: Tensor, z: Tensor, abar: Tensor) -> Tensor:
    """Return x_t = sqrt(abar) x0 + sqrt(1 - abar) z.

    Args:
        x0: clean images, [B, ...].
        z: standard normal noise of the same shape.
        abar: cumulative alpha of each item, [B].
    """
    return _spread(abar**0.5, x0) * x0 + _spread((1.0 - abar) ** 0.5, x0) * z


def training_target(prediction: str, x0: Tensor, z: Tensor, abar: Tensor, sigma_data: float = 1.0) -> Tensor:
    """Return what the network should output for x_t = sqrt(abar) x0 + sqrt(1 - abar) z.

    Args:
        prediction: "eps", "v", "x0" or "edm".
        x0: clean images, [B, ...].
        z: the noise that was added, the same shape.
        abar: cumulative alpha of each item, [B].
        sigma_data: the data's standard deviation; used by "edm" only.
    """
    signal, noise = abar**0.5, (1.0 - abar) ** 0.5
    if prediction == "eps":
        return z
    if prediction == "v":
        return _spread(signal, x0) * z - _spread(noise, x0) * x0
    if prediction == "x0":
        return x0
    if prediction == "edm":
        # F = (x0 - c_skip x_sigma)/c_out = (noise x0 - s^2 signal z)/(s sqrt(noise^2 + s^2 signal^2))
        scale = sigma_data * (noise**2 + (sigma_data * signal) ** 2) ** 0.5
        return _spread(noise / scale, x0) * x0 - _spread(sigma_data**2 * signal / scale, x0) * z
    raise unknown_name("prediction", prediction, PREDICTIONS)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Return [B] values shaped to multiply a [B, ...] tensor, in its dtype."""
    return values.to(like.dtype).reshape(-1, *([1] * (like.ndim - 1)))
