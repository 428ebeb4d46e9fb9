"""Ray: a cluster that is there, or one started on this machine; and how many workers of what size fit."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scorefusion.batch.work import Work
from scorefusion.errors import ScoreFusionError
from scorefusion.optional import need

_OBJECTS = 80 * 2**20
"""Bytes of Ray's object store: only items and outcomes pass through it. Ray asks for 75 MiB at least."""


@dataclass(frozen=True)
class Cluster:
    """Ray, connected, and what each worker gets of it.

    Attributes:
        workers: at most this many.
        cpus: cores of each.
        gpus: GPUs of each: 0 or 1.
        elsewhere: whether it may have other machines than this one.
    """

    workers: int
    cpus: int
    gpus: int
    elsewhere: bool

    @property
    def device(self) -> str:
        """What the workers compute on: ``cpu`` or ``cuda``; which GPU, Ray decides."""
        return "cuda" if self.gpus else "cpu"

    def work(self, work: Work) -> Work:
        """The work as it is sent: with this device, and paths that do not depend on a current folder."""
        model, engines = (
            str(Path(each).absolute()) if each is not None and Path(each).is_dir() else each
            for each in (work.model, work.engines)
        )
        return replace(work, device=self.device, model=model or work.model, engines=engines)

    def recipe(self, work: Work) -> dict[str, Any]:
        """``work.recipe()`` as it is on a machine with the workers' device.

        Raises:
            ScoreFusionError: for what the model or that machine cannot do.
        """
        if not self.elsewhere:
            return work.recipe()
        ray = need("ray", "--ray")
        task = ray.remote(_recipe).options(num_cpus=self.cpus, num_gpus=self.gpus)
        try:
            return ray.get(task.remote(work))
        except ray.exceptions.RayTaskError as error:
            raise ScoreFusionError(f"a machine of the Ray cluster cannot do it ({error.cause})") from error


@contextmanager
def connected(
    address: str = "local", *, device: str = "auto", workers: int | None = None
) -> Iterator[Cluster]:
    """Connect to a Ray cluster, or start Ray on this machine and stop it at the end.

    What is started answers only to those who have its token, which this process makes.

    Args:
        address: of a cluster, as ``ray.init`` takes it, or ``auto``; ``local`` starts Ray. A
            connection that this process has already is used and kept.
        device: ``cpu``, ``cuda`` or ``auto``: GPUs where there are any.
        workers: how many at most; None for one on each GPU, without GPUs one on each machine.

    Raises:
        ScoreFusionError: if Ray is not installed, the cluster does not answer, or has not what is asked for.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ScoreFusionError(f"with Ray a device is auto, cpu or cuda; Ray chooses which; got '{device}'")
    if workers is not None and workers < 1:
        raise ScoreFusionError(f"there must be a worker, got {workers}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = address == "local"
    if local:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: whatever else runs would go first
    ray = need("ray", "--ray")
    if ray.is_initialized():
        yield _plan(ray.nodes(), device, workers, elsewhere=not local)
        return
    folder = tempfile.mkdtemp(prefix="sf-ray-") if local else None
    try:
        _start(ray, address, folder)
        yield _plan(ray.nodes(), device, workers, elsewhere=not local)
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, address: str, folder: str | None) -> None:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if folder is not None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECTS, "_temp_dir": folder}
        options["_node_ip_address"] = "127.0.0.1"
    # Ray gives its own processes half a minute to come up, which a busy machine may not keep to.
    for attempt in range(1 if folder is None else 2):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if attempt or folder is None:
                what = "Ray cannot be started here" if folder else f"no Ray cluster answers at {address}"
                raise ScoreFusionError(f"{what} ({error})") from error


def _plan(nodes: Sequence[dict[str, Any]], device: str, workers: int | None, *, elsewhere: bool) -> Cluster:
    """How many workers of what size, from what Ray says of its machines."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [int(each.get("GPU", 0)) for each in resources]
    cores = [int(each.get("CPU", 0)) for each in resources]
    if device == "cuda" and not sum(gpus):
        raise ScoreFusionError("no machine of the Ray cluster has a GPU; leave --device out, or give cpu")
    if sum(gpus) and device != "cpu":
        share = min(core // gpu for core, gpu in zip(cores, gpus, strict=True) if gpu)
        return Cluster(min(workers or sum(gpus), sum(gpus)), max(1, share), 1, elsewhere)
    if not sum(cores):
        raise ScoreFusionError("no machine of the Ray cluster has a core to spare")
    wanted = min(workers or sum(core > 0 for core in cores), sum(cores))
    share = max(n for n in range(1, max(cores) + 1) if sum(core // n for core in cores) >= wanted)
    return Cluster(wanted, share, 0, elsewhere)


def _recipe(work: Work) -> dict[str, Any]:
    return work.recipe()
