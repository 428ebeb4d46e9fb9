"""The settings of a translation: its options, checked and filled in before any file is read."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from scorefusion.diffusion.solvers import Table
from scorefusion.errors import ScoreFusionError, unknown_name
from scorefusion.models.config import PLANES, ModelConfig
from scorefusion.models.strategies import STRATEGIES, require_strategy, strategy_named
from scorefusion.models.table import table_for
from scorefusion.pipeline.options import Options, declared, documented, filled

SLICED = ("thickness", "gap", "profile", "spacing")  #: options that say how a scan was sliced
_SOLVER = ("solver", "steps", "eta", "start_abar")


class Settings:
    """The options of a translation with the model's own filled in. An object that is not changed.

    It has an attribute for each option of :class:`.options.Options`, and ``table`` for the solver's four.

    Args:
        config: the model.
        table: the solver; from the options when None.
        options: see :class:`.options.Options`.

    Raises:
        ScoreFusionError: for an unknown name or an impossible combination.
    """

    table: Table
    strategy: str

    @documented(Options)
    def __init__(self, config: ModelConfig, *, table: Table | None = None, **options: Unpack[Options]):
        values = filled(Options, options)
        solver = {name: values.pop(name) for name in _SOLVER}
        values["strategy"] = require_strategy(values["strategy"], config).name
        values["planes"] = tuple(values["planes"]) if values["planes"] else None
        if values["disagreement"] and len({branch.plane for branch in config.branches}) < 2:
            raise ScoreFusionError(f"model '{config.name}' has one plane; there is no disagreement of planes")
        sliced = [name for name in SLICED if values[name] is not None]
        if sliced and not config.degradation.of_each_scan:
            flags = ", ".join(f"--{name}" for name in sliced)
            raise ScoreFusionError(f"{flags}: of thick slices, which model '{config.name}' does not take")
        if solver["steps"] is None:
            solver["steps"] = config.sampling.steps_for(values["samples"])
        values["table"] = table or table_for(config, **solver)
        self.__dict__.update(values)
        self._check()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def changed(self, **values: Any) -> Settings:
        """Return a copy with other values of some attributes, checked."""
        other = copy.copy(self)
        other.__dict__.update(values)
        other._check()
        return other

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a result's bits, in types of JSON: the options that do, and the solver's numbers."""
        names = [name for name, option in declared(Options).items() if option.bits and name not in _SOLVER]
        given = {name for name in SLICED if self.__dict__[name] is not None}  # others leave older identities
        values = {name: self.__dict__[name] for name in names if name in given or name not in SLICED}
        planes = list(self.planes) if self.planes else None
        return values | {"planes": planes, "solver": self.table.name, "table": self.table.rows.tolist()}

    def _check(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise ScoreFusionError(
                f"samples and batch must be at least 1, got {self.samples} and {self.batch}"
            )
        if not -(2**63) <= self.seed < 2**64:
            raise ScoreFusionError(f"a seed must be within [-2^63, 2^64), got {self.seed}")
        for name in ("thickness", "gap", "spacing"):
            value = self.__dict__.get(name)
            if value is not None and not (math.isfinite(value) and (value > 0 or name == "gap")):
                least = "a number" if name == "gap" else "a number above 0"
                raise ScoreFusionError(f"--{name} must be {least} of mm, got {value:g}")
        for plane in self.planes or ():
            if plane not in PLANES:
                raise unknown_name("plane", plane, PLANES)
        strategy = strategy_named(self.strategy)
        if self.planes and not strategy.takes_planes:
            able = " and ".join(name for name, each in STRATEGIES.items() if each.takes_planes)
            raise ScoreFusionError(f"planes are for strategies {able}; '{strategy}' uses them all")
        if self.disagreement and not strategy.every_plane:
            able = ", ".join(name for name, each in STRATEGIES.items() if each.every_plane)
            raise ScoreFusionError(
                f"the planes' disagreement needs a strategy that runs them all at each step: {able}; "
                f"'{strategy}' does not"
            )
        for name, option in declared(Options).items():
            value = self.__dict__.get(name)
            if option.choices and value is not None and value not in option.choices:
                noun = "treatment of NaN" if name == "nan" else name.replace("_", " ")
                raise unknown_name(noun, value, option.choices)
