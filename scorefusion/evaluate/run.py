"""Run every row on every subject: sample, interpolate, measure, and keep what is done."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefusion.data import Intensity, Prepared, Subject
from scorefusion.engine.planning.forecast import forecast
from scorefusion.engine.planning.plan import plan
from scorefusion.evaluate.baselines import Regression, baseline_volume
from scorefusion.evaluate.case import Case, Where, read_case
from scorefusion.evaluate.denoise_error import SIGMAS, denoising_errors
from scorefusion.evaluate.measure import VERSION, measure
from scorefusion.evaluate.methods import Contender, Method
from scorefusion.evaluate.shared_start import SharedStart
from scorefusion.evaluate.store import Store
from scorefusion.models.config import ModelConfig
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.pipeline.sample import missing_voxels

Progress = Callable[[int, int], None]

DENOISE_COST = 4 * len(SIGMAS)


@dataclass(frozen=True)
class Settings:
    """How everything is sampled.

    Attributes:
        seed: of the noise, the same for every row and subject.
        samples: drawn and averaged.
        denoise: whether to measure denoising errors too.
    """

    seed: int = 0
    samples: int = 1
    denoise: bool = True


@dataclass(frozen=True, eq=False)
class Results:
    """What was found.

    Attributes:
        subjects: in order.
        cases: name and person of each, its box and spacing; see :func:`describe_case`.
        records: for each subject, row name to its figures.
        keys: for each subject, row name (and ``truth``, ``labels``) to the stored volume.
        denoising: for each subject, contender name to strategy to errors by noise level.
        flop: row name to floating-point operations a volume, in the mean over subjects.
    """

    subjects: tuple[Subject, ...]
    cases: tuple[dict[str, Any], ...]
    records: tuple[dict[str, dict[str, Any]], ...]
    keys: tuple[dict[str, str], ...]
    denoising: tuple[dict[str, dict[str, list[float]]], ...]
    flop: Mapping[str, float]


def evaluate(
    main: Contender,
    others: Sequence[Contender],
    methods: Sequence[Method],
    subjects: Sequence[Subject],
    store: Store,
    *,
    where: Where,
    settings: Settings,
    regression: Regression | None = None,
    callback: Progress | None = None,
) -> Results:
    """Evaluate; what is in the store already is not computed again.

    Args:
        main: the model whose task it is.
        others: models beside it.
        methods: the rows.
        subjects: from :func:`~scorefusion.evaluate.case.find_cases`.
        store: of finished results.
        where: which part of each volume.
        settings: how to sample.
        regression: for the baseline of that name.
        callback: called with (work done, work in all), in about one plane's evaluation.

    Raises:
        BadInput: for a file that cannot be used.
        ScoreFusionError: if a result is not finite.
    """
    each = sum(_cost(method, settings) for method in methods)
    each += DENOISE_COST * (1 + len(others)) * settings.denoise
    work = _Work(callback, max(1, each * len(subjects)))
    cases, records, keys = [], [], []
    denoising: list[dict[str, dict[str, list[float]]]] = []
    device = next(main.model.parameters()).device
    for subject in subjects:
        case = read_case(subject, main.config, where, device=device)
        turn = _Turn(case, store, settings, regression)
        found: dict[str, dict[str, Any]] = {}
        stored = turn.truth()
        for method in methods:
            found[method.name], stored[method.name] = turn.run(method, found)
            work.add(_cost(method, settings))
        cases.append(describe_case(case))
        records.append(found)
        keys.append(stored)
        denoising.append({})
        if settings.denoise:
            for contender in (main, *others):
                denoising[-1][contender.name] = turn.denoise(contender)
                work.add(DENOISE_COST)
    sizes = [tuple(case["size"]) for case in cases]
    flop = {m.name: float(np.mean([flop_of(m, s, settings) for s in sizes])) for m in methods if m.contender}
    return Results(tuple(subjects), tuple(cases), tuple(records), tuple(keys), tuple(denoising), flop)


def describe_case(case: Case) -> dict[str, Any]:
    """What a report says of a subject."""
    box = case.known.box
    return {
        "name": case.name,
        "person": case.subject.group,
        "file": case.known.name,
        "size": list(box.size),
        "start": list(box.start),
        "whole": list(case.known.target.shape[2:]),
        "spacing": list(case.spacing),
        "data_range": case.data_range,
        "foreground": float(case.inside.mean()),
        "labelled": case.labels is not None,
    }


def flop_of(method: Method, size: Sequence[int], settings: Settings) -> float:
    """Floating-point operations of a row on a box, as ``forecast`` counts them."""
    assert method.contender is not None and method.run is not None
    config, run = method.contender.config, method.run
    step = forecast(plan(config, size, strategy=run.strategy, planes=run.planes), packed=False)
    flop = float(step.flop)
    if run.branches is not None:
        flop = 0.0
        for k in run.branches:
            plane = config.branches[k].plane
            flop += step.slice_flop[plane] / sum(branch.plane == plane for branch in config.branches)
    return flop * len(method.table) * settings.samples


def model_digest(model: ScoreFusion, config: ModelConfig) -> str:
    """SHA-256 of a model's weights, their dtype, and what of its configuration they are used by."""
    found = hashlib.sha256(config.model_dump_json(exclude={"sampling", "name"}).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class _Work:
    def __init__(self, callback: Progress | None, total: int) -> None:
        self.callback, self.total, self.done = callback, total, 0

    def add(self, cost: int) -> None:
        self.done += cost
        if self.callback is not None and cost:
            self.callback(self.done, self.total)


class _Turn:
    """One subject's turn: what its rows share."""

    def __init__(
        self, case: Case, store: Store, settings: Settings, regression: Regression | None = None
    ) -> None:
        self.case, self.store, self.settings, self.regression = case, store, settings, regression
        self.starts: dict[tuple[str, int], SharedStart] = {}
        self.given: dict[str, tuple[Prepared, Intensity]] = {}

    def truth(self) -> dict[str, str]:
        """Store the truth, and the label map if there is one; returns their keys by name."""
        parts = {"case": self.case.digest, "main": self._task()}
        keys = {"truth": self.store.key(f"{self.case.name} truth", **parts)}
        if self.store.record(keys["truth"]) is None:
            self.store.put(keys["truth"], describe_case(self.case), self.case.truth)
        if self.case.labels is not None:
            keys["labels"] = self.store.key(f"{self.case.name} labels", **parts)
            if self.store.array(keys["labels"]) is None:
                self.store.put_array(keys["labels"], self.case.labels.astype(np.int32))
        return keys

    def run(self, method: Method, found: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """A row's figures, and the key of its volume."""
        key = self.store.key(f"{self.case.name} {method.name}", **self._parts(method))
        record = self.store.record(key)
        if record is None:
            volume, seconds, each = self._volume(method)
            like = found.get(method.sampled or "", {}).get("each")
            if like is not None:
                # Its only evaluation is shared with other rows; it takes as long as the sample's others.
                seconds = like * self.settings.samples
            record = {**measure(volume, self.case), "seconds": seconds, "each": each, "version": VERSION}
            self.store.put(key, record, volume)
        elif record.get("version") != VERSION:
            # Stored volumes are rounded to 16 bits, too coarse for consistency alone.
            kept = {name: record[name] for name in ("consistency", "seconds", "each")}
            record = {**measure(self.store.volume(key), self.case), **kept, "version": VERSION}
            self.store.put(key, record)
        return record, key

    def denoise(self, contender: Contender) -> dict[str, list[float]]:
        """Strategy to squared errors by noise level, in units of the normalised intensity."""
        key = self.store.key(
            f"{self.case.name} denoise {contender.name}",
            case=self.case.digest, model=contender.digest, seed=self.settings.seed, sigmas=SIGMAS,
        )  # fmt: skip
        record = self.store.record(key)
        if record is None:
            prepared, intensity = self._prepared(contender)
            known, box, model = self.case.known, self.case.known.box, self._start(contender, 0).model
            truth = intensity.normalise(known.target[box.index])
            residual = (truth - prepared.base[box.index]) / contender.config.residual.scale
            errors = denoising_errors(
                model, residual, prepared.condition[box.index],
                origin=box.start, full=prepared.base.shape[2:], seed=self.settings.seed,
            )  # fmt: skip
            record = {"errors": {name: list(values) for name, values in errors.errors.items()}}
            self.store.put(key, record)
        return dict(record["errors"])

    def _parts(self, method: Method) -> dict[str, Any]:
        parts: dict[str, Any] = {"case": self.case.digest, "main": self._task(), "method": method.name}
        if method.contender is None:
            return parts | {"regression": None if self.regression is None else self.regression.digest}
        assert method.run is not None
        run = method.run
        # Stored results of such boxes may be from when the noise was repeated there; all others hold.
        if any(missing_voxels(method.contender.config, self.case.known.box)):
            parts["noise"] = "drawn beyond the box"
        return parts | {
            "model": method.contender.digest,
            "strategy": (run.strategy, run.planes, run.branches, run.consistent),
            "table": hashlib.sha256(method.table.rows.tobytes()).hexdigest(),
            "settings": (self.settings.seed, self.settings.samples),
        }

    def _task(self) -> str:
        """What of the main model decides how the truth is normalised and measured."""
        config = self.case.config
        return repr((config.conditions, config.target, config.degradation, config.intensity, config.multiple))

    def _volume(self, method: Method) -> tuple[np.ndarray, float | None, float | None]:
        """A row's volume, normalised as the truth is; seconds, and seconds an evaluation, where measured."""
        if method.contender is None:
            begin = time.perf_counter()
            volume = baseline_volume(method.name, self.case, self.regression)
            return volume, time.perf_counter() - begin, None
        total, elapsed, times = None, 0.0, []
        for sample in range(self.settings.samples):
            clock = _Clock()
            drawn = self._draw(method, sample, clock)
            total = drawn if total is None else total + drawn
            elapsed += clock.elapsed
            times += clock.own
        assert total is not None
        each = float(np.median(times)) if times else None
        count = len(method.table) * self.settings.samples
        return total / self.settings.samples, elapsed if each is None else each * count, each

    def _draw(self, method: Method, sample: int, clock: _Clock) -> np.ndarray:
        assert method.contender is not None and method.run is not None
        contender, known = method.contender, self.case.known
        prepared, intensity = self._prepared(contender)
        start = self._start(contender, sample)
        clock.start()
        residual = start.draw(method.run, method.table, clock.tick)
        fine = prepared.base[known.box.index] + contender.config.residual.scale * residual
        if intensity != known.intensity:
            fine = known.intensity.normalise(intensity.denormalise(fine))
        return np.ascontiguousarray(fine[0, 0].float().cpu().numpy())

    def _prepared(self, contender: Contender) -> tuple[Prepared, Intensity]:
        if contender.name not in self.given:
            self.given[contender.name] = self.case.prepared_for(contender.config)
        return self.given[contender.name]

    def _start(self, contender: Contender, sample: int) -> SharedStart:
        """Where a contender's rows begin; made when it is first needed."""
        place = (contender.name, sample)
        if place not in self.starts:
            prepared, _ = self._prepared(contender)
            box, seed = self.case.known.box, self.settings.seed
            self.starts[place] = SharedStart(contender.model, prepared, box, seed, sample)
        return self.starts[place]


class _Clock:
    """Times evaluations: the first may be shared with other rows, so it is not among ``own``."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def start(self) -> None:
        self.ticks = [time.perf_counter()]

    def tick(self, step: int, steps: int, x0: Tensor) -> None:
        if x0.is_cuda:
            torch.cuda.synchronize(x0.device)
        self.ticks.append(time.perf_counter())

    @property
    def elapsed(self) -> float:
        return self.ticks[-1] - self.ticks[0]

    @property
    def own(self) -> list[float]:
        return [after - before for before, after in zip(self.ticks[1:], self.ticks[2:], strict=False)]


def _cost(method: Method, settings: Settings) -> int:
    if method.run is None:
        return 0
    return method.run.cost * len(method.table) * settings.samples
