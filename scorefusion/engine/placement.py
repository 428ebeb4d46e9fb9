"""Which device does what where there are several: whole volumes if there are enough, else branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scorefusion.engine.planning.forecast import Forecast
from scorefusion.errors import ScoreFusionError


@dataclass(frozen=True)
class Placement:
    """Work by device.

    Attributes:
        devices: their names, such as "cuda:0".
        volumes: of the batch, the (first, last + 1) that each device draws; None where branches are placed.
        branches: the device's place in ``devices`` for each branch's number; None where volumes are placed.
        flop: of a step on each device. With branches placed, the first device also runs the 3D network, after
            all branches are done.
        serial_flop: of these, what no other device works beside.
    """

    devices: tuple[str, ...]
    volumes: tuple[tuple[int, int], ...] | None
    branches: dict[int, int] | None
    flop: tuple[int, ...]
    serial_flop: int

    @property
    def speedup(self) -> float:
        """One device's arithmetic over that of the longest chain: a bound, since copies are not counted."""
        if self.volumes is not None:
            return sum(self.flop) / max(self.flop)
        first = self.flop[0] - self.serial_flop
        return sum(self.flop) / (max(first, *self.flop[1:], 0) + self.serial_flop)


def place(found: Forecast, devices: Sequence[str]) -> Placement:
    """Share a step among devices.

    With a batch of at least as many volumes, each device draws its own: nothing is exchanged. Else each
    branch goes to a device, the longest first to the one with least to do; scores and features to the first.

    Args:
        found: of the step on one device.
        devices: names, at least one; the same name may come twice.

    Raises:
        ScoreFusionError: for no devices.
    """
    if not devices:
        raise ScoreFusionError("a placement needs at least one device; got none")
    names, batch = tuple(devices), found.plan.batch
    if batch >= len(names) or found.plan.strategy in ("volume", "single", "alternate"):
        used = names[: min(batch, len(names))]
        edges = [round(place * batch / len(used)) for place in range(len(used) + 1)]
        volumes = tuple(zip(edges, edges[1:], strict=False))
        flop = tuple(found.flop * (last - first) // batch for first, last in volumes)
        return Placement(used, volumes, None, flop, 0)
    config, branches = found.plan.config, found.plan.branches
    planes = [config.branches[k].plane for k in branches]
    each = {
        k: found.slice_flop[plane] // planes.count(plane) + found.feature_flop // len(branches)
        for k, plane in zip(branches, planes, strict=True)
    }
    used = names[: len(branches)]
    load, where = [0] * len(used), {}
    for k in sorted(branches, key=lambda k: -each[k]):
        least = load.index(min(load))
        where[k] = least
        load[least] += each[k]
    load[0] += found.volume_flop
    return Placement(used, None, dict(sorted(where.items())), tuple(load), found.volume_flop)
