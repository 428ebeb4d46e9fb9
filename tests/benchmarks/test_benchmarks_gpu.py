"""`python -m benchmarks.gpu` at tiny sizes on a CPU, so that a GPU's time is never spent on a typo."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import benchmarks.gpu.__main__ as command
from benchmarks.gpu import compare, sections, tables
from benchmarks.gpu.correct import against_float64, compared
from benchmarks.gpu.device import Cpu
from benchmarks.gpu.operations import operations
from benchmarks.gpu.run import NOT_REACHED, Results, Run, faults, perform
from benchmarks.gpu.sizes import FULL, TINY, Sizes
from benchmarks.gpu.steps import plain, steps
from benchmarks.gpu.timing import ROTATION, Buffers, copies_of, measure
from benchmarks.gpu.volumes import folder
from benchmarks.step_walk import Spec
from scorefusion.batch.run import Run as BatchRun
from scorefusion.ops import backends
from tests.support.tiny import write_tiny
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Sizes:
    model = str(write_tiny(tmp_path_factory.mktemp("model"))[0])
    target = ((model, (8, 8, 8)),)
    return replace(
        TINY, steps=target, traced=target, plain=target[0], small=target[0], volume=(model, (4, 4, 4))
    )


@pytest.fixture(scope="module")
def whole(sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of everything; also what was on file after each section."""
    folder = tmp_path_factory.mktemp("gpu")
    written: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "TINY", sizes)
        write = Run.write

        def noted(run: Run) -> None:
            write(run)
            written.append(json.loads(run.out.read_text(encoding="utf-8")))

        patch.setattr(Run, "write", noted)
        arguments = ["--out", str(folder / "gpu.json"), "--device", "cpu", "--tiny", "--minutes", "60"]
        assert command.main(arguments) == 0
    content = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    return SimpleNamespace(content=content, folder=folder, written=written)


def results(content: Any, section: str) -> Any:
    return content["sections"][section]["results"]


def errors_in(content: Any, path: str = "") -> list[str]:
    if not isinstance(content, dict):
        return []
    found = [f"{path}: {content['error']}"] if content.get("error") else []
    return found + [line for name, value in content.items() for line in errors_in(value, f"{path}/{name}")]


def test_all_of_it_runs(whole: SimpleNamespace) -> None:
    assert {name: record["state"] for name, record in whole.content["sections"].items()} == dict.fromkeys(
        command.SECTIONS, "done"
    )
    assert not errors_in(whole.content["sections"])
    assert (
        list(whole.content["sections"])
        == "machine ceilings compile correct ops step volume plain extra".split()
    )
    machine = results(whole.content, "machine")
    assert machine["torch"] == torch.__version__ and re.fullmatch(r"[0-9a-f]{16}", machine["kernels"])
    for record in whole.content["sections"].values():
        assert record["before"] is None and record["after"] is None  # of a CPU nothing tells clocks or power


def test_it_is_right(whole: SimpleNamespace) -> None:
    correct = results(whole.content, "correct")
    assert correct["wrong"] == []
    checked = [row for rows in correct.values() if isinstance(rows, dict) for row in rows.values()]
    assert len(checked) >= 20 and all(row["right"] for row in checked)
    kinds = {name.split(" ")[0] for name in list(correct.values())[2]}
    assert kinds == {"gather_slices_into", "norm_act", "ensemble_features_", "fuse_step_into"}


def test_figures_are_medians_of_groups(whole: SimpleNamespace) -> None:
    found = list(compare.figures(whole.content["sections"]))
    assert len(found) > 60
    for path, figure in found:
        groups = sorted(figure["groups"])
        assert len(groups) >= 2 and figure["spread"] == groups[-1] - groups[0] >= 0, path
        assert groups[0] <= figure["median"] <= groups[-1] and math.isfinite(figure["median"]), path


def test_every_distinct_operation_is_timed(whole: SimpleNamespace) -> None:
    (traced,) = results(whole.content, "ops").values()
    calls = traced["calls"]
    assert len(calls) == traced["distinct"] > 20
    for name, row in calls.items():
        assert row["ways"]["as it is"]["us"]["median"] > 0 and row["count"] >= 1, name
        assert ("PyTorch's operations" in row["ways"]) == ("serial iterations" in row), name
        assert row["bound, us"] > 0
    convolutions = [row for name, row in calls.items() if name.startswith("convolution")]
    assert any("without the bias" in row["ways"] for row in convolutions)
    assert any("channels padded to 8, without the bias" in row["ways"] for row in convolutions)
    for row in traced["up-sampling"].values():
        assert row.keys() == {"one after the other", "transposed convolution"}


def test_steps_say_where_time_and_memory_go(whole: SimpleNamespace) -> None:
    (rows,) = results(whole.content, "step").values()
    assert [name.split(",")[0] for name in rows] == ["graph", "eager", "graph", "compile"]
    for row in rows.values():
        assert row["launches"] == sum(kind["launches"] for kind in row["kernels"].values()) > 0
        assert row["peak, bytes"]["allocated"] > 0 and row["first, s"] > 0
    assert {"convolutions", "norm_act"} <= next(iter(rows.values()))["kernels"].keys()


def test_volumes_and_baselines(whole: SimpleNamespace) -> None:
    volume = results(whole.content, "volume")
    assert volume["folder of different heads"]["volumes"] == volume["folder of different heads"]["of"] == 2
    assert volume["folder of different heads"]["boxes"] == 2 and volume["folder of equal heads"]["boxes"] == 1
    assert {"read", "prepare", "sample", "finish"} <= volume["again"]["stages, s"].keys()
    (rows,) = results(whole.content, "plain").values()
    assert rows.keys() == {"float32", "torch.compile"}
    assert results(whole.content, "extra")["ncu"] == "not asked for (--ncu)"
    assert (whole.folder / results(whole.content, "extra")["trace"]).stat().st_size > 0


def test_the_file_is_whole_after_each_section(whole: SimpleNamespace) -> None:
    names = list(command.SECTIONS)
    assert len(whole.written) == 1 + len(names)
    for count, content in enumerate(whole.written):
        states = [content["sections"][name]["state"] for name in names]
        assert states == ["done"] * count + [NOT_REACHED] * (len(names) - count)


def small_run(tmp_path: Path, sizes: Sizes = TINY) -> Run:
    return Run(Cpu(), sizes, tmp_path / "gpu.json", content={})


class Clock:
    """A clock that a section's work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> dict[str, float]:
        self.now += seconds
        return {"seconds": seconds}


def test_a_run_that_is_cut_short(tmp_path: Path) -> None:
    """Cases, then whole sections, are "not reached"; what was found before is kept."""
    clock, run, said = Clock(), small_run(tmp_path), []
    run.clock = clock

    def slow(run: Run, results: Results) -> None:
        run.cases(results, {f"case {n}": lambda: clock.work(40) for n in range(5)})

    parts = {"first": (1.0, slow), "second": (1.0, slow), "third": (1.0, slow)}
    perform(run, parts, 2.0, progress=said.append)
    content = json.loads(run.out.read_text(encoding="utf-8"))["sections"]
    assert [record["state"] for record in content.values()] == ["cut short", "cut short", "cut short"]
    assert list(content["first"]["results"].values()) == [{"seconds": 40}] + [NOT_REACHED] * 4
    assert said[0] == "first: cut short after 40.0 s"

    clock.now = 0.0
    parts["first"] = (1.0, lambda run, results: results.update(clock.work(500)))
    perform(run, parts, 2.0, progress=said.append)
    content = json.loads(run.out.read_text(encoding="utf-8"))["sections"]
    assert [record["state"] for record in content.values()] == ["done", NOT_REACHED, NOT_REACHED]
    assert content["second"]["results"] == {} and said[-1] == f"third: {NOT_REACHED}"


def test_what_a_section_leaves_is_the_next_ones(tmp_path: Path) -> None:
    clock, run, ends = Clock(), small_run(tmp_path), []
    run.clock = clock

    def section(run: Run, results: Results) -> None:
        ends.append(run.deadline)
        clock.work(1)

    perform(run, {"a": (1.0, section), "b": (3.0, section)}, 1.0, progress=lambda line: None)
    assert ends == [15.0, 60.0]
    run.deadline, shares = 61.0, []
    for _ in run.shares(range(3)):
        shares.append(run.deadline - clock.now)
        clock.work(5)
    assert shares == pytest.approx([59 / 3, 54 / 2, 49])


def test_no_minutes_reach_nothing(sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TINY", sizes)
    out = tmp_path / "gpu.json"
    assert command.main(["--out", str(out), "--device", "cpu", "--tiny", "--minutes", "1e-9"]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert {record["state"] for record in content["sections"].values()} == {NOT_REACHED}
    assert NOT_REACHED in out.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize("minutes", ["nan", "inf", "-inf", "-1", "0", "soon"])
def test_minutes_that_are_none(minutes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["--out", str(tmp_path / "gpu.json"), "--device", "cpu", f"--minutes={minutes}"])
    assert left.value.code == 2 and not list(tmp_path.iterdir())
    assert f"argument --minutes: '{minutes}' is not a finite number above 0" in capsys.readouterr().err


def test_a_figure_that_is_not_finite_is_null(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    run.content = {"sections": {"a": {"results": {"rate": math.inf, "few": [math.nan, (1.5, -math.inf)]}}}}
    run.content["sections"]["a"]["results"]["ms"] = {"median": math.nan, "spread": 0.0}
    run.write()
    text = run.out.read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    expected = {"rate": None, "few": [None, [1.5, None]], "ms": {"median": None, "spread": 0.0}}
    assert results(found, "a") == expected
    assert compare.compared(found, found) == ([], 0)


def test_a_long_case_starts_only_if_its_time_is_left(tmp_path: Path, sizes: Sizes) -> None:
    clock, run = Clock(), small_run(tmp_path)
    run.clock, run.deadline = clock, 100.0
    for expected, found in ((100.0, NOT_REACHED), (90.0, {"seconds": 30}), (71.0, NOT_REACHED)):
        rows: Results = {}
        run.cases(rows, {"compile": lambda: clock.work(30)}, expected)
        assert rows == {"compile": found}, expected
    assert run.cut


@pytest.mark.parametrize("section", [steps, plain])
def test_compiled_cases_come_last(section: Any, sizes: Sizes, tmp_path: Path) -> None:
    """After those of every box; they are not reached where too little time is left, and the others are."""
    (target,) = sizes.steps
    boxes = (target, (target[0], (8, 8, 16)))
    run = small_run(tmp_path, replace(sizes, steps=boxes, inductor=1e6, slabs=sizes.slabs[:1]))
    run.deadline = run.clock() + 1e5
    found: Results = {}
    section(run, found)
    rows = [(name, row) for group in found.values() for name, row in group.items()]
    missing = [name for name, row in rows if row == NOT_REACHED]
    assert len(missing) == 1 and "compile" in missing[0] and run.cut
    assert len(rows) == (5 if section is steps else 2)


def test_a_folder_stops_at_the_deadline(
    sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written until then is the figure; a folder without any is not reached."""
    run = small_run(tmp_path, replace(sizes, folder=6))
    model, size = sizes.volume
    run.deadline = run.clock()
    assert folder(run, model, [size]) == NOT_REACHED and run.cut
    run.deadline, written = math.inf, []
    write = BatchRun._write

    def noted(batch: BatchRun, sample: Any) -> None:
        write(batch, sample)
        written.append(sample)
        run.deadline = run.clock()

    monkeypatch.setattr(BatchRun, "_write", noted)
    row = folder(run, model, [size])
    assert isinstance(row, dict) and 1 <= row["volumes"] == len(written) <= row["of"] == 6
    assert row["volumes per minute"] == pytest.approx(60 * row["volumes"] / row["seconds"])


def test_faults_are_counted_and_are_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert faults({"a": {"errors": ["x", "y"]}, "b": {"status": 1}, "c": {"error": "z"}}) == (4, 0)
    assert faults({"a": {"right": False, "errors": [0.5]}, "b": {"right": True, "errors": [0.0]}}) == (0, 1)
    arguments = ["--out", str(tmp_path / "gpu.json"), "--device", "cpu", "--tiny", "--only", "ceilings"]
    for case, status, line in (
        (lambda: {"right": True}, 0, "ceilings: done after"),
        (lambda: {"right": False}, 1, "ceilings: done, 1 wrong after"),
        (lambda: 1 / 0, 1, "ceilings: done, 1 error after"),
    ):
        section = functools.partial(lambda case, run, results: run.cases(results, {"case": case}), case)
        monkeypatch.setitem(command.SECTIONS, "ceilings", (1.0, section))
        assert command.main(arguments) == status
        assert line in capsys.readouterr().out


def test_a_figure_moves_by_two_percent_at_least() -> None:
    def content(median: float) -> Any:
        return {"sections": {"a": {"results": {"x": {"median": median, "spread": 0.0}}}}}

    for median, lines in ((101.9, 0), (98.1, 0), (102.1, 1), (97.9, 1)):
        assert len(compare.compared(content(100.0), content(median))[0]) == lines, median


def test_the_operations_deadline(sizes: Sizes, tmp_path: Path) -> None:
    """Operations that the time does not suffice for are named as not reached."""
    clock = Clock()
    run = small_run(tmp_path, sizes)
    run.clock, run.deadline = clock, 1.0
    timed = run.device.seconds
    run.device.seconds = lambda body, times: clock.work(0.05) and timed(body, times)  # type: ignore[method-assign]
    found: Results = {}
    operations(run, found)
    (traced,) = found.values()
    states = [row == NOT_REACHED for row in traced["calls"].values()]
    assert not states[0] and states[-1] and states == sorted(states) and run.cut
    assert len(states) == traced["distinct"]


def test_kernels_are_compiled_in_several_processes(
    sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors are listed; what is not compiled by the deadline is counted."""
    monkeypatch.setattr(sections, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    monkeypatch.setattr(sections.os, "cpu_count", lambda: 2)
    end = threading.Event()

    def compile_kernel(source: Any) -> str:
        if "norm_act" not in source.function:
            return f"{source.function} failed"
        assert end.wait(PATIENCE)
        return ""

    monkeypatch.setattr(sections, "compile_kernel", compile_kernel)
    run = small_run(tmp_path, replace(sizes, processes=16, compile=1000))
    for late in (False, True):
        end.clear()
        run.deadline = run.clock() + (0.2 if late else 60)
        timer = threading.Timer(1.0 if late else 0.0, end.set)
        timer.start()
        found: Results = {}
        sections.compilation(run, found)
        timer.join()
        assert found["compiled"] + found[NOT_REACHED] == found["compilations of the steps"] > 5
        assert bool(found[NOT_REACHED]) == run.cut == late and found["processes"] == 2
        assert all(error.endswith("failed") for error in found["errors"])
    assert found["seconds"] > 0


def test_only_some_sections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["--out", str(out), "--device", "cpu", "--tiny", "--only", "ceilings"]
    assert command.main(arguments) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    done = [name for name, record in content["sections"].items() if record["state"] == "done"]
    assert done == ["machine", "ceilings"] and content["only"] == ["ceilings"]
    assert {record["state"] for record in content["sections"].values()} == {"done", "left out"}
    assert capsys.readouterr().out.splitlines()[0].startswith("machine: done")


def test_an_error_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    run, said = small_run(tmp_path), []

    def failing(run: Run, results: Results) -> None:
        results["before"] = 1
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    def one_case(run: Run, results: Results) -> None:
        run.cases(results, {"bad": lambda: 1 / 0, "good": lambda: 2})

    perform(run, {"a": (1, failing), "b": (1, one_case)}, 1.0, progress=said.append)
    content = json.loads(run.out.read_text(encoding="utf-8"))["sections"]
    assert content["a"]["state"] == "failed" and content["a"]["results"] == {"before": 1}
    assert content["a"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert "illegal memory access" in said[0] and re.match(r"b: done, 1 error after ", said[1])
    assert content["b"]["state"] == "done"
    assert content["b"]["results"] == {"bad": {"error": "ZeroDivisionError: division by zero"}, "good": 2}


def test_an_interrupt_leaves_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(run: Run, results: Results) -> None:
        results["found"] = 3
        raise KeyboardInterrupt

    monkeypatch.setitem(command.SECTIONS, "ceilings", (1.0, stopped))
    out = tmp_path / "gpu.json"
    assert command.main(["--out", str(out), "--device", "cpu", "--tiny"]) == 130
    content = json.loads(out.read_text(encoding="utf-8"))
    states = [record["state"] for record in content["sections"].values()]
    assert states == ["done", "interrupted"] + [NOT_REACHED] * 7
    assert results(content, "ceilings") == {"found": 3} and "interrupted" in capsys.readouterr().err


def test_compare(whole: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.compared(whole.content, whole.content)[0] == []
    old = copy.deepcopy(whole.content)
    copying = results(old, "ceilings")["copying"]
    copying |= {"median": 8.0, "spread": 1.0, "unit": "bytes/s"}
    new = copy.deepcopy(old)
    moved = results(new, "ceilings")["copying"]
    for median, spread, lines in ((11.0, 0.5, 0), (11.1, 0.5, 1), (11.1, 2.0, 0), (4.0, 0.0, 1)):
        moved |= {"median": median, "spread": spread}
        found, both = compare.compared(old, new)
        assert len(found) == lines and both > 60, (median, spread)
    assert found == ["ceilings: copying: 8 to 4 bytes/s, 0.50 times, spread 1"]
    results(old, "machine")["torch"] = "1.0"
    earlier = tmp_path / "old.json"
    earlier.write_text(json.dumps(old), encoding="utf-8")
    out = tmp_path / "new.json"
    arguments = ["--out", str(out), "--device", "cpu", "--tiny", "--only", "ceilings"]
    assert command.main([*arguments, "--compare", str(earlier)]) == 0
    output = capsys.readouterr().out
    assert f"machine: torch: 1.0 to {torch.__version__}\n" in output
    # how many figures moved is the machine's affair: a busy one has a spread as large as the figure
    found, both = compare.compared(old, json.loads(out.read_text(encoding="utf-8")))
    assert all(f"{line}\n" in output for line in found) and both > 3
    moved = [line for line in found if line.startswith("ceilings: ")]
    assert f"\n{len(moved)} of {both} figures moved by more than three times their spread and 2%\n" in output


def test_tables(whole: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The documents' own markers get the run's tables; everything else stays."""
    pages = [tmp_path / name for name in ("engine.md", "kernels.md")]
    before = {}
    for page in pages:
        shutil.copy(ROOT / "docs" / page.name, page)
        before[page] = page.read_text(encoding="utf-8")
    arguments = ["--tables", str(whole.folder / "gpu.json"), *map(str, pages)]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("written") == sum(len(tables.MARKED.findall(text)) for text in before.values()) >= 4
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "Measured by `python -m benchmarks.gpu`" in text and text != before[page]
        assert tables.MARKED.sub("", text) == tables.MARKED.sub("", before[page])
        for line in text.splitlines():
            if line.startswith("|") and "step |" in line:
                assert line.endswith("|")
    once = [page.read_text(encoding="utf-8") for page in pages]
    assert command.main(arguments) == 0
    assert [page.read_text(encoding="utf-8") for page in pages] == once
    report = (whole.folder / "gpu.md").read_text(encoding="utf-8")
    assert "## operations" in report and "`norm_act [" in report
    assert "Wrong: nothing that was checked." in report
    content = copy.deepcopy(whole.content)
    results(content, "correct")["wrong"] = ["one voxel: groups 32"]
    assert "Wrong: one voxel: groups 32." in tables.report(content)
    results(content, "correct").clear()
    assert f"Correctness: {NOT_REACHED}." in tables.report(content)


def test_a_table_that_was_not_reached_is_kept(whole: SimpleNamespace, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "a\n<!-- gpu table: volumes -->\nan H200's figures\n<!-- /gpu table -->\nb\n"
    page.write_text(text, encoding="utf-8")
    content = copy.deepcopy(whole.content)
    content["sections"]["volume"] = {"state": NOT_REACHED, "results": {}}
    assert tables.put(content, [page]) == [f"{page}: volumes: kept, not reached in this run"]
    assert page.read_text(encoding="utf-8") == text
    results(content, "plain").clear()
    for rows in results(content, "step").values():
        rows[next(iter(rows))] = NOT_REACHED
    assert f"| {NOT_REACHED} |" in tables.made(content, "step")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --out FILE"),
        (["--out", "x.json", "--only", "ops,stepp"], "'stepp'"),
        (["--out", "x.json", "--device", "cpu", "--compare", "missing.json"], "missing.json: cannot be read"),
        (["--out", "x.txt", "--device", "cpu"], "x.txt"),
        (["--out", "nowhere/x.json", "--device", "cpu"], "nowhere"),
        (["--out", "x.json", "page.md"], "without --tables"),
        (["--tables", "page.md", "page.md"], "page.md: cannot be read"),
        (["--tables", "list.json", "page.md"], "no sections"),
        (["--tables", "run.json", "page.md"], "has no markers"),
        (["--tables", "run.json", "odd.md"], "is no table"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "page.md": "no markers",
        "odd.md": "<!-- gpu table: odd -->\n<!-- /gpu table -->\n",
        "list.json": "[]",
        "run.json": '{"sections": {}}',
    }.items():
        Path(name).write_text(text, encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    assert command.main(arguments) == 2
    output = capsys.readouterr()
    assert said in output.err and len(output.err.splitlines()) == 1 and not output.out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "device 'cuda' is not available" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_buffers_take_turns_beyond_the_cache() -> None:
    """Copies lie apart, together beyond four times the cache; strides and dtypes are as asked."""
    device = Cpu(l2=1 << 14)
    buffers, spec = Buffers(device), Spec((2, 3, 8, 8), (192, 1, 24, 3), torch.bfloat16)
    count, cold = copies_of(device, spec.bytes)
    taken = [buffers.take(spec) for _ in range(count)]
    assert cold and count * spec.bytes >= ROTATION * device.l2
    places = [tensor.data_ptr() for tensor in taken]
    assert len(set(places)) == count
    assert all(b - a >= spec.bytes for a, b in zip(sorted(places), sorted(places)[1:], strict=False))
    assert all(Spec.of(tensor) == spec and tensor.isfinite().all() for tensor in taken)
    assert taken[0].float().std() > 0.5
    assert buffers.take(Spec((3,), (1,), torch.int64)).tolist() == [0, 0, 0]
    assert buffers.take(Spec((4, 5), (0, 1), torch.float32)).stride() == (0, 1)
    assert buffers.take(Spec((0, 5), (5, 1), torch.float32)).shape == (0, 5)
    assert copies_of(device, 10 * ROTATION * device.l2) == (1, True)
    assert copies_of(Cpu(l2=1 << 30), 100) == (512, False)


def test_a_figure_takes_at_least_two_groups() -> None:
    calls: list[int] = []
    found = measure(Cpu(), [lambda: calls.append(1)] * 3, groups=1, seconds=0.0)
    assert len(found["groups"]) == 2 and len(calls) % 3 == 0 and found["unit"] == "s" and not found["graph"]


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), True),
        (torch.tensor([1.0, 2.0, 3.01]), False),
        (torch.tensor([1.0, math.nan, 3.0]), False),
        (torch.tensor([1.0, 2.0, 3.01]).bfloat16(), True),
        (torch.tensor([1.0, 2.0, 3.2]).bfloat16(), False),
        (torch.zeros(0), True),
    ],
)
def test_what_is_right(found: Tensor, right: bool) -> None:
    wanted = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[: found.numel()]
    assert compared([found], [wanted])["right"] == right


def test_a_kernel_that_does_not_write_is_found(sizes: Sizes, tmp_path: Path) -> None:
    from benchmarks.gpu.sections import traced

    run = small_run(tmp_path, sizes)
    (step,) = traced(run).values()
    for name in ("gather_slices_into", "norm_act", "ensemble_features_"):
        call = next(call for call in step.calls if call.name == f"scorefusion::{name}")
        assert against_float64(run, call)["right"]

        class Half:
            """Writes nothing where the real one writes, for tensors of float32."""

            _schema = call.function._schema

            def __call__(self, *args: Any, call: Any = call, **kwargs: Any) -> Any:
                tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
                if tensors[0].dtype == torch.float64:
                    return call.function(*args, **kwargs)
                result = call.function(*(a.clone() if isinstance(a, Tensor) else a for a in args), **kwargs)
                return None if result is None else torch.full_like(result, math.nan)

        assert not against_float64(run, replace(call, function=Half()))["right"]


def test_full_sizes_are_those_of_the_documents() -> None:
    assert FULL.steps[0] == ("t1-sr4", (96, 112, 96)) and FULL.slabs[0] == 2**20
    assert set(FULL.slabs) == {2**17, 2**18, 2**19, 2**20, 2**21}
    assert ("paper", (152, 192, 192)) in FULL.steps and FULL.folder == 16 and len(FULL.boxes) == 7
