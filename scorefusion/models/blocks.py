"""The layers both U-Nets are made of, for 2 or 3 dimensions.

``dims`` is 2 for slices ``[N, C, H, W]`` and 3 for volumes ``[B, C, D, H, W]``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import UNetConfig

Resample = Literal["none", "down", "up"]
Edges = Literal["zeros", "replicate"]


def convolution(
    dims: int, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, edges: Edges = "zeros"
) -> nn.Conv2d | nn.Conv3d:
    """A convolution of 2 or 3 dimensions that keeps the grid (stride 1) or halves it (stride 2)."""
    layer = nn.Conv2d if dims == 2 else nn.Conv3d
    return layer(inputs, outputs, kernel, stride=stride, padding=kernel // 2, padding_mode=edges)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each voxel: no statistic depends on the box a network is shown."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [N, C, ...]`` over C."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def normalisation(channels: int, config: UNetConfig) -> nn.Module:
    """The normalisation layer that ``config`` names."""
    if config.norm == "channel":
        return ChannelNorm(channels, eps=1e-5)
    return nn.GroupNorm(config.groups, channels, eps=1e-5)


def sinusoid(value: Tensor, channels: int, max_period: float) -> Tensor:
    """``[cos, sin]`` features ``[N, channels]`` of ``value [N]``, periods 2π to 2π·max_period."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, device=value.device, dtype=torch.float32) / half
    )
    angles = value[:, None].to(torch.float32) * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class ResBlock(nn.Module):
    """Normalise, SiLU, convolve, twice; told the noise level between; optionally changes the grid.

    ``film`` scales and shifts the second normalisation's output, ``add`` adds to its input. The
    resampling (2× average pooling or nearest) happens on both paths, as in ADM's residual blocks.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, config: UNetConfig, resample: Resample = "none"):
        super().__init__()
        film = config.conditioning == "film"
        self.dims, self.resample, self.film = dims, resample, film
        self.norm1 = normalisation(inputs, config)
        self.conv1 = convolution(dims, inputs, outputs)
        self.embed = nn.Linear(config.time.hidden, 2 * outputs if film else outputs)
        self.norm2 = normalisation(outputs, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = convolution(dims, outputs, outputs)
        self.skip = convolution(dims, inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x [N, C, ...]`` and ``embedding [N, hidden]`` (already through SiLU) to ``[N, outputs, ...]``."""
        hidden = F.silu(self.norm1(x))
        hidden, x = self._resampled(hidden), self._resampled(x)
        hidden = self.conv1(hidden)
        told = self.embed(embedding)[(...,) + (None,) * self.dims]
        if self.film:
            scale, shift = told.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        else:
            hidden = self.norm2(hidden + told)
        return self.skip(x) + self.conv2(self.dropout(F.silu(hidden)))

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2) if self.dims == 2 else _pooled_3d(x)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x


def _pooled_3d(x: Tensor) -> Tensor:
    """2×2×2 average pooling; through float32 on a CPU, where PyTorch has no short form of it."""
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        return F.avg_pool3d(x.float(), 2).to(x.dtype)
    return F.avg_pool3d(x, 2)


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
        return self.conv(F.interpolate(x, scale_factor=2, mode=self.mode))


class Attention(nn.Module):
    """Self-attention over all positions, heads of ``head_channels``, q, k and v laid out head by head."""

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.heads = channels // config.head_channels
        self.norm = normalisation(channels, config)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``[N, C, ...]`` to the same shape; the embedding is not used."""
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(x).flatten(2)).unflatten(1, (self.heads, -1)).transpose(2, 3)
        query, key, value = (part.contiguous() for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return (flat + self.proj(mixed.transpose(2, 3).flatten(1, 2))).reshape(x.shape)


def fold(x: Tensor, patch: int) -> Tensor:
    """Space to depth: ``[N, C, ...]`` to ``[N, C·patch^dims, .../patch]``."""
    if patch == 1:
        return x
    if x.dim() == 4:
        return F.pixel_unshuffle(x, patch)
    b, c, d, h, w = x.shape
    x = x.reshape(b, c, d // patch, patch, h // patch, patch, w // patch, patch)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * patch**3, d // patch, h // patch, w // patch)


def unfold(x: Tensor, patch: int) -> Tensor:
    """Depth to space, the inverse of :func:`fold`."""
    if patch == 1:
        return x
    if x.dim() == 4:
        return F.pixel_shuffle(x, patch)
    b, c, d, h, w = x.shape
    x = x.reshape(b, c // patch**3, patch, patch, patch, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // patch**3, d * patch, h * patch, w * patch)
