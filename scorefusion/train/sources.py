"""Prepare what a training run starts from: stored volumes, warped variants, weights of trained models."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scorefusion import data
from scorefusion.data import Progress, Refused, Source
from scorefusion.data.synth import PAIRED, LabelCrops, Painting, label_files, rotation
from scorefusion.errors import ScoreFusionError
from scorefusion.io.nifti import read_grid
from scorefusion.models.config import DomainConfig, ModelConfig, read_config
from scorefusion.models.domain import canonical, is_known
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.unet import UNet
from scorefusion.train.checkpoint import CHECKPOINT, load
from scorefusion.train.config import TrainConfig, VariantConfig
from scorefusion.train.examples import CropSampler, contrasts_of, factors_of, needs_whole, whole_condition


def warp(source: np.ndarray, config: VariantConfig, random: np.random.Generator) -> np.ndarray:
    """One random variant of ``source [C, D, H, W]`` float32, sampled on a grid of its own voxel size."""
    from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter, zoom

    spacing = float(random.uniform(*config.spacing))
    axes = np.exp(random.normal(0, config.zoom, 3))
    angles = np.deg2rad(random.normal(0, config.rotation / 2, 3))
    size = np.array(source.shape[1:])
    grid = [max(int(length / spacing) // data.MULTIPLE, 1) * data.MULTIPLE for length in size]
    coarse = [max(4, round(length * spacing / config.bend_spacing) + 1) for length in grid]
    bends = random.normal(0, config.bend, (3, *coarse))

    matrix = rotation(angles) * (spacing / axes)[None, :]
    mesh = np.indices(grid, dtype=np.float32) - (np.array(grid, np.float32)[:, None, None, None] - 1) / 2
    middle = (size[:, None, None, None] - 1).astype(np.float32) / 2
    places = np.tensordot(matrix.astype(np.float32), mesh, 1) + middle
    options: dict[str, Any] = {"mode": "nearest", "output": np.float32}
    for place, bend in zip(places, bends.astype(np.float32), strict=True):
        place += zoom(bend, np.array(grid) / coarse, order=2, grid_mode=True, mode="nearest")
    blur = 0.5 * np.sqrt(max(spacing**2 - 1, 0.0))
    channels = []
    for channel in source:
        smooth = gaussian_filter(channel, blur, mode="nearest") if blur > 0 else channel
        coefficients = spline_filter(smooth, order=3, **options)
        channels.append(map_coordinates(coefficients, places, order=3, prefilter=False, **options))
    return np.stack(channels)


EVEN = 1.25  #: a model of cubic voxels takes voxels whose edges differ by up to this ratio
#: how volumes that a configuration names one by one are read: any that cannot be used is an error
PLAIN = data.DatasetConfig(root="", skip_broken=False)


def volumes_of(
    config: TrainConfig,
    model: ModelConfig,
    folder: Path,
    *,
    sources: Sequence[Source] | None = None,
    progress: Progress | None = None,
    refused: Refused | None = None,
) -> list[tuple[np.ndarray, float]]:
    """The training volumes of a run with the share of each, made where they are missing.

    Of ``sources`` alone, of :func:`sources_of`, if given.
    """
    extra = functools.partial(whole_condition, config=model) if needs_whole(model) else None
    settings = data.StoreSettings(
        seed=config.seed,
        intensity=model.intensity,
        factors=factors_of(model),
        variation=config.variants.model_dump_json(),
        extra=f"{model.degradation.model_dump_json()}|{model.residual.base}" if extra else "",
    )
    chosen = tuple(sources_of(config, model, refused)) if sources is None else sources
    return data.build_store(
        chosen,
        folder,
        settings,
        vary=lambda volume, random: warp(volume, config.variants, random),
        extra=extra,
        progress=progress,
        refused=refused,
    )


def with_labels(config: TrainConfig, folder: Path | None) -> TrainConfig:
    """The configuration with the folder of label maps that the command line names, if it names one.

    Raises:
        ScoreFusionError: for a run that learns from none.
    """
    if folder is None:
        return config
    if config.labels is None:
        raise ScoreFusionError("the configuration has no 'labels', so a folder of label maps has no use")
    return config.model_copy(update={"labels": config.labels.model_copy(update={"folder": str(folder)})})


def sampler_of(
    config: TrainConfig, model: ModelConfig, store: Sequence[tuple[np.ndarray, float]]
) -> CropSampler:
    """What a run's crops are drawn from: its stored volumes, and images of its label maps.

    Raises:
        BadInput: if the folder of label maps holds none.
        ScoreFusionError: if a model of several contrasts needs one that label maps give no image of.
    """
    labels = None
    if config.labels is not None:
        if not config.labels.folder:
            raise ScoreFusionError("the run learns from label maps; name their folder with --labels")
        files = label_files(Path(config.labels.folder).expanduser())
        kept = files[: len(files) - config.labels.hold_out]
        if not kept:
            raise ScoreFusionError(f"{len(files)} label maps, of which {config.labels.hold_out} are held out")
        names = tuple(canonical(name) for name in contrasts_of(model))
        labels = LabelCrops(kept, contrasts=names if len(names) > 1 else ()), config.labels.share
    alike = model.degradation.crops_measure_alike
    align = (1, 1, 1) if alike else factors_of(model)[0]
    return CropSampler(store, config.augment, align, labels=labels, turned=alike)


def sources_of(config: TrainConfig, model: ModelConfig, refused: Refused | None = None) -> Iterator[Source]:
    """The subjects that a run is trained on, with the files that the model needs of each."""
    names = tuple(canonical(name) for name in contrasts_of(model))
    for volume in config.volumes:
        named = volume.files or dict.fromkeys(names if len(names) == 1 else (), volume.file or "")
        files = {canonical(name): Path(file).expanduser() for name, file in named.items()}
        missing = [name for name in names if name not in files]
        if missing:
            have = ", ".join(files) or volume.file
            raise ScoreFusionError(
                f"model {model.name!r} needs {', '.join(names)} of each training volume; one that has {have} "
                f"lacks {', '.join(missing)}"
            )
        subject = data.Subject(files[names[0]].name, files[names[0]].name, files)
        yield Source(subject, names, PLAIN, volume.variants, volume.share, volume.region)
    for part in config.datasets:
        reading = part.data.model_copy(update={"contrasts": names})
        found = data.find_subjects(reading)
        for refusal in found.refused:
            if refused:
                refused(refusal)
        for subject in found.subjects:
            yield Source(subject, names, reading, part.variants, part.share / len(found.subjects))


def domain_of(config: TrainConfig, model: ModelConfig) -> dict[str, DomainConfig]:
    """What a run's data make each condition of its model fit for: voxel sizes, and a usual contrast.

    What ``config.domain`` says counts before what is measured.

    Args:
        config: the run; only headers of its files are read.
        model: what is trained.

    Raises:
        BadInput: for a file or dataset that cannot be used.
    """
    voxels, variants = [], config.variants.spacing
    for source in sources_of(config, model):
        file = source.subject.files[source.contrasts[0]]
        voxel = np.array(read_grid(file, assume_affine=source.reading.assume_affine).voxel[::-1])
        voxels += [voxel, *(voxel * factor for factor in (variants if source.variants else ()))]
    if config.labels is not None:
        painting = PAIRED if len(contrasts_of(model)) > 1 else Painting()
        voxels += [np.full(3, edge) for edge in painting.voxel]
    domain = {}
    for place, name in enumerate(model.conditions):
        if place == 0 and model.degradation.of_each_scan:  # made for any voxel size
            domain[name] = config.domain.get(name, DomainConfig())
            continue
        sizes = np.array(voxels) * (model.degradation.factors if place == 0 else (1, 1, 1))
        ranges = [[float(f"{size:.4g}") for size in (axis.min(), axis.max())] for axis in sizes.T]
        ratio = float((sizes.max(axis=1) / sizes.min(axis=1)).max())
        found: dict[str, object] = {"spacing": ranges, "anisotropy": float(f"{max(ratio, EVEN):.4g}")}
        found |= {"contrasts": (canonical(name),)} if is_known(name) else {}
        given = config.domain[name].model_dump(exclude_unset=True) if name in config.domain else {}
        domain[name] = DomainConfig.model_validate(found | given)
    return domain


def take_weights(model: ScoreFusion, start_from: Mapping[str, str]) -> None:
    """Copy networks of trained models into ``model``.

    ``start_from`` is that of :class:`TrainConfig`; it may name a bundled model, too. A 2D network that sees
    one slice takes the weights of one that sees neighbours too, as if these were the slice itself.
    """
    for part, told in start_from.items():
        where, _, name = told.partition(":")
        source = _trained(where)
        given = _part(source, name or part, where)
        mine = _part(model, part, model.config.name)
        state = given.state_dict()
        if isinstance(given, UNet) and given.dims == 2 and model.config.context < source.config.context:
            state = _without_neighbours(given, source.config.context, model.config.context)
        try:
            mine.load_state_dict(state)
        except RuntimeError as error:
            raise ScoreFusionError(
                f"{part} of {model.config.name!r} cannot take the weights of {told!r}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from None


def _without_neighbours(network: UNet, context: int, wanted: int) -> dict[str, Tensor]:
    """The weights of a 2D network of one condition that is given its slice in place of the neighbours."""
    if wanted:
        raise ScoreFusionError(f"weights of context {context} are taken for context 0 only, not {wanted}")
    name = "encoder.0.weight"
    state = network.state_dict()
    cells, slices = network.config.patch**2, 2 * context + 1
    shown, rest = state[name].split([slices * cells, state[name].shape[1] - slices * cells], dim=1)
    return state | {name: torch.cat([shown.unflatten(1, (slices, cells)).sum(1), rest], dim=1)}


def _trained(where: str) -> ScoreFusion:
    """A trained model, or what a run has come to."""
    folder = Path(where)
    if not (folder / CHECKPOINT).is_file():
        return ScoreFusion.from_pretrained(where)
    model = ScoreFusion(read_config(TrainConfig, folder / "config.json").description)
    load(folder, ScoreFusion(model.config), model)
    return model


def _part(model: ScoreFusion, name: str, where: str) -> nn.Module:
    part: Any = model
    for each in name.split("."):
        part = getattr(part, each, None)
    if not isinstance(part, nn.Module):
        names = [f"slice_networks.{each}" for each in model.slice_networks]
        raise ScoreFusionError(
            f"{where!r} has no {name!r}; it has {', '.join([*names, 'fusion', 'features'])}"
        )
    return part
