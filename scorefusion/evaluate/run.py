"""Run every row on every subject: sample, interpolate, measure, and keep what is done."""

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from scorefusion.data import Subject
from scorefusion.engine import forecast, plan
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.cases import Case, Where, read_case
from scorefusion.evaluate.denoise_error import SIGMAS, denoising_errors
from scorefusion.evaluate.methods import Contender, Method, Regression, baseline_volume
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.shared_start import SharedStart
from scorefusion.metrics import METRICS
from scorefusion.metrics import measure as measure_pair
from scorefusion.pipeline import missing_voxels

Progress = Callable[[int, int], None]  #: what is called with (done, in all)

DENOISE_COST = 4 * len(SIGMAS)

VERSION = 3  #: goes up when a figure's definition changes: stored results are then measured again
_MEASUREMENT: dict[str, Any] = {
    "kind": "none", "factor": 1, "edges": None, "axis": None, "thickness": None, "gap": 0, "profile": "box",
    "fraction": 0.5, "acceleration": None, "centre": 0.08, "seed": None, "views": None, "detector": None,
    "hole": 0.25, "holes": 1, "noise": 0.0,
}  # fmt: skip
"""Defaults of all measurements, in the order in which keys of stored results have always named them."""


@dataclass(frozen=True)
class Settings:
    """How everything is sampled."""

    seed: int = 0  #: of the noise, the same for every row and subject
    samples: int = 1  #: drawn and averaged
    denoise: bool = True  #: whether to measure denoising errors too


@dataclass(frozen=True, eq=False)
class Results:
    """What was found."""

    subjects: tuple[Subject, ...]  #: in order
    cases: tuple[dict[str, Any], ...]  #: of each, what :func:`describe_case` says
    records: tuple[dict[str, dict[str, Any]], ...]  #: for each subject, row name to its figures
    keys: tuple[dict[str, str], ...]  #: for each, row name, ``truth`` or ``labels`` to the stored volume
    denoising: tuple[dict[str, dict[str, list[float]]], ...]  #: contender to strategy to errors by level
    flop: Mapping[str, float]  #: row name to floating-point operations per volume, in the mean over subjects

    @property
    def persons(self) -> list[str]:
        """The person of each subject."""
        return [str(case["person"]) for case in self.cases]


class Work:
    """Counts work done for a progress callback ``(done, total)``."""

    def __init__(self, callback: Progress | None, total: int) -> None:
        self.callback, self.total, self.done = callback, total, 0

    def add(self, cost: int = 1) -> None:
        """Count work of a cost."""
        self.done += cost
        if self.callback is not None and cost:
            self.callback(min(self.done, self.total), self.total)


class Clock:
    """Times the evaluations of one sample; ``done`` is called with the number of each, from 1."""

    def __init__(self, done: Callable[[int], None] | None = None) -> None:
        self.done, self.ticks = done, [time.perf_counter()]

    def __call__(self, step: int, steps: int, x0: Tensor) -> None:
        """An evaluation is done."""
        # A device computes on after the call returns: reading one voxel waits for it.
        float(x0.flatten()[0])
        self.ticks.append(time.perf_counter())
        if self.done is not None:
            self.done(step)

    @property
    def times(self) -> list[float]:
        """Seconds of each evaluation."""
        return [float(seconds) for seconds in np.diff(self.ticks)]


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
    """Evaluate the rows ``methods`` on subjects from :func:`~scorefusion.evaluate.cases.find_cases`.

    The task is ``main``'s. What is in the store already is not computed again. ``callback`` is called with
    (work done, work in all), in about one plane's evaluation.

    Raises BadInput for a file that cannot be used, ScoreFusionError if a result is not finite.
    """
    costs = [0 if m.run is None else m.run.cost * len(m.table) * settings.samples for m in methods]
    total = sum(costs) + DENOISE_COST * (1 + len(others)) * settings.denoise
    work = Work(callback, max(1, total * len(subjects)))
    cases, records, keys = [], [], []
    denoising: list[dict[str, dict[str, list[float]]]] = []
    device = next(main.model.parameters()).device
    for subject in subjects:
        turn = _Turn(read_case(subject, main.config, where, device=device), store, settings, regression)
        measured: dict[str, dict[str, Any]] = {}
        stored = turn.truth()
        for method, cost in zip(methods, costs, strict=True):
            measured[method.name], stored[method.name] = turn.run(method, measured)
            work.add(cost)
        cases.append(describe_case(turn.case))
        records.append(measured)
        keys.append(stored)
        denoising.append({})
        if settings.denoise:
            for contender in (main, *others):
                denoising[-1][contender.name] = turn.denoise(contender)
                work.add(DENOISE_COST)
    sizes = [tuple(case["size"]) for case in cases]
    flop = {m.name: float(np.mean([flop_of(m, s, settings) for s in sizes])) for m in methods if m.contender}
    return Results(tuple(subjects), tuple(cases), tuple(records), tuple(keys), tuple(denoising), flop)


def figure_names() -> tuple[str, ...]:
    """What a line of subjects.csv holds beside its names; docs/evaluation.md defines each."""
    return (*METRICS, "seconds")


def measure(volume: np.ndarray, case: Case) -> dict[str, Any]:
    """Every metric of a normalised result, float32 ``[d, h, w]`` of the box, and its bands as lists."""
    if not np.isfinite(volume).all():
        raise ScoreFusionError("the result is not finite; compute in float32 (--dtype float32)")
    pair = case.pair(volume)
    return {
        **measure_pair(pair),
        "frequency": pair.spectra.frequency.round(6).tolist(),
        "log_power_ratio": pair.spectra.log_ratio.round(6).tolist(),
        "shell_correlation": pair.spectra.correlation.round(6).tolist(),
    }


def describe_case(case: Case) -> dict[str, Any]:
    """What a report says of a subject."""
    return {
        "name": case.name,
        "person": case.subject.group if case.subject else case.name,
        "file": case.file,
        "size": list(case.box.size),
        "start": list(case.box.start),
        "whole": list(case.target.shape[2:]),
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


class _Turn:
    """One subject's turn: what its rows share."""

    def __init__(self, case: Case, store: Store, settings: Settings, regression: Regression | None) -> None:
        self.case, self.store, self.settings, self.regression = case, store, settings, regression
        view = self.view = functools.cache(lambda contender: case.seen_by(contender.config))

        @functools.cache
        def start(contender: Contender, sample: int) -> SharedStart:
            seen, engines = view(contender), contender.engines
            return SharedStart(
                contender.model, seen.prepared, seen.box, settings.seed, sample, engines=engines
            )

        self.start = start
        # What of the main model decides how the truth is normalised and measured.
        config = case.config
        measured = _MEASUREMENT | dict(config.degradation)
        values = ", ".join(f"{name}={value!r}" for name, value in measured.items())
        task = f"{config.conditions!r}, {config.target!r}, DegradationConfig({values}), {config.intensity!r}"
        self.parts = {"case": case.digest, "main": f"({task}, {config.multiple!r})"}

    def truth(self) -> dict[str, str]:
        """Store the truth, and the label map if there is one; returns their keys by name."""
        keys = {"truth": self.store.key(f"{self.case.name} truth", **self.parts)}
        if self.store.record(keys["truth"]) is None:
            self.store.put(keys["truth"], describe_case(self.case), self.case.truth)
        if self.case.labels is not None:
            keys["labels"] = self.store.key(f"{self.case.name} labels", **self.parts)
            if self.store.array(keys["labels"]) is None:
                self.store.put_array(keys["labels"], self.case.labels.astype(np.int32))
        return keys

    def run(self, method: Method, measured: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """A row's figures, and the key of its volume."""
        key = self.store.key(f"{self.case.name} {method.name}", **self._parts(method))
        record = self.store.record(key)
        if record is None:
            volume, seconds, each = self._volume(method)
            shared = measured.get(method.sampled or "", {}).get("each")
            if shared is not None:
                # Its only evaluation is shared with other rows; it takes as long as the sample's others.
                seconds = shared * self.settings.samples
            record = {**measure(volume, self.case), "seconds": seconds, "each": each, "version": VERSION}
            self.store.put(key, record, volume)
        elif record.get("version") != VERSION or not METRICS.keys() <= record.keys():
            # Stored volumes are rounded to 16 bits, too coarse for consistency alone.
            valid = record if record.get("version") == VERSION else ("consistency", "seconds", "each")
            kept = {name: record[name] for name in valid}
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
            case, model = self.view(contender), contender.engines.packed_model
            errors = denoising_errors(
                model, case.residual(), case.prepared.condition[case.box.index],
                origin=case.box.start, full=case.prepared.base.shape[2:], seed=self.settings.seed,
            )  # fmt: skip
            record = {"errors": {name: list(values) for name, values in errors.errors.items()}}
            self.store.put(key, record)
        return dict(record["errors"])

    def _parts(self, method: Method) -> dict[str, Any]:
        parts = self.parts | {"method": method.name}
        if method.contender is None:
            return parts | {"regression": None if self.regression is None else self.regression.digest}
        assert method.run is not None
        run = method.run
        # Stored results of such boxes may be from when the noise was repeated there; all others hold.
        if any(missing_voxels(method.contender.config, self.case.box)):
            parts["noise"] = "drawn beyond the box"
        return parts | {
            "model": method.contender.digest,
            "strategy": (run.strategy, run.planes, run.branches, run.consistent),
            "table": hashlib.sha256(method.table.rows.tobytes()).hexdigest(),
            "settings": (self.settings.seed, self.settings.samples),
        }

    def _volume(self, method: Method) -> tuple[np.ndarray, float | None, float | None]:
        """A row's volume, normalised as the truth is; seconds, and seconds per evaluation, where measured."""
        if method.contender is None:
            begin = time.perf_counter()
            volume = baseline_volume(method.name, self.case, self.regression)
            return volume, time.perf_counter() - begin, None
        assert method.run is not None
        contender, case = method.contender, self.view(method.contender)
        total, elapsed, own = np.zeros(()), 0.0, []
        for sample in range(self.settings.samples):
            start, clock = self.start(contender, sample), Clock()
            drawn = case.volume(start.draw(method.run, method.table, clock))
            if case.intensity != self.case.intensity:
                drawn = self.case.intensity.normalise(case.intensity.denormalise(drawn))
            total = total + drawn
            elapsed += sum(clock.times)
            own += clock.times[1:]  # The first may be shared with other rows.
        volume = (total / self.settings.samples).astype(np.float32)
        each = float(np.median(own)) if own else None
        evaluations = len(method.table) * self.settings.samples
        return volume, elapsed if each is None else each * evaluations, each
