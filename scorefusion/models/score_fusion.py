"""Score-Fusion: 2D slice networks on perpendicular planes, fused by a 3D network (Zhu et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from scorefusion.degradations import Measurement
from scorefusion.diffusion.level import NoiseLevel, input_scale, prediction_coefficients
from scorefusion.diffusion.schedule import paper_sampling
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import PLANES, ModelConfig, Plane, UNetConfig
from scorefusion.models.features import FeatureLayer
from scorefusion.models.folder import channels_last, find_folder, load_config, load_weights, save_folder
from scorefusion.models.slabs import (
    cropped,
    fill_channels,
    gather_slab,
    keep_slab,
    pad,
    scores_of,
    slab_rows,
    slabs,
)
from scorefusion.models.strategies import FUSE, Strategy, require_strategy
from scorefusion.models.unet import UNet
from scorefusion.ops.fuse_scores import Fusion, fuse_scores
from scorefusion.ops.reference.planes import AXIS

Scores = tuple[Tensor, ...]


class Inputs(NamedTuple):
    """What a denoising step reads beside the noisy target: padded once, the same at every step.

    ``condition`` is ``[B, C, D, H, W]``, ``common`` the position and mask channels or None, ``size`` the
    spatial size before padding.
    """

    condition: Tensor
    common: Tensor | None
    size: tuple[int, int, int]


class ScoreFusion(nn.Module):
    """A conditional diffusion model of volumes whose score is fused from 2D models' scores.

    With ``eps_k`` the output of branch k, and w and r those of the 3D network::

        eps = sum_{k<K} (base_k + w_k) eps_k + (base_K - sum_{k<K} w_k) eps_K + gain · r

    The 3D network's last convolution starts at zero, so before training ``fuse`` is the branches' mean. The
    same holds for v, x0 and EDM outputs, since the weights sum to one.

    Args:
        config: the whole description; see :class:`ModelConfig`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.slice_networks = nn.ModuleDict()
        for name, network in config.slice_networks.items():
            sees = next((len(b.conditions) for b in config.branches if b.network == name), 1)
            self.slice_networks[name] = UNet(
                2, config.slice_channels(sees), 1, network, labels=config.labels(name)
            )
        self.fusion: UNet | None = None
        self.features = nn.ModuleDict()
        if config.fusion is not None:
            maps, zero = max(len(config.branches), 1), config.fusion_start == "mean"
            self.fusion = UNet(3, config.volume_channels, maps, config.fusion, zero_output=zero)
            for scale in config.feature_scales:
                networks = [config.slice_networks[branch.network] for branch in config.branches]
                kernel = config.feature_kernel if scale == 1 else 1
                widths = [network.widths[network.scales.index(scale)] for network in networks]
                outputs, random = config.fusion.injected_channels(scale), config.feature_start == "random"
                layer = FeatureLayer(scale, widths, outputs, kernel=kernel, random=random)
                self.features[str(scale)] = layer

    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], *, device: torch.device | str = "cpu"
    ) -> ScoreFusion:
        """Load a model folder, or a bundled model by name, in evaluation mode.

        It is float32 (whatever the file stores), its weights channels last.

        Args:
            model: a folder that :meth:`save_pretrained` wrote, or a name without a slash: a bundled model's,
                or failing that a folder's here.
            device: where the weights go.

        Raises:
            ScoreFusionError: for a name that is no model's, with the nearest one.
            BadInput: for a folder without its files, a configuration that does not validate, a pickled or
                damaged weights file, and missing, unexpected or mis-shaped tensors, each named.
        """
        with torch.device("meta"):
            result = cls(load_config(model))
        expected = {name: tuple(tensor.shape) for name, tensor in result.state_dict().items()}
        result.load_state_dict(load_weights(find_folder(model), expected, device=device), assign=True)
        return channels_last(result).eval()

    def save_pretrained(
        self, folder: str | PathLike[str], *, card: str, dtype: torch.dtype | None = None
    ) -> Path:
        """Write the configuration, weights and card; return the folder.

        The files are written beside and renamed, so an interrupted call leaves nothing under a final name.

        Args:
            folder: where to; made if missing, and files of the same names in it are replaced.
            card: Markdown: what the model saw, what it is for and not for, measured figures.
            dtype: stored type of the weights (``torch.float16`` halves the file); their own when None.

        Raises:
            BadInput: if the folder cannot be written.
            ScoreFusionError: if a weight does not fit ``dtype``.
        """
        return save_folder(self.config, self.state_dict(), folder, card=card, dtype=dtype)

    def prepare(
        self,
        condition: Tensor,
        *,
        origin: Sequence[int] = (0, 0, 0),
        full: Sequence[int] | None = None,
        measurement: Measurement | None = None,
    ) -> Inputs:
        """Pad the conditions and make the channels of position, mask and measurement.

        Args:
            condition: ``[B, C, D, H, W]`` in [-1, 1], C as ``config.conditions`` names them.
            origin: (z, y, x) of the box inside the whole volume.
            full: size of the whole volume; the box's own by default.
            measurement: of the first condition; the configuration's own by default.

        Raises:
            ScoreFusionError: for a wrong number of dimensions or channels.
        """
        names = self.config.conditions
        if condition.dim() != 5 or condition.shape[1] != len(names):
            got = condition.shape[1] if condition.dim() == 5 else "no"
            raise ScoreFusionError(
                f"condition has {got} channels, the model expects {len(names)} ({', '.join(names)}) as "
                f"[B, {len(names)}, D, H, W]; got shape {list(condition.shape)}"
            )
        size = (condition.shape[2], condition.shape[3], condition.shape[4])
        padded = pad(condition, self.config.grid(size))
        parts = []
        if self.config.position:
            shape, whole = padded.shape[2:], tuple(full or size)
            for axis in (2, 1, 0):  # x, y, z
                places = torch.arange(shape[axis], device=condition.device, dtype=condition.dtype)
                line = 2 * ((places + origin[axis]) / whole[axis]) - 1
                line = line.reshape([-1 if i == axis else 1 for i in range(3)])
                parts.append(line.expand(padded.shape[0], 1, *shape))
        if self.config.mask:
            parts.append((padded[:, :1] > -0.99).to(condition.dtype) * 2 - 1)
        measurement = measurement or self.config.degradation
        if measurement.channels:
            told = measurement.describe(padded.shape[2], origin[0], condition.device).to(condition.dtype)
            parts.append(told[None, :, :, None, None].expand(padded.shape[0], -1, *padded.shape[2:]))
        return Inputs(padded, torch.cat(parts, dim=1) if parts else None, size)

    def forward(
        self,
        x_t: Tensor,
        inputs: Inputs | Tensor,
        level: NoiseLevel,
        *,
        strategy: str | Strategy = "average",
        planes: Sequence[Plane] | None = None,
        step: int = 0,
        slab: int | None = None,
    ) -> Tensor:
        """Predict eps, v, x0 or F (as ``config.prediction`` says) for a noisy volume.

        Args:
            x_t: ``[B, 1, D, H, W]``, variance preserving: sqrt(abar)·x0 + sqrt(1-abar)·noise.
            inputs: from :meth:`prepare`, or the condition ``[B, C, D, H, W]`` itself.
            level: the noise level of each volume.
            strategy: one of :data:`.strategies.STRATEGIES`.
            planes: for ``single`` and ``alternate``, the planes to use (default: axial; all three).
            step: index of the denoising step; ``alternate`` takes plane ``step mod 3``.
            slab: slices a 2D network is given at once, rounded up to whole blocks of the coarsest feature
                scale; chosen by size when None.

        Returns:
            ``[B, 1, D, H, W]`` float32 (float64 for a float64 model).

        Raises:
            ScoreFusionError: for a strategy the model cannot run, or planes it has no branch for.
        """
        return fuse_scores(
            *self.unfused(x_t, inputs, level, strategy=strategy, planes=planes, step=step, slab=slab)
        )

    def unfused(
        self,
        x_t: Tensor,
        inputs: Inputs | Tensor,
        level: NoiseLevel,
        *,
        strategy: str | Strategy = "average",
        planes: Sequence[Plane] | None = None,
        step: int = 0,
        slab: int | None = None,
    ) -> Fusion:
        """Run the networks as :meth:`forward` does, and leave the fusing to ``ops.fuse_step``."""
        chosen = require_strategy(strategy, self.config)
        if isinstance(inputs, Tensor):
            inputs = self.prepare(inputs)
        x = self.seen(x_t, level)
        cycle = chosen.branches(self.config, planes)
        branches = cycle[step % len(cycle)]
        scores, totals = self.branch_outputs(
            x, inputs, level, branches, slab=slab, features=chosen.takes_features
        )
        maps = self.fusion_maps(x, inputs, level, scores, totals) if chosen.runs_volume else None
        return cropped(chosen.fuse(self.config, scores, maps), inputs.size)

    def eps(
        self,
        x_t: Tensor,
        condition: Inputs | Tensor,
        t: int | Tensor,
        *,
        strategy: str | None = None,
        planes: Sequence[Plane] | None = None,
    ) -> Tensor:
        """Predict the noise at integer timesteps of the paper's 1000-step sampling schedule.

        Args:
            x_t: ``[B, 1, D, H, W]``.
            condition: ``[B, C, D, H, W]`` in [-1, 1], or what :meth:`prepare` made of it.
            t: one timestep 0 .. 999, or one for each volume, ``[B]``.
            strategy: one of :data:`.strategies.STRATEGIES`; the model's own when None.
            planes: as in :meth:`forward`.

        Returns:
            ``[B, 1, D, H, W]``, whatever the network itself predicts.

        Raises:
            ScoreFusionError: for a timestep outside the schedule, and as :meth:`forward`.
        """
        schedule = torch.from_numpy(paper_sampling().abar.copy())
        steps = torch.as_tensor(t, device=x_t.device).reshape(-1).expand(x_t.shape[0])
        if steps.is_floating_point() or not ((steps >= 0) & (steps < len(schedule))).all():
            raise ScoreFusionError(f"t must be integers within 0..{len(schedule) - 1}, got {steps.tolist()}")
        level = NoiseLevel(schedule.to(x_t.device)[steps], steps.to(torch.int64))
        strategy = strategy or self.config.sampling.strategy
        output = self(x_t, condition, level, strategy=strategy, planes=planes)
        if self.config.prediction == "eps":
            return output
        p, q = prediction_coefficients(self.config.prediction, level.abar, self.config.sigma_data)
        signal, noise = level.abar.sqrt(), (1 - level.abar).sqrt()
        factors = ((1 - signal * p) / noise, -signal * q / noise)
        own, other = (factor.to(x_t.dtype)[:, None, None, None, None] for factor in factors)
        return own * x_t + other * output

    def fuse(
        self,
        x: Tensor,
        inputs: Inputs,
        level: NoiseLevel,
        scores: Scores,
        totals: dict[int, Tensor],
        strategy: Strategy = FUSE,
    ) -> Tensor:
        """Run the 3D network on the branches' outputs and fuse: ``[B, 1, D, H, W]`` on the padded grid."""
        maps = self.fusion_maps(x, inputs, level, scores, totals)
        return fuse_scores(*strategy.fuse(self.config, scores, maps))

    def branch_outputs(
        self,
        x: Tensor,
        inputs: Inputs,
        level: NoiseLevel,
        chosen: Sequence[int] | None = None,
        *,
        slab: int | None = None,
        features: bool = False,
    ) -> tuple[Scores, dict[int, Tensor]]:
        """Run branches slab by slab on a padded and scaled ``x [B, 1, D, H, W]``.

        Returns:
            The chosen branches' outputs (all of them by default), each a view ``[B, 1, D, H, W]`` of a stack
            of slices in the network's dtype, and with ``features`` the feature layers' sums by scale,
            ``[B, C, D/s, H/s, W/s]``.
        """
        config = self.config
        chosen = range(len(config.branches)) if chosen is None else chosen
        batch, size = x.shape[0], x.shape[2:]
        layers = self.feature_layers if features else {}
        b: dict[str, Tensor] = {"seen": x, "condition": inputs.condition}
        if inputs.common is not None:
            b["common"] = inputs.common
        for scale, layer in layers.items():
            b[f"total.{scale}"] = layer.start(size, batch)
        for k in chosen:
            plane, name = config.branches[k].plane, config.branches[k].network
            network = cast(UNet, self.slice_networks[name])
            dtype = next(network.parameters()).dtype
            time = network_time(network.config, level, config.halved_slice_time)
            label = torch.full((1,), PLANES.index(plane), device=x.device)
            count = x.shape[AXIS[plane]]
            plane_size = [length for place, length in enumerate(size, start=2) if place != AXIS[plane]]
            b[f"scores.{k}"] = x.new_empty(batch, count, 1, *plane_size, dtype=dtype)
            for start, stop in slabs(count, slab_rows(count, x.numel() // count, config.block, slab)):
                cut = gather_slab(b, config, k, start, stop, dtype)
                times = time.repeat_interleave(stop - start)
                outputs = network.forward_with_features(
                    cut, times, tuple(layers), label=label.expand(len(times))
                )
                keep_slab(b, layers, k, plane, start, outputs)
        return scores_of(b, config, chosen), {scale: b[f"total.{scale}"] for scale in layers}

    @property
    def feature_layers(self) -> dict[int, FeatureLayer]:
        """The ensemble-2D-feature layers by scale."""
        return {int(scale): cast(FeatureLayer, layer) for scale, layer in self.features.items()}

    def fusion_maps(
        self, x: Tensor, inputs: Inputs, level: NoiseLevel, scores: Scores, totals: dict[int, Tensor]
    ) -> Tensor:
        """Run the 3D network: ``[B, K, D, H, W]`` on the padded grid, weights and a residual."""
        if self.fusion is None:
            name = self.config.name
            raise ScoreFusionError(f"model {name!r} has no fusion network; use strategy 'average'")
        stacked = torch.zeros(
            x.shape[0], self.config.volume_channels, *x.shape[2:], device=x.device,
            dtype=next(self.fusion.parameters()).dtype,
        ).contiguous(memory_format=torch.channels_last_3d)  # fmt: skip
        fill_channels(stacked, 0, [x, inputs.condition, inputs.common, *scores])
        return self.fusion(stacked, network_time(self.fusion.config, level), inject=totals)

    def scaled(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """``x_t [B, ...]`` times EDM's input scaling, which is 1 for every other prediction."""
        if not self.config.scales_input:
            return x_t
        scale = input_scale(self.config.prediction, level.abar, self.config.sigma_data)
        return x_t * scale.to(x_t.dtype).reshape(-1, *[1] * (x_t.dim() - 1))

    def seen(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """``x_t [B, 1, d, h, w]`` as the networks see it, scaled and padded, ``[B, 1, D, H, W]``."""
        return pad(self.scaled(x_t, level), self.config.grid(x_t.shape[2:]))


def network_time(config: UNetConfig, level: NoiseLevel, halved: bool = False) -> Tensor:
    """The number ``[B]`` float32 that a network is told; ``halved`` is for t of a 2000-step schedule."""
    if config.time.value == "step":
        return level.t / 2 if halved else level.t
    if config.time.value == "log_sigma":
        return 0.5 * (torch.log1p(-level.abar) - torch.log(level.abar))
    return level.t / 2 if halved else level.abar
