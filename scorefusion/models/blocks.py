"""The layers both U-Nets are made of, for 2 or 3 dimensions.

``dims`` is 2 for slices ``[N, C, H, W]`` and 3 for volumes ``[B, C, D, H, W]``.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefusion.models.by_depth import added, convolved_linear_up, convolved_norm, is_large
from scorefusion.models.config import UNetConfig
from scorefusion.ops.norm_act import norm_act

Resample = Literal["none", "down", "up"]
Edges = Literal["zeros", "replicate"]


def convolution(
    dims: int,
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    edges: Edges = "zeros",
    causal: bool = False,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution of 2 or 3 dimensions that keeps the grid (stride 1) or halves it (stride 2).

    The weights of a ``causal`` one that look ahead along the first axis are zero, and stay so in training.
    """
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    layer = kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2, padding_mode=edges)
    if causal:
        with torch.no_grad():
            _without_ahead(layer.weight)
        layer.weight.register_hook(lambda gradient: _without_ahead(gradient.clone()))
    return layer


def _without_ahead(weight: Tensor) -> Tensor:
    """Zero the last of the three weights along the first axis, in place."""
    weight[:, :, 2] = 0
    return weight


class Normalisation(nn.Module):
    """Normalise (GroupNorm, or LayerNorm over each voxel's channels), scale and shift, SiLU, in one pass."""

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.groups = config.groups if config.norm == "group" else None
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, other: Tensor | None = None, **options: Any) -> Tensor:
        """``silu(norm([x, other] + add) · (1 + scale) + shift)``, channels last; see :func:`ops.norm_act`.

        Of its options, ``scale``, ``shift``, ``add``, ``act``, ``pad`` and ``pad_mode`` may be given.
        """
        return norm_act(x, other, groups=self.groups, weight=self.weight, bias=self.bias, **options)


def sinusoid(value: Tensor, channels: int, max_period: float) -> Tensor:
    """``[cos, sin]`` features ``[N, channels]`` of ``value [N]``, periods 2π to 2π·max_period."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, device=value.device, dtype=torch.float32) / half
    )
    angles = value[:, None].to(torch.float32) * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class FewRows(nn.Linear):
    """A linear layer of a row an example, in its weights' dtype under autocast too: casts take longer."""

    def forward(self, input: Tensor) -> Tensor:
        """``[N, inputs]`` to ``[N, outputs]`` of the weights' dtype."""
        kind = input.device.type
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):  # meta has none
            return super().forward(input)
        with torch.autocast(kind, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class ResBlock(nn.Module):
    """Normalise, SiLU, convolve, twice; told the noise level between; may change the grid, on both paths.

    ``film`` scales and shifts the second normalisation's output, ``add`` adds to its input.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, config: UNetConfig, resample: Resample = "none"):
        super().__init__()
        film = config.conditioning == "film"
        self.dims, self.resample, self.film = dims, resample, film
        self.step = (1, 2, 2) if config.causal else (2,) * dims
        self.norm1 = Normalisation(inputs, config)
        self.conv1 = convolution(dims, inputs, outputs, causal=config.causal)
        self.embed = FewRows(config.time.hidden, 2 * outputs if film else outputs)
        self.norm2 = Normalisation(outputs, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = convolution(dims, outputs, outputs, causal=config.causal)
        self.skip = convolution(dims, inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, other: Tensor | None = None) -> Tensor:
        """``x`` and more channels ``other [N, C, ...]``, never concatenated, to ``[N, outputs, ...]``.

        ``embedding [N, hidden]`` is already through SiLU.
        """
        if self.resample == "none" and is_large(x, self.conv1.in_channels):
            hidden = convolved_norm(self.conv1, self.norm1, x, other)
        else:
            hidden = self.conv1(self._resampled(self.norm1(x, other)))
        told = self.embed(embedding)
        if self.film:
            scale, shift = told.chunk(2, dim=1)
            hidden = self.norm2(hidden, scale=scale, shift=shift)
        else:
            hidden = self.norm2(hidden, add=told)
        parts = self._skipped(x, other)
        together = getattr(self.conv2, "plus", None)
        if together is None:
            hidden = self.conv2(self.dropout(hidden))
        else:
            part = next(parts)
            hidden = together(self.dropout(hidden), part, overwrite=part is not x)
            del part
        for part in parts:
            hidden = added(hidden, part)
            del part  # before the next one is made
        return hidden

    def _skipped(self, x: Tensor, other: Tensor | None) -> Iterator[Tensor]:
        """What is added to the result, made one after another."""
        if other is None:
            yield self.skip(self._resampled(x))
        elif isinstance(self.skip, nn.Identity):
            yield self._resampled(torch.cat([x, other], dim=1))
        elif not isinstance(self.skip, nn.Conv2d | nn.Conv3d):  # packed: takes both
            yield self.skip(self._resampled(x), self._resampled(other))
        else:
            convolve = F.conv2d if self.dims == 2 else F.conv3d
            first, second = self.skip.weight.split([x.shape[1], other.shape[1]], dim=1)
            yield convolve(self._resampled(x), first, self.skip.bias)
            yield convolve(self._resampled(other), second)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2) if self.dims == 2 else _pooled_3d(x, self.step)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=self.step, mode="nearest")
        return x


def _pooled_3d(x: Tensor, step: tuple[int, ...]) -> Tensor:
    """Average pooling; through float32 on a CPU, where PyTorch has no short form of it."""
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        return F.avg_pool3d(x.float(), step).to(x.dtype)
    return F.avg_pool3d(x, step)


class StridedDown(nn.Module):
    """Halve the grid with a strided convolution."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.conv = convolution(dims, channels, channels, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``[N, C, ...]`` to half the size on every axis; the embedding is not used."""
        return self.conv(x)


class LinearUp(nn.Module):
    """Double the grid by linear interpolation, then convolve."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.mode = "bilinear" if dims == 2 else "trilinear"
        self.conv = convolution(dims, channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``[N, C, ...]`` to twice the size on every axis; the embedding is not used."""
        if is_large(x, 8 * x.shape[1]):
            return convolved_linear_up(self.conv, x)
        return self.conv(F.interpolate(x, scale_factor=2, mode=self.mode))


class Attention(nn.Module):
    """Self-attention over all positions, heads of ``head_channels``, q, k and v laid out head by head."""

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.heads = channels // config.head_channels
        self.norm = Normalisation(channels, config)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``[N, C, ...]`` to the same shape; the embedding is not used."""
        tokens = self.norm(x, act="none").flatten(2).transpose(1, 2)  # [N, positions, C]: channels are last
        qkv = _projected(self.qkv, tokens)
        qkv = qkv.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key, value = (part.contiguous() for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        mixed = _projected(self.proj, mixed)
        return added(mixed.transpose(1, 2).unflatten(2, x.shape[2:]), x)


def _projected(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a convolution of extent 1, or its packed form, to ``tokens [N, positions, C]``."""
    if isinstance(layer, nn.Conv1d):
        return F.linear(tokens, layer.weight[:, :, 0], layer.bias)
    return layer(tokens.transpose(1, 2)).transpose(1, 2)


def fold(x: Tensor, patch: int, depth: int | None = None) -> Tensor:
    """Space to depth: ``[N, C, ...]`` to ``[N, C·patch^dims, .../patch]``, by ``depth`` along z if given."""
    if patch == 1:
        return x
    if x.dim() == 4:
        return F.pixel_unshuffle(x, patch)
    first = depth or patch
    b, c, d, h, w = x.shape
    x = x.reshape(b, c, d // first, first, h // patch, patch, w // patch, patch)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def unfold(x: Tensor, patch: int, depth: int | None = None) -> Tensor:
    """Depth to space, the inverse of :func:`fold`."""
    if patch == 1:
        return x
    if x.dim() == 4:
        return F.pixel_shuffle(x, patch)
    first = depth or patch
    b, c, d, h, w = x.shape
    x = x.unflatten(1, (c // (first * patch**2), first, patch, patch)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // (first * patch**2), d * first, h * patch, w * patch)
