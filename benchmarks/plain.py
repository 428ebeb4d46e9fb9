"""Score-Fusion as it is usually written: eager PyTorch, float32, channels first, every feature staged.

What the engine is compared with. It runs a :class:`ScoreFusion`'s own weights through PyTorch's operations in
the plainest order: each branch's slices in batches of 8, all of its decoder features kept and permuted into
volumes, one convolution a feature layer, skip connections concatenated, the whole update in separate
operations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefusion.diffusion.level import NoiseLevel
from scorefusion.models.blocks import (
    Attention,
    LinearUp,
    Normalisation,
    ResBlock,
    StridedDown,
    fold,
    sinusoid,
    unfold,
)
from scorefusion.models.config import PLANES
from scorefusion.models.features import FeatureLayer
from scorefusion.models.score_fusion import Inputs, ScoreFusion, network_time
from scorefusion.models.unet import UNet
from scorefusion.ops.gather_slices import gather_slices
from scorefusion.ops.reference.planes import AXIS

SLICES = 8
"""Slices a 2D network is given at once, as the paper's code does."""


class Plain(nn.Module):
    """A model's networks, plainly: ``plain(x_t, inputs, level)`` is the model's ``fuse+features``."""

    def __init__(self, model: ScoreFusion, *, compiled: bool = False):
        super().__init__()
        self.network = torch.compile(network_plainly, dynamic=False) if compiled else network_plainly
        self.model = copy.deepcopy(model).float().eval()
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.weight.data = module.weight.data.contiguous()

    def forward(self, x_t: Tensor, inputs: Inputs, level: NoiseLevel) -> Tensor:
        """``[B, 1, D, H, W]`` float32, what the model predicts."""
        model = self.model
        config = model.config
        x = model.seen(x_t, level)
        scores, staged = [], []
        for branch in config.branches:
            network = cast(UNet, model.slice_networks[branch.network])
            axis = AXIS[branch.plane]
            count, found = x.shape[axis], []
            for start in range(0, count, SLICES):
                stop = min(start + SLICES, count)
                cut = gather_slices(
                    x, inputs.condition, inputs.common, branch.plane, start, stop, channels=branch.conditions,
                    context=config.context, order=config.context_order, dtype=torch.float32, backend="torch",
                ).contiguous()  # fmt: skip
                time = network_time(network.config, level, config.halved_slice_time)
                time = time.repeat_interleave(stop - start)
                label = torch.full_like(time, PLANES.index(branch.plane), dtype=torch.long)
                found.append(self.network(network, cut, time, label=label, scales=config.feature_scales))
            scores.append(as_volume([output for output, _ in found], x.shape[0], axis))
            staged.append(
                {s: as_volume([f[s] for _, f in found], x.shape[0], axis) for s in config.feature_scales}
            )
        inject = {
            int(s): layer_plainly(cast(FeatureLayer, layer), [f[int(s)] for f in staged], config.branches)
            for s, layer in model.features.items()
        }
        parts = [x, inputs.condition, *([inputs.common] if inputs.common is not None else []), *scores]
        fusion = cast(UNet, model.fusion)
        maps, _ = self.network(
            fusion, torch.cat(parts, dim=1), network_time(fusion.config, level), inject=inject
        )
        weights = torch.cat([maps[:, :-1], -maps[:, :-1].sum(1, keepdim=True)], dim=1)
        base = torch.tensor(config.weights, device=x.device).reshape(1, -1, 1, 1, 1)
        fused = ((weights + base) * torch.cat(scores, dim=1)).sum(1, keepdim=True)
        fused = fused + config.residual_gain * maps[:, -1:]
        d, h, w = inputs.size
        return fused[:, :, :d, :h, :w]


def as_volume(slabs: Sequence[Tensor], batch: int, axis: int) -> Tensor:
    """Slabs ``[B·n, C, h, w]`` as a contiguous volume ``[B, C, D, H, W]``."""
    stack = torch.cat([slab.unflatten(0, (batch, -1)) for slab in slabs], dim=1)
    return stack.movedim(1, axis).contiguous()


def layer_plainly(layer: FeatureLayer, staged: Sequence[Tensor], branches: Sequence) -> Tensor:
    """A convolution as long as its stride along each plane's axis, summed over the branches."""
    total: Tensor | None = None
    for weight, features, branch in zip(layer.weights, staged, branches, strict=True):
        if layer.kernel == 3:
            share = F.conv3d(features, weight, padding=1)
        else:
            extent = [1, 1, 1]
            extent[AXIS[branch.plane] - 2] = layer.scale
            share = F.conv3d(features, weight.reshape(*weight.shape[:2], *extent), stride=extent)
        total = share if total is None else total + share
    assert total is not None
    return total + layer.bias[None, :, None, None, None]


def network_plainly(
    network: UNet,
    x: Tensor,
    time: Tensor,
    *,
    label: Tensor | None = None,
    scales: Sequence[int] = (),
    inject: dict[int, Tensor] | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """As ``UNet.forward_with_features``."""
    config = network.config
    embedding = network.embed(
        sinusoid(time * config.time.scale, config.time.channels, config.time.max_period)
    )
    if network.label is not None:
        embedding = embedding + network.label(label)
    embedding = F.silu(embedding)
    add = {network.inject_at[scale]: value for scale, value in (inject or {}).items()}
    hidden = network.encoder[0](fold(x, config.patch).contiguous())
    skips = [hidden]
    for index, block in enumerate(network.encoder[1:], start=1):
        if index in add:
            hidden = hidden + add[index]
        hidden = block_plainly(block, hidden, embedding)
        skips.append(hidden)
    for block in network.middle:
        hidden = block_plainly(block, hidden, embedding)
    features: dict[int, Tensor] = {}
    for index, stage in enumerate(cast("list[nn.ModuleList]", list(network.decoder))):
        hidden = block_plainly(stage[0], torch.cat([hidden, skips.pop()], dim=1), embedding)
        level, first = divmod(index, config.blocks + 1)
        scale = config.scales[-1 - level]
        if first == 0 and scale in scales:
            features[scale] = hidden
        if len(stage) > 1:
            hidden = block_plainly(stage[1], hidden, embedding)
    return unfold(network.output(norm_plainly(network.norm, hidden)), config.patch), features


def block_plainly(block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
    """One block of a U-Net."""
    if isinstance(block, StridedDown):
        return block.conv(x)
    if isinstance(block, LinearUp):
        return block.conv(F.interpolate(x, scale_factor=2, mode=block.mode))
    if isinstance(block, Attention):
        tokens = norm_plainly(block.norm, x, act=False).flatten(2)
        heads = block.qkv(tokens).unflatten(1, (block.heads, -1)).transpose(2, 3)
        query, key, value = heads.chunk(3, dim=-1)
        mixed = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1) @ value
        return x + block.proj(mixed.transpose(2, 3).flatten(1, 2)).reshape(x.shape)
    block = cast(ResBlock, block)
    hidden = block.conv1(block._resampled(norm_plainly(block.norm1, x)))
    told = block.embed(embedding).reshape(x.shape[0], -1, *[1] * block.dims)
    if block.film:
        scale, shift = told.chunk(2, dim=1)
        hidden = F.silu(norm_plainly(block.norm2, hidden, act=False) * (1 + scale) + shift)
    else:
        hidden = norm_plainly(block.norm2, hidden + told)
    return block.skip(block._resampled(x)) + block.conv2(hidden)


def norm_plainly(norm: Normalisation, x: Tensor, *, act: bool = True) -> Tensor:
    """Normalise, then SiLU."""
    if norm.groups is not None:
        y = F.group_norm(x, norm.groups, norm.weight, norm.bias)
    else:
        moved = F.layer_norm(x.movedim(1, -1), norm.weight.shape, norm.weight, norm.bias)
        y = moved.movedim(-1, 1).contiguous()
    return F.silu(y) if act else y
