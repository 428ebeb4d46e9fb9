"""A training run as one frozen, validated object; read from JSON or TOML and saved beside each checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scorefusion.data import DatasetConfig
from scorefusion.models.config import DomainConfig, Frozen, ModelConfig
from scorefusion.models.presets import preset


class VolumeConfig(Frozen):
    """A training subject: its NIfTI files, how many warped variants to make of it, its share of the crops.

    ``file`` is for a model that needs one contrast; ``files`` names a file for each. ``region`` keeps to
    (start, stop) along z, y and x of the volume in RAS+ order, null for all of an axis.
    """

    file: str | None = None
    files: dict[str, str] = {}
    variants: int = 0
    share: float = 1.0
    region: tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[int, int] | None] = (None, None, None)

    @model_validator(mode="after")
    def _check(self) -> VolumeConfig:
        if (self.file is None) == (not self.files):
            raise ValueError("name either one file, or files by contrast")
        return self


class FolderConfig(Frozen):
    """All subjects of a dataset that a split gives, with the variants of each and their share together."""

    data: DatasetConfig
    variants: int = 0
    share: float = 1.0


class LabelConfig(Frozen):
    """A folder of label maps that images are painted of, while the run goes; their share of the crops.

    The last ``hold_out`` files by name are left out: choices may be made on them.
    """

    folder: str = ""
    share: float = 1.0
    hold_out: int = Field(default=0, ge=0)


class VariantConfig(Frozen):
    """How a warped variant differs from its source.

    ``spacing`` is the range of voxel sizes relative to the source (1 to 2: as sharp to half as sharp),
    ``zoom`` the standard deviation of ln(scale) of the head, ``rotation`` in degrees, ``bend`` the standard
    deviation of the smooth displacement in source voxels.
    """

    spacing: tuple[float, float] = (1.0, 2.1)
    zoom: float = 0.06
    rotation: float = 8.0
    bend: float = 2.0
    bend_spacing: int = 28


class AugmentConfig(Frozen):
    """Random changes of a crop; a probability for each, and how strong."""

    flip: bool = True
    gamma: float = 0.25
    remap: float = 0.3
    sharpen: float = 0.8
    bias: float = 0.15
    noise: float = 0.04
    noise_probability: float = 0.5


class StageConfig(Frozen):
    """One stage: what is trained, on what, for how long.

    Kinds: ``slices`` trains the 2D networks; ``patches`` trains the fusion network on crops with the 2D
    networks frozen; ``features`` trains the fusion network and the ensemble-2D-feature layers together, each
    step with and without the features, so that ``fuse`` and ``fuse+features`` are both kept; ``volume``
    trains the 3D network alone. ``crop`` None means whole volumes. The loss is ``l1·|d| + l2·d²`` on the
    network's output, and skips ``margin`` voxels at a crop's faces. ``cached`` keeps the branches' outputs of
    that many crops of a ``patches`` stage, and draws from these: the 2D networks run once for each.
    """

    kind: Literal["slices", "patches", "features", "volume"]
    steps: int
    batch: int = 1
    crop: int | None = 48
    margin: int = 0
    slices: int = 2
    learning_rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    l1: float = 0.0
    l2: float = 1.0
    clip: float = 1.0
    checkpointing: bool = False
    cached: int = 0
    ln_sigma_mean: float = 0.0
    ln_sigma_std: float = 1.4
    at_start: float = Field(default=0.0, ge=0, le=1)
    noise_levels: Literal["log-normal", "paper-training", "paper-sampling"] = "log-normal"

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if self.kind == "slices" and self.crop is None:
            raise ValueError("a slices stage needs a crop size")
        if self.cached and self.kind != "patches":
            raise ValueError(f"branch outputs can be cached in a patches stage, not in {self.kind!r}")
        if self.crop is not None and 2 * self.margin >= self.crop:
            raise ValueError(f"margin {self.margin} leaves nothing of a crop of {self.crop}")
        return self


class ValidationConfig(Frozen):
    """Volumes that a run is not trained on, to be looked at: ``boxes`` cubes of edge ``size`` of them.

    The places are drawn once, from the run's seed, and nothing is varied.
    """

    volumes: tuple[VolumeConfig, ...] = ()
    datasets: tuple[FolderConfig, ...] = ()
    boxes: int = Field(default=4, ge=1)
    size: int = Field(default=48, ge=1)

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        if not self.volumes and not self.datasets:
            raise ValueError("volumes and datasets are empty; name at least one NIfTI file")
        return self


class TrainConfig(Frozen):
    """The whole run."""

    model: str | ModelConfig  #: a preset's name or a full model description
    volumes: tuple[VolumeConfig, ...] = ()  #: training subjects, one by one
    datasets: tuple[FolderConfig, ...] = ()  #: and all those of datasets
    labels: LabelConfig | None = None  #: and images of label maps
    validation: ValidationConfig | None = None  #: what is looked at besides the loss
    #: weights of trained models: a network's name (``slice_networks.slice``, ``fusion``, ``features``) to a
    #: model folder or another run's, or to ``FOLDER:NETWORK`` where it has another name there
    start_from: dict[str, str] = {}
    stages: tuple[StageConfig, ...]  #: in order
    variants: VariantConfig = VariantConfig()  #: how warped copies differ from their source
    augment: AugmentConfig = AugmentConfig()  #: how every crop is varied
    seed: int = Field(default=0, ge=0)  #: of every random number
    device: Literal["auto", "cpu", "cuda"] = "auto"  #: the GPU where there is one, unless named
    #: what convolutions and matrix products compute in (the weights are float32): ``auto`` takes bfloat16
    #: where the processor is clearly faster at it
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    save_every: float = 60.0  #: seconds between checkpoints
    log_every: int = 20  #: steps between rows of the log
    #: steps between sample pictures, with the PSNR of ``validation``; each stage ends with one. 0: none.
    look_every: int = 500
    tensorboard: bool = True  #: write TensorBoard's events, too, if the package is installed
    #: processes that draw examples ahead; None: on a CPU none, on a GPU up to four
    workers: int | None = Field(default=None, ge=0)
    #: what the finished model was made for, by condition, where that is not measured: contrasts and voxel
    #: sizes are taken from the training data
    domain: dict[str, DomainConfig] = {}
    export: str | None = None  #: where the finished model goes
    export_dtype: Literal["float32", "float16"] = "float16"  #: the stored type of its weights

    @property
    def description(self) -> ModelConfig:
        """The model that is trained."""
        return self.model if isinstance(self.model, ModelConfig) else preset(self.model)

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if not self.volumes and not self.datasets and self.labels is None:
            raise ValueError("volumes and datasets are empty; name at least one NIfTI file")
        if strange := sorted(set(self.domain) - set(self.description.conditions)):
            raise ValueError(f"domain names {strange}, not conditions: {list(self.description.conditions)}")
        if not self.stages:
            raise ValueError("stages is empty; name at least one stage")
        return self
