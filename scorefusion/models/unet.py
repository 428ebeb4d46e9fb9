"""The U-Net that serves as slice network (2D) and as fusion network (3D)."""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefusion.models.blocks import (
    Attention,
    FewRows,
    LinearUp,
    Normalisation,
    ResBlock,
    StridedDown,
    convolution,
    fold,
    sinusoid,
    unfold,
)
from scorefusion.models.config import UNetConfig


class UNet(nn.Module):
    """An ADM-style U-Net over ``[N, inputs, ...]`` of 2 or 3 dimensions.

    Args:
        dims: 2 or 3.
        inputs: channels in.
        outputs: channels out.
        config: widths, blocks, normalisation and the rest.
        labels: size of a learned embedding added to the noise level's (for a network shared by planes), or 0.
        zero_output: start with an output of exactly zero.

    Spatial sizes must be multiples of ``config.scales[-1]``; :class:`ScoreFusion` pads to that.
    ``scale_features`` are the first decoder output of each level: what the ensemble-2D-feature layers read.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        config: UNetConfig,
        *,
        labels: int = 0,
        zero_output: bool = False,
    ):
        super().__init__()
        self.dims, self.config, self.inputs = dims, config, inputs
        widths, last = config.widths, len(config.widths) - 1
        self.depth_patch = 1 if config.causal else config.patch
        cells = config.patch**2 * (self.depth_patch if dims == 3 else 1)
        hidden = config.time.hidden
        self.embed = nn.Sequential(FewRows(config.time.channels, hidden), nn.SiLU(), FewRows(hidden, hidden))
        self.label = nn.Embedding(labels, hidden) if labels else None

        down = StridedDown if config.resample == "conv" else None
        up = LinearUp if config.resample == "conv" else None
        channels = widths[0]
        edges, causal = config.edges, config.causal
        self.encoder = nn.ModuleList(
            [convolution(dims, inputs * cells, channels, edges=edges, causal=causal)]
        )
        skips = [channels]
        self.inject_at: dict[int, int] = {}
        for level, width in enumerate(widths):
            first = len(self.encoder)
            for _ in range(config.blocks):
                self.encoder.append(ResBlock(dims, channels, width, config))
                channels = width
                skips.append(channels)
            self.inject_at[config.scales[level]] = first if level == last else len(self.encoder) - 1
            if level != last:
                self.encoder.append(
                    down(dims, channels) if down else ResBlock(dims, channels, channels, config, "down")
                )
                skips.append(channels)
        middle = [ResBlock(dims, channels, channels, config), ResBlock(dims, channels, channels, config)]
        self.middle = nn.ModuleList(
            [middle[0], Attention(channels, config), middle[1]] if config.attention else middle
        )
        self.decoder = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for index in range(config.blocks + 1):
                stage = nn.ModuleList([ResBlock(dims, channels + skips.pop(), widths[level], config)])
                channels = widths[level]
                if level and index == config.blocks:
                    stage.append(
                        up(dims, channels) if up else ResBlock(dims, channels, channels, config, "up")
                    )
                self.decoder.append(stage)
        self.norm = Normalisation(channels, config)
        self.output = convolution(dims, channels, outputs * cells, edges=edges, causal=causal)
        for block in self.modules():
            if isinstance(block, ResBlock):
                _zero(block.conv2)
        if zero_output:
            _zero(self.output)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        inject: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """``x [N, inputs, ...]`` and ``time [N]``, as ``config.time.value`` says, to ``[N, outputs, ...]``.

        Args:
            x: the input, any floating dtype.
            time: noise level, float32.
            label: ``[N]`` int64 where the network has labels.
            inject: activations to add in the encoder, by scale: ``[N, config.injected_channels(s), .../s]``.
        """
        return self.forward_with_features(x, time, (), label=label, inject=inject)[0]

    def forward_with_features(
        self,
        x: Tensor,
        time: Tensor,
        scales: tuple[int, ...],
        *,
        label: Tensor | None = None,
        inject: Mapping[int, Tensor] | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """As :meth:`forward`, and the decoder's features ``[N, width, .../s]`` at the scales asked for."""
        config = self.config
        told = sinusoid(time * config.time.scale, config.time.channels, config.time.max_period)
        embedding = self.embed(told.to(x.dtype))
        if self.label is not None:
            embedding = embedding + self.label(label)
        embedding = F.silu(embedding)

        add = {self.inject_at[scale]: value for scale, value in (inject or {}).items()}
        memory = torch.channels_last if self.dims == 2 else torch.channels_last_3d
        hidden = self.encoder[0](fold(x, config.patch, self.depth_patch).contiguous(memory_format=memory))
        skips = [hidden]
        for index, block in enumerate(self.encoder[1:], start=1):
            if index in add:
                hidden = hidden + add[index].to(hidden.dtype)
            hidden = block(hidden, embedding)
            skips.append(hidden)
        for block in self.middle:
            hidden = block(hidden, embedding)
        features: dict[int, Tensor] = {}
        for index, stage in enumerate(cast("list[nn.ModuleList]", list(self.decoder))):
            hidden = stage[0](hidden, embedding, skips.pop())
            level, first = divmod(index, config.blocks + 1)
            scale = config.scales[-1 - level]
            if first == 0 and scale in scales:
                features[scale] = hidden
            if len(stage) > 1:
                hidden = stage[1](hidden, embedding)
        return unfold(self._last(hidden), config.patch, self.depth_patch), features

    def _last(self, hidden: Tensor) -> Tensor:
        """Normalise and convolve; where edges repeat, the one pads for the other."""
        if self.config.edges == "zeros" or not isinstance(self.output, nn.Conv2d | nn.Conv3d):  # or packed
            return self.output(self.norm(hidden))
        convolve = F.conv2d if self.dims == 2 else F.conv3d
        hidden = self.norm(hidden, pad=1, pad_mode=self.config.edges)
        return convolve(hidden, self.output.weight, self.output.bias)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
