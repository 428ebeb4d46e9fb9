"""Distances of the set of results from the set of truths: FID and MMD of 3D features, and MMD of voxels.

Features are means over cubes of the maps of ``random``, a small network; of ``deepbet``, the encoder of one
trained on about 8,000 T1 volumes (Fisch et al. 2024, MIT licence), if installed; or of a TorchScript file.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scorefusion.errors import BadInput, ScoreFusionError, out_of_memory, unknown_name
from scorefusion.evaluate.cases import FOREGROUND
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.statistics import Estimate, gather, jackknife, left_out
from scorefusion.metrics import Moments, discrepancy, frechet_distance, paired_terms, squared_distances

CUBE, STEP = 32, 16  #: edge of a cube and distance of neighbouring ones, in voxels
NAMES = ("random", "deepbet")
_RANDOM = "Three 3D convolutions of 16, 32 and 64 channels with random weights, fixed by seed 0."

Maps = Callable[[Tensor], Sequence[Tensor]]
Keys = Sequence[Mapping[str, str]]
Crowds = list[np.ndarray]

_VOXELS = 1 << 18  #: how many voxels of each volume are compared at a time


def set_distances(
    keys: Keys,
    rows: Sequence[str],
    store: Store,
    networks: Sequence[FeatureNetwork],
    *,
    persons: Sequence[str],
) -> dict[str, dict[str, Estimate]]:
    """By row ``fid NETWORK``, ``mmd NETWORK``, ``mmd voxels``, with the jackknife's intervals over persons.

    ``keys`` holds the stored volumes of each subject by row name and ``truth``. What too few vectors or
    persons, or boxes of several sizes, do not give is left out.
    """
    found: dict[str, dict[str, Estimate]] = {row: {} for row in rows}
    for network in networks:
        true = _crowds(keys, "truth", store, network, persons)
        vectors = np.concatenate(true).astype(np.float64)
        width = _median(squared_distances(vectors, vectors))
        for row in rows:
            crowds = _crowds(keys, row, store, network, persons)
            if sum(map(len, crowds)) < 2 or not width > 0.0:
                continue
            moments = [list(map(Moments.of, several)) for several in (crowds, true)]
            found[row][f"fid {network.name}"] = _estimate(len(true), partial(_frechet, moments))
            exact = [[each.astype(np.float64) for each in several] for several in (crowds, true)]
            found[row][f"mmd {network.name}"] = _estimate(len(true), partial(_discrepancy, exact, width))
    # Of the normalised volumes themselves: one kernel width for all rows, as for features.
    truths = [store.volume(each["truth"]) for each in keys]
    members = gather(range(len(keys)), persons)
    if len(members) < 2 or len({truth.shape for truth in truths}) > 1:
        return found
    within = _apart(truths, truths)
    width = _median(within)
    if not width > 0.0:
        return found
    for row, figures in found.items():
        results = [store.volume(each[row]) for each in keys]
        terms = paired_terms(_apart(results, results), within, _apart(results, truths), width)
        between = [[terms[np.ix_(one, other)].mean() for other in members] for one in members]
        figures["mmd voxels"] = _estimate(len(members), partial(_paired, np.array(between)))
    return found


def _estimate(count: int, figure: Callable[[Sequence[int]], float]) -> Estimate:
    return jackknife(figure(range(count)), left_out(count, figure) if count > 2 else [], count)


def _frechet(both: Sequence[Sequence[Moments]], kept: Sequence[int]) -> float:
    return frechet_distance(*(sum((each[k] for k in kept[1:]), start=each[kept[0]]) for each in both))


def _discrepancy(both: Sequence[Crowds], width: float, kept: Sequence[int]) -> float:
    one, other = (np.concatenate([several[k] for k in kept]) for several in both)
    return discrepancy(one, other, width)


def _paired(terms: np.ndarray, kept: Sequence[int]) -> float:
    """The mean of the terms of two different persons."""
    count, some = len(kept), terms[np.ix_(kept, kept)]
    return float((some.sum() - np.trace(some)) / (count * (count - 1)))


def _apart(some: Crowds, others: Crowds) -> np.ndarray:
    """Squared distances ``[N, M]`` of volumes, in float64 without a copy of them all."""
    total = np.zeros((len(some), len(others)))
    for first in range(0, some[0].size, _VOXELS):
        part = slice(first, first + _VOXELS)
        rows = ([volume.ravel()[part] for volume in volumes] for volumes in (some, others))
        total += squared_distances(*(np.array(row, np.float64) for row in rows))
    return total


def _crowds(keys: Keys, row: str, store: Store, network: FeatureNetwork, persons: Sequence[str]) -> Crowds:
    found = []
    for each in keys:
        key = store.key(f"features {network.name}", network=network.description, volume=each[row])
        vectors = store.array(key)
        if vectors is None:
            truth = store.volume(each["truth"])
            vectors = network.vectors(store.volume(each[row]), truth > FOREGROUND)
            store.put_array(key, vectors)
        found.append(vectors)
    return [np.concatenate(several) for several in gather(found, persons)]


def _median(apart: np.ndarray) -> float:
    """The median squared distance of two different ones."""
    pairs = apart[np.triu_indices(len(apart), 1)]
    return float(np.median(pairs)) if pairs.size else 0.0


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that turns a volume into feature maps."""

    name: str  #: ``random``, ``deepbet``, or the file's stem
    description: str  #: one sentence for tables and documents
    maps: Maps  #: ``[1, 1, D, H, W]`` normalised to feature maps ``[1, C, d, h, w]``, or vectors ``[1, C]``

    @torch.no_grad()
    def vectors(self, volume: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """float32 ``[cubes, F]`` of a normalised volume ``[D, H, W]``: each map's mean over a cube.

        A cube counts if at least half of it is inside, or it is the fullest. A vector is one row.
        """
        maps = self.maps(torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None, None])
        if all(each.dim() == 2 for each in maps):
            return torch.cat([each.float() for each in maps], dim=1).cpu().numpy()
        share = _cubes(torch.from_numpy(inside.astype(np.float32))[None, None], volume.shape)[0]
        means = torch.cat([_cubes(each.float().cpu(), volume.shape) for each in maps], dim=0)
        counted = share >= min(0.5, float(share.max()))
        return means[:, counted].T.contiguous().numpy()


def feature_network(name: str) -> FeatureNetwork:
    """Return ``random``, ``deepbet``, or the network of a TorchScript file.

    That takes ``[1, 1, D, H, W]`` normalised to [-1, 1] and returns a map ``[1, C, d, h, w]`` or a vector
    ``[1, C]``. Raises BadInput for a file that cannot be read, ScoreFusionError for an unknown name, or
    ``deepbet`` where it is not installed.
    """
    if name == "random":
        return FeatureNetwork("random", _RANDOM, random_network(0))
    if name == "deepbet":
        text = "deepbet 1.0's encoder (ResNet-18, 3D), trained to find brains in about 8,000 T1 volumes."
        return FeatureNetwork("deepbet", text, _deepbet())
    file = Path(name)
    if not file.suffix:
        raise unknown_name("feature network", name, (*NAMES, "FILE.pt"))
    script = _torchscript(file)
    return FeatureNetwork(file.stem, f"The TorchScript network {file.name}.", lambda volume: [script(volume)])


def random_network(seed: int) -> Maps:
    """Three 3D convolutions with random weights, normal, of variance 2/fan-in, less their mean.

    Random filters tell textures apart (Saxe et al. 2011), and favour no contrast or anatomy.
    """
    generator = torch.Generator().manual_seed(seed)
    weights, inputs = [], 1
    for width in (16, 32, 64):
        weight = torch.randn(width, inputs, 3, 3, 3, generator=generator)
        weight -= weight.mean(dim=(1, 2, 3, 4), keepdim=True)
        weights.append(weight * math.sqrt(2.0 / weight[0].numel()))
        inputs = width

    def maps(volume: Tensor) -> list[Tensor]:
        found = []
        for number, weight in enumerate(weights):
            padded = F.pad(volume, (1,) * 6, mode="replicate")
            volume = F.leaky_relu(F.conv3d(padded, weight, stride=1 if number == 0 else 2), 0.2)
            found.append(volume)
        return found

    return maps


def _deepbet() -> Maps:
    """The first three stages of the package's network: 16, 32 and 64 channels, 4, 8 and 16 voxels apart."""
    try:
        files = importlib.metadata.files("deepbet") or []
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install --no-deps deepbet==1.0.2 (17 MB, MIT licence), or use --features random"
        raise ScoreFusionError(f"feature network 'deepbet' needs the package deepbet; {fix}") from None
    found = next((file for file in files if file.parts[-2:] == ("models", "model.pt")), None)
    if found is None:
        raise ScoreFusionError("the package deepbet holds no models/model.pt; pip install deepbet==1.0.2")
    weights = _torchscript(Path(str(found.locate()))).state_dict()

    def maps(volume: Tensor) -> list[Tensor]:
        if min(volume.shape[2:]) <= 16:
            needed = "deepbet's features need more than 16 voxels along each axis"
            raise ScoreFusionError(f"{needed}, got {list(volume.shape[2:])}")
        low, high = (float(q) for q in np.quantile(volume.numpy(), (0.005, 0.995)))
        scaled = ((volume - low) / max(high - low, 1e-6)).clamp(0.0, 1.0)
        scaled = 0.226 * (scaled - scaled.mean()) / scaled.std() + 0.449  # As the network was trained.
        x = F.conv3d(scaled, weights["init.0.weight"], stride=2, padding=3)
        x = F.max_pool3d(F.instance_norm(x).relu(), 3, 2, 1)
        stages = []
        for stage in ("down0", "down1", "down2"):
            for block in ("block1", "block2"):
                x = _residual_block(x, weights, f"{stage}.{block}")
            stages.append(x)
        return stages

    return maps


def _residual_block(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Two 3×3×3 convolutions without bias, each normalised by instance, and what they are added to."""
    down = weights.get(f"{name}.downsample.0.weight")
    stride = 1 if down is None else 2
    kept = x if down is None else F.instance_norm(F.conv3d(x, down, stride=stride))
    x = F.conv3d(x, weights[f"{name}.double_conv.0.weight"], stride=stride, padding=1)
    x = F.conv3d(F.instance_norm(x).relu(), weights[f"{name}.double_conv.3.weight"], padding=1)
    return (F.instance_norm(x) + kept).relu()


def _torchscript(file: Path) -> Any:
    if not file.is_file():
        raise BadInput(file, "does not exist", f"Name a TorchScript file, or one of {', '.join(NAMES)}.")
    try:
        return torch.jit.load(str(file), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise
        problem = f"is not a TorchScript network ({str(error).splitlines()[0]})"
        raise BadInput(file, problem, "Save it by torch.jit.script or torch.jit.trace.") from None


def _cubes(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Means ``[C, cubes]`` of maps ``[1, C, d, h, w]`` over the cubes of a volume of ``size``."""
    kernel, step = [], []
    for length, full in zip(maps.shape[2:], size, strict=True):
        kernel.append(max(1, round(min(CUBE, full) * length / full)))
        step.append(max(1, round(STEP * length / full)))
    count = [max(0, full - CUBE) // STEP + 1 for full in size]
    means = F.avg_pool3d(maps, kernel, step)
    return means[0, :, : count[0], : count[1], : count[2]].flatten(1)
