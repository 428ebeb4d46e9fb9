"""MONAI: a dictionary transform, and the inferer and evaluator that an exported bundle runs.

``import scorefusion.embed.monai`` needs MONAI: pip install 'scorefusion[monai]'.
"""

import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform

from scorefusion.embed.lazy import LazyPipeline
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io import FORMATS
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.pipeline import Machine, Pipeline, Translation, declared

__all__ = ["FusionInferer", "ScoreFusiond", "Translations", "datalist"]


def _native(result: Translation) -> Any:
    """Return the result as what its input was, and issue its warnings, which that has no place for."""
    for text in result.warnings:
        warnings.warn(text, stacklevel=3)
    return result.native()


class ScoreFusiond(MapTransform):
    """Translate the images under ``keys``, one a condition, and put the result under ``output_key``.

    It can be pickled, and loads its model when it first runs, once a process. An image is a MetaTensor
    ``[1, i, j, k]``, as ``LoadImaged`` with ``ensure_channel_first`` gives it, or anything else that the
    pipeline takes; the result is of the same kind. Warnings of the translation are issued by :mod:`warnings`.

    Args:
        keys: of the conditions, in the model's order.
        model: a bundled model's name, or a model folder.
        output_key: where the result goes.
        allow_missing_keys: leave a dictionary as it is that lacks one of the keys.
        options: of :class:`~scorefusion.Pipeline` (``device``, ...) and of its call (``steps``, ...).

    Raises:
        ScoreFusionError: when it first runs, as :class:`~scorefusion.Pipeline` does.
        KeyError: for a dictionary without one of the keys, unless that is allowed.
    """

    def __init__(
        self,
        keys: KeysCollection,
        model: str | os.PathLike[str] = "auto",
        output_key: str = "pred",
        *,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pipeline = LazyPipeline(
            model, **{name: options.pop(name) for name in declared(Machine) if name in options}
        )
        self.output_key, self.options = output_key, options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A dictionary with the result beside what it had."""
        found = dict(data)
        if missing := [key for key in self.keys if key not in found]:
            if self.allow_missing_keys:
                return found
            raise KeyError(f"ScoreFusiond needs the keys {list(self.keys)}; {missing} are missing")
        found[self.output_key] = _native(self.pipeline()([found[key] for key in self.keys], **self.options))
        return found


class FusionInferer(Inferer):
    """Translate with a network that is a :class:`~scorefusion.ScoreFusion`.

    Args:
        device: where to compute.
        dtype: what the networks compute in.
        options: of the pipeline's call, such as ``steps`` and ``seed``.
    """

    def __init__(self, device: str = "auto", dtype: str = "auto", **options: Any) -> None:
        super().__init__()
        self.device, self.dtype, self.options = device, dtype, options
        self._made: tuple[ScoreFusion, Pipeline] | None = None

    def __call__(
        self, inputs: Any, network: Callable[..., Any], *args: Any, condition: Any = None, **kwargs: Any
    ) -> Any:
        """The result of one image, as what the first condition is.

        Args:
            inputs: a MetaTensor ``[1, i, j, k]``, or a list of them, one a condition.
            network: the model.
            args: none.
            condition: not taken; the conditions are ``inputs``.
            kwargs: options of the pipeline's call, before those given at the start.

        Raises:
            ScoreFusionError: for another network, and as :class:`~scorefusion.Pipeline`.
        """
        if not isinstance(network, ScoreFusion) or args or condition is not None:
            raise ScoreFusionError(
                f"FusionInferer takes images and a ScoreFusion network, got a {type(network).__name__}"
            )
        made = self._made
        if made is None or made[0] is not network:
            made = self._made = network, Pipeline(network, device=self.device, dtype=self.dtype)
        return _native(made[1](inputs, **{**self.options, **kwargs}))


class Translations:
    """Runs a bundle: every item of a data set through the inferer and what comes after, one at a time.

    Args:
        dataset: of dictionaries.
        keys: of the conditions, in the model's order.
        network: the model.
        inferer: what translates.
        postprocessing: such as saving ``pred``.
        output_key: where the result goes.
    """

    def __init__(
        self,
        dataset: Iterable[Mapping[Hashable, Any]],
        keys: Sequence[str],
        network: ScoreFusion,
        inferer: FusionInferer,
        postprocessing: Callable[[dict[Hashable, Any]], Any],
        output_key: str = "pred",
    ) -> None:
        self.dataset, self.keys, self.network, self.inferer = dataset, keys, network, inferer
        self.postprocessing, self.output_key = postprocessing, output_key

    def run(self) -> int:
        """Translate all; returns how many."""
        count = 0
        for item in self.dataset:
            result = self.inferer([item[key] for key in self.keys], self.network)
            self.postprocessing({**item, self.output_key: result})
            count += 1
        return count


def datalist(folder: str | os.PathLike[str], keys: Sequence[str]) -> list[dict[str, str]]:
    """The items of a folder: its NIfTI files, or with several conditions a folder of them for each.

    Args:
        folder: of ``NAME.nii.gz`` for one condition, of ``CONDITION/NAME.nii.gz`` for several.
        keys: names of the conditions.
    """
    places = [Path(folder)] if len(keys) == 1 else [Path(folder, key) for key in keys]
    named = [
        {
            path.name: str(path)
            for path in sorted(place.glob("*"))
            if path.name.lower().endswith(FORMATS[0].endings)
        }
        for place in places
    ]
    for place, files in zip(places, named, strict=True):
        if apart := sorted(files.keys() ^ named[0].keys()):
            raise BadInput(place, f"does not have the same names as {places[0]}: {', '.join(apart[:5])}")
    if not named[0]:
        raise BadInput(places[0], "holds no NIfTI files", "Set dataset_dir to a folder that does.")
    return [dict(zip(keys, (files[name] for files in named), strict=True)) for name in named[0]]
