"""How every item of a batch is translated, as a value that another process can be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scorefusion.batch.identity import model_hash
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import ModelConfig
from scorefusion.models.folder import load_config
from scorefusion.ops.device import choose_device, choose_dtype
from scorefusion.pipeline.settings import Settings


@dataclass(frozen=True)
class Work:
    """A model, the choices of a call, where it runs, and what is written. Pickles.

    Attributes:
        model: a bundled model's name, or a model folder.
        choices: of :meth:`scorefusion.Pipeline.settings`; the model's own are filled in.
        device: see :class:`scorefusion.Pipeline`, as all up to ``max_memory``.
        dtype: what the networks compute in.
        runner: how the 2D networks run.
        engines: folder of TensorRT engines.
        max_memory: the most that may be resident.
        level: of gzip, 1 to 9; 0 stores.
        spread: also write the standard deviation over the samples; where ``choices`` ask for the planes'
            disagreement, that is written as well.
        pictures: make small pictures for the report.
        dicom: also write each translation of a DICOM series as a derived series.
        deidentify: leave the patient out of it.
    """

    model: str = "t1-sr4"
    choices: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    runner: str = "auto"
    engines: str | None = None
    max_memory: str | int | None = None
    level: int = 1
    spread: bool = False
    pictures: bool = True
    dicom: bool = False
    deidentify: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        if not 0 <= self.level <= 9:
            raise ScoreFusionError(f"a gzip level is from 0 to 9, got {self.level}")
        if self.deidentify and not self.dicom:
            raise ScoreFusionError("only a derived DICOM series is de-identified; ask for it with --dicom")
        if self.spread and self.choices.get("samples", 1) < 2:
            raise ScoreFusionError("there is no spread of a single sample; ask for 2 samples or more")

    @property
    def sides(self) -> tuple[str, ...]:
        """What is written beside each translation."""
        planes = bool(self.choices.get("disagreement"))
        return ("sd",) * self.spread + ("planes",) * planes + ("dicom",) * self.dicom

    def config(self) -> ModelConfig:
        """The model's description.

        Raises:
            ScoreFusionError: for a name that is no model's.
        """
        return load_config(self.model)

    def settings(self) -> Settings:
        """The choices, checked, with the model's own filled in.

        Raises:
            ScoreFusionError: for an unknown name or an impossible combination.
        """
        return Settings.of(self.config(), **dict(self.choices))

    def recipe(self) -> dict[str, Any]:
        """What of it decides outputs' bits, as JSON takes it.

        Raises:
            ScoreFusionError: for a model, a device or a dtype that is not there.
        """
        dtype, settings = choose_dtype(self.dtype, choose_device(self.device)), self.settings()
        return {
            "model": model_hash(self.model),
            "settings": settings.identity,
            "at once": min(settings.batch, settings.samples),  # in another batch a sum is rounded otherwise
            "dtype": str(dtype).removeprefix("torch."),
            "max_memory": self.max_memory,
            "level": self.level,
            "sides": list(self.sides),
            **({"deidentify": True} if self.deidentify else {}),
        }
