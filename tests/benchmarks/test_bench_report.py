"""The benchmark report: ratios and rates worked out by hand, a picture, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.report import draw, markdown, program, read_report, result_line, write_report
from scorefusion.errors import BadInput


def bench(name: str, seconds: float, group: str, reference: bool = False, **extra: Any) -> dict[str, Any]:
    return {
        "name": name,
        "group": group,
        "stats": {"min": seconds, "mean": 2 * seconds},
        "extra_info": {"reference": reference, "device": "cpu", "dtype": "float32", **extra},
    }


COPY = {"bytes": {"rate": 20e9, "kind": "copying"}}
PRODUCT = {"FLOP": {"rate": 100e9, "kind": "a float32 matrix product"}}
CONTENT = {
    "machine_info": {
        "cpu": {"brand_raw": "A Processor"},
        "instructions": ["avx2", "amx_bf16"],
        "threads": 2,
        "torch": "2.13.0",
    },
    "commit_info": {"id": "0123456789abcdef", "dirty": False},
    "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        bench("test_gather[cpp-box]", 0.002, "gather, box", bytes=2e7, ceilings=COPY),
        bench("test_gather[torch-box]", 0.008, "gather, box", True, bytes=2e7, ceilings=COPY),
        bench("test_layer[torch]", 0.5, "layer", True, FLOP=1e10, ceilings=PRODUCT),
        bench("test_layer[torch.compile]", 1.0, "layer", FLOP=1e10, ceilings={}),
        bench("test_alone", 1.0, "alone", once="one run; a case has 0.5 s"),
    ],
    "not_timed": [
        {"name": "test_gather[cpp-box-bfloat16]", "reason": "not timed: no bfloat16 instructions"},
        {"name": "test_gather[torch-box-bfloat16]", "reason": "not timed: no bfloat16 instructions"},
        {"name": "test_gather[triton-box]", "reason": "not run: no CUDA device"},
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(CONTENT))
    return path


def test_ratios_rates_and_ceilings(file: Path) -> None:
    report = read_report(file)
    reference, cpp = report.groups["gather, box"]
    assert (reference.name, cpp.name) == ("torch", "cpp")
    assert reference.reference and reference.ratio == 1.0 and cpp.ratio == pytest.approx(4.0)
    ((unit, rate, share, kind),) = cpp.rates
    assert (unit, kind) == ("bytes", "copying")
    assert rate == pytest.approx(10e9) and share == pytest.approx(0.5)
    slower = report.groups["layer"][1]
    assert slower.ratio == pytest.approx(0.5) and slower.rates[0][2] is None
    assert report.groups["alone"][0].ratio is None and report.groups["alone"][0].name == "test_alone"
    assert report.machine == "A Processor; avx2, amx_bf16; 2 threads; PyTorch 2.13.0"


def test_table(file: Path) -> None:
    text = markdown(read_report(file))
    assert "### gather, box" in text and "2026-01-02, 0123456789" in text
    assert "| cpp | 2.00 ms | 4.00 | 10.0 GB/s | 50% of copying |" in text
    assert "| torch (reference) | 500 ms | 1.00 | 20.0 GFLOP/s | 20% of a float32 matrix product |" in text
    assert "| test_alone (one run; a case has 0.5 s) | 1,000 ms |" in text
    assert text.count("not timed: no bfloat16 instructions |") == 2
    assert text.endswith("| test_gather[triton-box] | not run: no CUDA device |\n")


def test_line_of_the_terminal() -> None:
    line = result_line("cpp", 0.002, 0.008, {"bytes": 2e7, "ceilings": COPY})
    assert "2.00 ms" in line and "4.00×" in line and line.endswith("10.0 GB/s, 50% of copying")
    assert "×" not in result_line("cpp", 0.002, None, {})
    assert result_line("torch", 2.0, 2.0, {"once": "one run"}).endswith("1.00×  (one run)")


def test_a_file_of_an_older_run_has_nothing_left_out(file: Path) -> None:
    file.write_text(json.dumps({key: value for key, value in CONTENT.items() if key != "not_timed"}))
    assert read_report(file).not_timed == {} and "Not timed" not in markdown(read_report(file))


def test_the_verb_writes_both(file: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    run = CliRunner().invoke(program, [str(file)])
    assert run.exit_code == 0, run.output
    assert file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert file.with_suffix(".md").read_text() == markdown(read_report(file))
    assert sorted(path.name for path in file.parent.iterdir()) == ["bench.json", "bench.md", "bench.png"]


def test_every_result_is_in_the_picture(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture, table = write_report(read_report(file), tmp_path / "out.svg")
    drawn = picture.read_text()
    assert table == tmp_path / "out.md"
    for text in ("A Processor; avx2, amx_bf16", "gather, box", "cpp", "4.00×", "no reference"):
        assert f"<!-- {text}" in drawn
    assert "2 cases not timed: no bfloat16 instructions. 1 case not run: no CUDA device. -->" in drawn


def test_a_long_group_name_stands_before_the_line_at_one(file: Path) -> None:
    """The reference's line crosses where a heading is long; and the reference need not be PyTorch's."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    figure = draw(read_report(file))
    headings = {text.get_text(): text for text in figure.axes[0].texts}
    line = figure.axes[0].lines[0]
    for group in ("gather, box", "layer", "alone"):
        assert headings[group].get_bbox_patch() is not None
        assert headings[group].zorder > line.zorder
    assert "the reference, the first row" in figure.texts[0].get_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Make one with `pytest benchmarks"),
        ("{", "is not a JSON file"),
        ("[]", "it has no list 'benchmarks'"),
        ('{"benchmarks": []}', "has no benchmark in it"),
        ('{"benchmarks": [{"group": "a", "name": "b"}]}', r"not a benchmark file of this project \(KeyError"),
        (
            '{"benchmarks": [{"group": "a", "name": "b", "stats": null, "extra_info": {}}]}',
            "not a benchmark file of this project",
        ),
    ],
    ids=["missing", "not JSON", "a list", "empty", "no statistics", "null"],
)
def test_rejects_bad_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "bench.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput, match=message):
        read_report(path)


def test_rejects_a_bad_output(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="End its name in .png"):
        write_report(read_report(file), tmp_path / "out.txt")
    with pytest.raises(BadInput, match="does not exist"):
        write_report(read_report(file), tmp_path / "nowhere" / "out.png")
