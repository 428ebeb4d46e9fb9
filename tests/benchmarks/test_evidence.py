"""The evidence about kernels: traffic against counts by hand, machine code with planted faults, the verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.evidence import cache
from benchmarks.evidence.__main__ import program
from benchmarks.evidence.architectures import ARCHITECTURES
from benchmarks.evidence.case import Work
from benchmarks.evidence.catalogue import require_stem, stems
from benchmarks.evidence.machine_code import MachineCode, compile_source, read, source_of
from benchmarks.evidence.memory import Memory
from benchmarks.evidence.rows import Row, code_problems, complete, matching
from benchmarks.evidence.table import cells, lines, summary
from benchmarks.evidence.traffic import Counted, Moved, Record, capacities
from scorefusion.errors import ScoreFusionError
from scorefusion.ops import backends

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(bool(backends.missing("triton")), reason=str(backends.missing("triton")))
needs_compiler = pytest.mark.skipif(
    bool(backends.missing("triton")) or backends.interpreting(),
    reason=str(backends.missing("triton") or "TRITON_INTERPRET replaces the compiler"),
)


@pytest.fixture(scope="module")
def counts() -> dict[str, Any]:
    """In a process of its own, because TRITON_INTERPRET must be set before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.support.counted_kernels"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def moved(counted: dict[str, Any]) -> list[int]:
    return [counted[name] for name in ("read", "written", "read_sectors", "written_sectors")]


@needs_triton
def test_a_copy_moves_each_element_twice(counts: dict[str, Any]) -> None:
    assert counts["copy"]["raw"] == [4 * 2048, 4 * 2048]
    assert moved(counts["copy"]) == [4 * 2048] * 4


@needs_triton
def test_masked_lanes_are_not_counted(counts: dict[str, Any]) -> None:
    """100 of 128 lanes of bfloat16; they end a quarter into their seventh sector."""
    assert counts["masked"]["raw"] == [200, 200]
    assert moved(counts["masked"]) == [200, 200, 7 * 32, 7 * 32]


@needs_triton
def test_a_second_read_counts_once_where_the_cache_holds_it(counts: dict[str, Any]) -> None:
    assert counts["twice"]["raw"] == [2 * 4 * 2048, 4 * 2048]
    assert moved(counts["twice"]) == [4 * 2048] * 4
    assert moved(counts["twice, tiny cache"]) == [2 * 4 * 2048, 4 * 2048] * 2


@needs_triton
def test_a_strided_read_moves_whole_sectors(counts: dict[str, Any]) -> None:
    assert moved(counts["strided"]) == [4 * 2048, 4 * 2048, 8 * 4 * 2048, 4 * 2048]


@needs_triton
def test_changing_in_place_reads_and_writes(counts: dict[str, Any]) -> None:
    assert moved(counts["in place"]) == [4 * 2048] * 4


@needs_triton
def test_what_cannot_be_counted_raises(counts: dict[str, Any]) -> None:
    assert "atomic operations are not counted" in counts["atomic"]["error"]
    assert "none of its arguments" in counts["beyond"]["error"]


@needs_triton
def test_programs_run_in_the_order_of_a_gpu(counts: dict[str, Any]) -> None:
    """The first axis of the grid is the fastest: out[1, 0] is the second, not the fourth."""
    assert counts["programs"] == [0, 1, 2, 3, 4, 5]


def test_the_cache_is_an_exact_lru() -> None:
    """Against a list of sectors in order of use, one sector an access so that both mean the same."""
    random = np.random.default_rng(0)
    memory, capacity = Memory(64 * 32, [10 * 32]), 10
    used: list[int] = []
    reads = writes = 0
    dirty: set[int] = set()
    places = random.integers(0, 64, 4000) // random.integers(1, 9, 4000)
    for sector, store in zip(places.tolist(), random.random(4000).tolist(), strict=True):
        resident = used[-capacity:]
        if sector not in resident:
            dirty.discard(sector)
        if store < 0.3:
            writes += sector not in dirty
            dirty.add(sector)
        else:
            reads += sector not in resident
        if sector in used:
            used.remove(sector)
        used.append(sector)
        memory.access(np.array([sector * 32]), 4, store < 0.3)
    found = memory.caches[0].moved
    assert (found.read, found.written) == (4 * reads, 4 * writes)
    assert 0 < reads < 4000 and 0 < writes < 1200


def test_partial_sectors_add_up_to_whole_ones() -> None:
    """Two tiles that share a sector move each of its elements once, and the sector once."""
    memory = Memory(64, [64])
    for start in (0, 16):
        memory.access(np.arange(start, start + 16, 4), 4, False)
    assert vars(memory.caches[0].moved) == {
        "read": 32,
        "written": 0,
        "read_sectors": 32,
        "written_sectors": 0,
    }
    memory.access(np.zeros(128, dtype=np.int64), 4, False)
    assert memory.caches[0].moved.read == 32 and memory.raw_read == 32 + 128 * 4


def test_what_was_forgotten_is_read_again() -> None:
    memory = Memory(4 * 32, [2 * 32])
    for sector in (0, 1, 2, 0):
        memory.access(np.arange(sector * 32, sector * 32 + 32, 4), 4, False)
    assert memory.caches[0].moved.read == memory.caches[0].moved.read_sectors == 4 * 32


def test_a_far_read_is_excused_only_if_it_would_be_at_full_size() -> None:
    small = Work(read=600_000, written=400_000, flop=0, unfused=0)
    assert capacities(small, 1.0)[80] == 20 * 10**6
    assert capacities(small, 1000.0) == dict.fromkeys(ARCHITECTURES, 500_000)
    assert capacities(Work(10**8, 10**8, 0, 0), 1000.0)[90] == 25 * 10**6


@pytest.mark.parametrize(
    ("capability", "registers", "shared", "warps", "expected"),
    [
        (80, 32, 0, 4, 1.0),
        (80, 128, 0, 4, 16 / 64),
        (90, 255, 0, 8, 8 / 64),
        (80, 32, 163 << 10, 8, 8 / 64),
        (120, 32, 49 << 10, 4, 8 / 48),
        (120, 32, 0, 1, 24 / 48),
        (90, 32, 228 << 10, 4, 0.0),
    ],
    ids=["full", "registers", "most registers", "shared", "two blocks", "blocks", "does not fit"],
)
def test_occupancy(capability: int, registers: int, shared: int, warps: int, expected: float) -> None:
    assert ARCHITECTURES[capability].occupancy(registers, shared, warps) == expected


USAGE = " Function f:\n  REG:40 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:520\n"
LISTING = """
        /*0000*/ 	.byte	0xff, 0xff
        /*0010*/                   LDG.E.64 R4, [R16.64] ;
        /*0020*/               @P1 LDG.E.128 R4, desc[UR4][R16.64] ;
        /*0030*/              @!P0 STG.E.U16 desc[UR4][R2.64], R9 ;
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0050*/                   UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR13] ;
        /*0060*/              @P0  LDL.64 R2, [R1] ;
        /*0070*/                   STL [R1], R4 ;
        /*0080*/                   EXIT ;
"""


def test_reads_a_disassembly() -> None:
    assert read(USAGE, LISTING, 4096, 4) == MachineCode(
        registers=40,
        stack=8,
        spills=2,
        shared=5120,
        tensor_cores={"HMMA": 1, "UTCHMMA": 1},
        load_bits=128,
        store_bits=16,
        warps=4,
    )
    assert read(USAGE, LISTING + '\t.section\t.nv.shared.reserved.0,"aw"', 4096, 4).shared == 4096
    assert read(USAGE, "", 0, 4).error and read("", LISTING, 0, 4).error


def test_each_fault_is_a_problem() -> None:
    good = MachineCode(registers=40, shared=99 << 10, tensor_cores={"HMMA": 2}, warps=4)
    assert not code_problems(good, 120, True)
    faults = {
        "does not compile: no": MachineCode(error="no"),
        "8 bytes of stack": MachineCode(stack=8),
        "2 spill instructions": MachineCode(spills=2),
        "101377 bytes of shared memory, the limit is 101376": MachineCode(shared=(99 << 10) + 1),
    }
    for text, code in faults.items():
        assert code_problems(code, 120, False) == [text]
    assert code_problems(MachineCode(), 90, True) == ["no tensor-core instructions"]


def compiled(kernel: Any, arguments: tuple[Any, ...], capability: int, **constants: int) -> MachineCode:
    from scorefusion.kernels.launch import Config, launch, recording

    with recording(capability) as launches:
        launch(kernel, (1,), *arguments, config=Config("one", "", constants))
    return compile_source(source_of(launches[0], capability))


@needs_compiler
def test_compiles_a_product_for_each_gpu() -> None:
    from tests.support.counted_kernels import product_kernel

    kinds = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
    out, a, b = (torch.empty(128, 64, dtype=torch.bfloat16, device="meta") for _ in range(3))
    for capability, kind in kinds.items():
        code = compiled(product_kernel, (out, a, b), capability, M=128, N=64, K=64)
        assert list(code.tensor_cores) == [kind] and not code_problems(code, capability, True)
        assert code.load_bits == 128 and 0 < code.registers <= 255


@needs_compiler
def test_kernels_of_one_voxel_compile() -> None:
    """On a GPU, unlike in the interpreter, an argument that is 1 is a constant, not a tensor."""
    from scorefusion.kernels.ensemble_features import ensemble_features
    from scorefusion.kernels.fuse_scores import fuse_scores, fuse_scores_backward
    from scorefusion.kernels.fuse_step import fuse_step
    from scorefusion.kernels.gather_slices import gather_slices
    from scorefusion.kernels.launch import recording
    from scorefusion.kernels.noise import fill_normal
    from scorefusion.kernels.norm_act import norm_act

    def ones(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty((1,) * count, dtype=dtype, device="meta")

    voxel, channel, rows = ones(5), ones(1), torch.empty(1, 6, device="meta")
    index, keys = ones(1, torch.int32), torch.empty(1, 5, dtype=torch.int64, device="meta")
    step = (voxel, voxel, rows, index, keys, 1.0)
    with recording(90) as launches:
        for groups in (None, 1):
            norm_act(voxel, voxel, None, channel, channel, None, None, None, groups, 1e-5, True, 0, "zeros")
        gather_slices(ones(4), voxel, voxel, None, 2, 0, 1, [], 0, "modality")
        fuse_scores(voxel, [voxel], voxel, [1.0], 1.0)
        fuse_scores_backward(voxel, voxel, [voxel], 1.0)
        for measured in (None, voxel):
            fuse_step(voxel, voxel, [voxel], voxel, [1.0], 1.0, *step, (1, 1, 1), measured)
        ensemble_features(voxel, ones(4), ones(3), 2, 0)
        fill_normal(voxel, [1], 1, (1, 1, 1), [1])
    assert len({launch.kernel for launch in launches}) == 10
    for launch in launches:
        assert compile_source(source_of(launch, 90)).error == "", launch.kernel


@needs_compiler
def test_finds_spills_and_failures() -> None:
    from tests.support.counted_kernels import product_kernel, unknown_name_kernel

    tensors = tuple(torch.empty(256, 256, device="meta") for _ in range(3))
    crowded = compiled(product_kernel, tensors, 80, M=256, N=256, K=16)
    assert crowded.spills and any("spill" in problem for problem in code_problems(crowded, 80, False))
    failed = compiled(unknown_name_kernel, (tensors[0],), 80)
    assert "nothing_of_this_name" in failed.error


@needs_compiler
def test_alignment_decides_the_width() -> None:
    from tests.support.counted_kernels import copy_kernel

    out, given = (torch.empty(4097, device="meta") for _ in range(2))
    whole = compiled(copy_kernel, (out[1:], given[1:], 4096), 90, BLOCK=1024)
    odd = compiled(copy_kernel, (out[1:], given[1:], 4095), 90, BLOCK=1024)
    assert odd.load_bits == odd.store_bits == 32
    aligned = compiled(copy_kernel, (out[:-1], given[:-1], 4096), 90, BLOCK=1024)
    assert (aligned.load_bits, aligned.store_bits) == (128, 128) and whole.load_bits == 32


def row(**changes: Any) -> Row:
    work = Work(read=400, written=400, flop=0, unfused=1600)
    fields: dict[str, Any] = {"kernel": "_k", "case": "c", "config": "a", "why": "", "capability": 90}
    found = Row("op", **{**fields, **changes}, work=work)
    found.source = type("Source", (), {"key": "key"})()  # type: ignore[assignment]
    return found


def record(case: str, config: str, read: int) -> Record:
    work = {"_k": Work(read=400, written=400, flop=0, unfused=1600)}
    moved = {capability: Moved(read, 400, 2 * read, 400) for capability in ARCHITECTURES}
    return Record(case, config, {"_k": Counted(500, 400, moved)}, work)


def test_moving_too_much_is_a_problem() -> None:
    code = {"key": MachineCode(registers=32, warps=4)}
    good, bad = row(), row()
    complete(good, code, [record("c", "a", 400)])
    complete(bad, code, [record("c", "a", 480)])
    assert not good.problems and (good.moved, good.sectors, good.raw, good.unfused) == (1.0, 1.5, 1.125, 2.0)
    assert bad.problems == ["moves 1.100 x the compulsory bytes, more than 1.05"]
    silent = row(kernel="_other")
    complete(silent, code, [record("c", "a", 400)])
    assert silent.problems == ["bytes are not counted by any case"]


def test_a_row_takes_the_counts_of_its_own_case_else_the_worst_of_its_kernel() -> None:
    counts = [record("c", "a", 400), record("d", "a", 440), record("d", "b", 800)]
    assert matching(row(), counts) == counts[:1]
    assert matching(row(case="e"), counts) == counts[:2]
    assert matching(row(case="e", config="z"), counts) == counts
    worst = row(case="e")
    complete(worst, {"key": MachineCode(registers=32, warps=4)}, counts)
    assert worst.moved == 1.05


def test_a_row_is_a_line() -> None:
    wrong = row()
    wrong.problems.append("moves too much")
    listed = lines([wrong, row(capability=120)])
    assert len(listed) == 3 and all("op" in line for line in listed[1:])
    assert "sm_90" in listed[1] and listed[1].endswith("moves too much") and "sm_120" in listed[2]
    assert cells(row())[-1] == "ok"
    assert summary([wrong, row()], 1, 2, 3.0).endswith("1 rows with something wrong")


def test_answers_are_kept_where_the_user_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = cache.Answers(cache.user_cache_folder() / "kernels")
    assert answers.get("question") is None
    answers.put("question", {"answer": 1})
    assert answers.get("question") == {"answer": 1} and answers.get("another") is None
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    assert answers.get("question") is None
    assert cache.Answers(None).get("question") is None


def test_every_kernel_file_has_cases() -> None:
    files = {path.stem for path in (ROOT / "kernels").glob("*.py") if "@triton.jit" in path.read_text()}
    assert files == set(stems())
    with pytest.raises(ScoreFusionError, match="did you mean 'noise'"):
        require_stem("noize")


def run_verb(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.evidence", *arguments]
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        command, env={**given, **environment}, capture_output=True, text=True, cwd=ROOT, check=False
    )


@needs_triton
@pytest.mark.parametrize(
    "checked",
    [
        pytest.param(("noise",), id="one operation"),
        pytest.param(tuple(stems()), id="all", marks=pytest.mark.slow),
    ],
)
def test_the_fast_slice(tmp_path: Path, checked: tuple[str, ...]) -> None:
    """What continuous integration holds kernels to, from cold caches; then from the answers kept."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    file = tmp_path / "rows.json"
    chosen = [word for stem in checked for word in ("--stem", stem)]
    run = run_verb("--fast", *chosen, "--json", str(file), "--quiet", **environment)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads(file.read_text())
    assert {each["stem"] for each in rows} == set(checked)
    for stem in checked:
        for architecture in ARCHITECTURES.values():
            assert [
                each for each in rows if (each["stem"], each["architecture"]) == (stem, architecture.name)
            ]
            assert [line for line in run.stdout.splitlines() if stem in line and architecture.name in line]
    again = run_verb("--fast", *chosen, "--json", str(file), **environment)
    assert again.returncode == 0 and " 0 answers found" in again.stdout
    assert json.loads(file.read_text()) == rows


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_missing", lambda name: "triton is not installed; pip install it")
    run = CliRunner().invoke(program, [])
    assert "cannot be compiled: triton is not installed; pip install it" in str(run.exception)


@needs_triton
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stem", "noize"], "unknown operation 'noize'; did you mean 'noise'"),
        (["--arch", "sm_91"], "unknown architecture 'sm_91'; did you mean 'sm_90'"),
        (["--json", "rows.txt"], "End its name in .json"),
    ],
)
def test_rejects_bad_input(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run = CliRunner().invoke(program, arguments)
    assert isinstance(run.exception, ScoreFusionError) or run.exit_code == 2
    assert message in f"{run.exception} {run.stderr}"
