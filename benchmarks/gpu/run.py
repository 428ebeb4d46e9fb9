"""A run of sections in order of value, each with a deadline, on file after each."""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.step_walk import Step
from scorefusion.io.atomic import written_beside

from .device import Device
from .sizes import Sizes

FORMAT = 1
NOT_REACHED = "not reached"
Results = dict[str, Any]
Case = Callable[[], Any]
Item = TypeVar("Item")


@dataclass
class Run:
    """What sections share.

    Attributes:
        device: that is measured.
        sizes: of what is measured.
        out: the JSON file.
        clock: seconds, for deadlines.
        content: of the file.
        deadline: of the section at work, by the clock.
        cut: whether the section at work left something out for want of time.
        steps: walked on fake tensors, by model and size.
        tools: optional tools to run, of ``ncu`` and ``sanitize``.
    """

    device: Device
    sizes: Sizes
    out: Path
    clock: Callable[[], float] = time.monotonic
    content: dict[str, Any] = field(default_factory=dict)
    deadline: float = float("inf")
    cut: bool = False
    steps: dict[str, Step] = field(default_factory=dict)
    tools: tuple[str, ...] = ()

    def results(self, section: str) -> Results:
        """Return what a section found; empty if it did not run."""
        return self.content.get("sections", {}).get(section, {}).get("results", {})

    def over(self, expected: float = 0.0) -> bool:
        """Whether the section's time is up, or less is left than the seconds that are expected."""
        return self.clock() + expected >= self.deadline

    def cases(self, results: Results, cases: Mapping[str, Case], expected: float = 0.0) -> None:
        """Run cases into `results` until the deadline; one that fails is an error there, the rest go on.

        Args:
            results: that are added to.
            cases: by name; one that has started is finished.
            expected: seconds that each takes; one starts only if they are left.
        """
        for name, case in cases.items():
            if self.over(expected):
                results[name], self.cut = NOT_REACHED, True
                continue
            try:
                results[name] = case()
            except Exception as error:
                results[name] = {"error": said(error)}
                del error
                gc.collect()
                if self.device.place.type == "cuda":
                    with contextlib.suppress(RuntimeError):  # the device may be lost, the file is not
                        torch.cuda.empty_cache()

    def shares(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield each item with a deadline that leaves the others their equal part of the time."""
        end, listed = self.deadline, list(items)
        for place, item in enumerate(listed):
            now = self.clock()
            self.deadline = now + (end - now) / (len(listed) - place)
            yield item
        self.deadline = end

    def write(self) -> None:
        """Put the file in place of the one before, whole."""
        with written_beside(self.out) as file:
            text = json.dumps(finite(self.content), indent=1, ensure_ascii=False, allow_nan=False)
            file.write_text(text + "\n", encoding="utf-8")


Section = Callable[[Run, Results], None]


def said(error: BaseException) -> str:
    """Return an error's kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:500]


def finite(content: Any) -> Any:
    """Return the same with None in place of each number that is not finite."""
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def faults(found: Any) -> tuple[int, int]:
    """Return how many cases of a section's results failed, and how many gave something wrong."""
    if not isinstance(found, Mapping):
        return 0, 0
    wrong = found.get("right") is False
    listed = sum(isinstance(error, str) for error in found.get("errors", ())) if "right" not in found else 0
    inside = [faults(value) for value in found.values()]
    errors = int("error" in found) + bool(found.get("status")) + listed + sum(each for each, _ in inside)
    return errors, int(wrong) + sum(each for _, each in inside)


def perform(
    run: Run,
    sections: Mapping[str, tuple[float, Section]],
    minutes: float,
    only: Sequence[str] = (),
    progress: Callable[[str], None] = print,
) -> None:
    """Run sections in order, each until its deadline.

    A section's deadline is the end of its share of the time, so what one leaves is the next one's. The file
    is written before the first and after each; what is not done by then is "not reached".

    Args:
        run: what sections share; `content` gets a key "sections".
        sections: share of the time and function, by name, in order.
        minutes: for all that run.
        only: names of those that run; all if empty.
        progress: is given a line after each.
    """
    chosen = [name for name in sections if not only or name in only]
    shares = sum(sections[name][0] for name in chosen)
    records: dict[str, Any] = {
        name: {"state": NOT_REACHED if name in chosen else "left out", "results": {}} for name in sections
    }
    run.content["sections"] = records
    run.content["started"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    start = run.clock()
    end = start
    run.write()
    for name in chosen:
        share, function = sections[name]
        end += 60 * minutes * share / shares
        began = run.clock()
        if began >= end:
            progress(f"{name}: {NOT_REACHED}")
            continue
        run.deadline, run.cut = end, False
        record = records[name]
        record["before"] = run.device.sample()
        try:
            function(run, record["results"])
            record["state"] = "cut short" if run.cut else "done"
        except KeyboardInterrupt:
            record["state"] = "interrupted"
            raise
        except Exception as error:
            record["state"], record["error"] = "failed", said(error)
            record["traceback"] = traceback.format_exc().splitlines()[-12:]
        finally:
            errors, record["wrong"] = faults(record["results"])
            record["errors"] = errors + (record["state"] == "failed")
            record["seconds"] = round(run.clock() - began, 3)
            record["after"] = run.device.sample()
            run.content["seconds"] = round(run.clock() - start, 3)
            run.write()
        progress(f"{name}: {record['state']}{_faults(record)} after {record['seconds']:.1f} s{_why(record)}")


def _faults(record: Mapping[str, Any]) -> str:
    errors, wrong = record["errors"], record["wrong"]
    line = f", {errors} error{'s' if errors > 1 else ''}" if errors else ""
    return line + (f", {wrong} wrong" if wrong else "")


def _why(record: Mapping[str, Any]) -> str:
    return f" ({record['error']})" if "error" in record else ""
