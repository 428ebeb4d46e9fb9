"""The ways of docs/architecture.md hold, hop by hop; `python tests/test_architecture.py` prints them."""

from __future__ import annotations

import ast
import re
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
MOST_FILES, MOST_STOPS = 4, 15


class Stop(NamedTuple):
    """A function, class or constant of a file, such as ``Engine.step`` of ``engine/engine.py``."""

    file: str
    name: str
    arrow: str = ""  #: before it: → from what names it, ⇢ from what runs it

    @property
    def path(self) -> Path:
        own = ROOT / self.file
        return own if own.exists() else ROOT / "scorefusion" / self.file

    def source(self) -> str:
        """Its text; a class's is the whole class."""
        text = self.path.read_text(encoding="utf-8")
        scope: list[ast.stmt] = ast.parse(text).body
        node: ast.AST | None = None
        for part in self.name.split("."):
            node = next((item for item in scope if _defines(item, part)), None)
            assert node is not None, f"{self.file} has no {self.name}"
            scope = getattr(node, "body", [])
        return ast.get_source_segment(text, node) or ""


def _defines(item: ast.stmt, name: str) -> bool:
    targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
    return getattr(item, "name", None) == name or any(getattr(it, "id", None) == name for it in targets)


def ways() -> dict[str, list[Stop]]:
    """The page's questions, each with the stops on the way to the answer."""
    rows = re.findall(r"^\| ([^|]+\?) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    stops = {question: re.findall(r"(?:([→⇢]) )?`([\w/.]+): ([\w.]+)`", way) for question, way in rows}
    return {
        question: [Stop(file, name, arrow) for arrow, file, name in way] for question, way in stops.items()
    }


def files_of(way: list[Stop]) -> list[str]:
    """The files that have to be opened, in order."""
    return list(dict.fromkeys(stop.file for stop in way))


def test_there_are_twelve_questions() -> None:
    assert len(ways()) == 12


@pytest.mark.parametrize("question", ways())
def test_each_stop_leads_to_the_next(question: str) -> None:
    way = ways()[question]
    assert way and len(files_of(way)) <= MOST_FILES and all(stop.arrow for stop in way[1:])
    for stop, following in zip(way, [*way[1:], None], strict=True):
        source = stop.source()
        if following is not None and following.arrow == "→":
            name = following.name.rpartition(".")[2].removeprefix("__init__")
            name = name if not name.startswith("__") else following.name.partition(".")[0]
            assert re.search(rf"\b{re.escape(name)}\b", source), f"{stop} does not name {following.name}"


def test_a_translation_fuses_scores_on_the_way_of_four_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from scorefusion.engine import step
    from scorefusion.ops.fuse_step import fuse_step
    from scorefusion.pipeline import Pipeline
    from tests.support.tiny import tiny_image, tiny_model

    question, way = next(iter(ways().items()))
    assert "fused" in question and way[0].name == "Pipeline.__call__" and len(files_of(way)) == MOST_FILES
    calls: list[tuple[Path, str]] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        calls[:] = [(Path(frame.filename).resolve(), frame.name) for frame in traceback.extract_stack()]
        return fuse_step(*arguments, **options)

    monkeypatch.setattr(step, "fuse_step", noted)
    Pipeline(tiny_model(), device="cpu", dtype="float32")(tiny_image(), steps=1)
    places = iter(calls)
    for stop in way:
        if stop.name != "Engine._captured_step":  # makes what is called next
            assert (stop.path.resolve(), stop.name.rpartition(".")[2]) in places, stop


def test_only_one_arrow_is_followed_by_running() -> None:
    assert sum(stop.arrow == "⇢" for way in ways().values() for stop in way) == 1


def test_a_volume_takes_at_most_fifteen_stops() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## A volume's way")[2].partition("\n## ")[0]
    stops = re.findall(r"^\d+\. .*?`([\w/.]+): ([\w.]+)`", section, re.M)
    assert 8 <= len(stops) <= MOST_STOPS
    for stop in stops:
        Stop(*stop).source()


def test_what_to_change_is_one_or_two_files() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Where to change what")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w[^|]+) \| ([^|]+) \|", section, re.M)[1:]
    assert {"solver", "operation", "strategy", "degradation", "metric", "dataset layout", "file format"} <= {
        what.strip() for what, _ in rows
    }
    for what, where in rows:
        files = re.findall(r"`([\w/.]+\.(?:py|cpp|json))`", where)
        assert 1 <= len(files) <= 2, what
        assert all((ROOT / file).exists() or (ROOT / "scorefusion" / file).exists() for file in files), files


if __name__ == "__main__":
    for question, way in ways().items():
        print(f"{len(files_of(way))} files, {len(way)} stops  {question}")
        print("".join(f"    {stop.file}: {stop.name}\n" for stop in way))
