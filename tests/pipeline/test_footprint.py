"""Memory forecast before work starts: whether it is true, and what follows where memory is short."""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import scorefusion.pipeline.footprint
from scorefusion import Pipeline
from scorefusion.cli import app
from scorefusion.data import least_box, prepare_conditions, sampling_box
from scorefusion.engine import pool as pools
from scorefusion.engine.planning.available import Available
from scorefusion.engine.planning.forecast import PROGRAM, forecast, most_workspace
from scorefusion.engine.planning.plan import plan
from scorefusion.errors import OutOfMemory, ScoreFusionError, out_of_memory
from scorefusion.models.presets import PRESETS, preset
from tests.support.batches import names, translate, volumes, write_model, write_scan
from tests.support.tiny import AFFINE, same_grid_config, tiny_config, tiny_image, tiny_model, write_tiny

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

REAL = """
import json, sys
import numpy as np, nibabel as nib, torch
from tests.support.tiny import same_grid_config, tiny_config, tiny_model
from scorefusion.engine.planning.memory import return_freed_memory
from scorefusion.pipeline import Pipeline

torch.set_num_threads(1)
folder, conditions, shape, choices = sys.argv[1], int(sys.argv[2]), *map(json.loads, sys.argv[3:])

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

return_freed_memory()
config = tiny_config() if conditions == 1 else same_grid_config()
pipeline = Pipeline(tiny_model(config), device="cpu", dtype="float32")
head, part = np.zeros(shape, np.int16), tuple(slice(n // 5, -(n // 5)) for n in shape)
head[part] = np.random.default_rng(0).integers(200, 1000, head[part].shape)
files = [f"{folder}/{number}.nii.gz" for number in range(conditions)]
for file in files:
    nib.save(nib.Nifti1Image(head, np.eye(4)), file)
pipeline([head[part][:16, :16, :16]] * conditions, assume_affine=True, **choices)  # all is imported
pipeline.free()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
settings = pipeline.settings(**choices)
job = pipeline.read(files, settings)
pipeline.prepare(job)
pipeline.sample(job)
result = pipeline.finish(job)
found, room = job.footprint, pipeline._room
del job
result.save(f"{folder}/out.nii.gz")
taken = status("VmHWM") - before
found = room.footprint(found.shapes, found.box, settings)
engine = pipeline._engines.fitted(
    found.size, None, batch=min(settings.batch, settings.samples),
    strategy=settings.strategy, planes=settings.planes, around=found.around,
).forecast
print(room.around(found, engine) - room._base(), taken)
"""


@linux
@pytest.mark.parametrize(
    ("conditions", "shape", "choices"),
    [
        (1, (44, 48, 44), {}),
        pytest.param(1, (36, 40, 32), {"crop": False}, marks=pytest.mark.slow),
        pytest.param(
            1, (36, 36, 36), {"samples": 2, "batch": 2, "disagreement": True}, marks=pytest.mark.slow
        ),
        pytest.param(
            1, (64, 64, 64), {"strategy": "average", "output_dtype": "input"}, marks=pytest.mark.slow
        ),
        pytest.param(2, (72, 72, 72), {}, marks=pytest.mark.slow),
    ],
)
def test_the_forecast_is_a_processs_peak(
    tmp_path: Path, conditions: int, shape: tuple[int, ...], choices: dict[str, Any]
) -> None:
    """The peak of all stages is at most 5% and 8 MB above the forecast, and at most 40% below it."""
    arguments = [str(tmp_path), str(conditions), json.dumps(shape), json.dumps({"steps": 1, **choices})]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    said = subprocess.run(
        [sys.executable, "-c", REAL, *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
    ).stdout  # fmt: skip
    planned, taken = (int(word) for word in said.split())
    assert taken > 50e6
    assert taken <= 1.05 * planned + 8e6, (planned, taken)
    assert planned <= 1.4 * taken, (planned, taken)


@pytest.mark.parametrize("name", [*PRESETS, "tiny"])
def test_the_quick_bound_is_above_the_forecast(name: str) -> None:
    config = tiny_config() if name == "tiny" else preset(name)
    for size in ((8, 8, 8), (40, 56, 48)):
        layout = plan(config, size)
        assert most_workspace(layout) > 2 * forecast(layout).workspace


@pytest.mark.parametrize("seed", range(4))
def test_the_least_box_is_part_of_the_sampled_one(seed: int) -> None:
    config, generator = tiny_config(), torch.Generator().manual_seed(seed)
    volume = torch.zeros(1, 1, 24, 20, 28)
    low = torch.randint(0, 9, (3,), generator=generator).tolist()
    volume[..., low[0] : low[0] + 9, low[1] : low[1] + 3, low[2] : low[2] + 11] = 100.0
    volume += torch.rand(volume.shape, generator=generator)
    least = least_box([volume], config)
    exact = sampling_box(prepare_conditions([volume], config).condition, config)
    assert least is not None
    assert all(a >= b for a, b in zip(least.start, exact.start, strict=True))
    assert all(a <= b for a, b in zip(least.stop, exact.stop, strict=True))
    assert all(a >= b - 2 * (8 + 2 * 2) for a, b in zip(least.size, exact.size, strict=True))


def has(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """A machine with so many bytes free beyond what this process holds; checked with its own eyes."""
    monkeypatch.setattr(pools, "available_on", lambda device: Available(left, "free on this machine"))
    monkeypatch.setattr(pools, "resident_bytes", lambda: PROGRAM + 10**9)


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(tiny_model(), device="cpu", dtype="float32")


def needs(pipeline: Pipeline, image: Any, **choices: Any) -> int:
    """What a translation takes beyond the program and the weights."""
    settings = pipeline.settings(**choices)
    job = pipeline.read(image, settings)
    pipeline.prepare(job)
    found = pipeline._room.footprint(job.footprint.shapes, job.box.size, settings)
    engine = pipeline._engines.fitted(found.size, None, strategy=settings.strategy, around=found.around)
    return found.around.total(engine.first) - pipeline._room._base()


IMAGE = tiny_image((28, 32, 30))


def test_what_fits_is_left_alone(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pipeline(IMAGE, seed=3)
    assert expected.warnings == ()
    need = needs(pipeline, IMAGE)
    for left in (10**12, need + 10**5):  # by far, and just so
        has(monkeypatch, left)
        pipeline.free()
        result = pipeline(IMAGE, seed=3)
        assert result.warnings == () and np.array_equal(result.volume, expected.volume)


@pytest.mark.parametrize(
    ("strategy", "share", "words", "apart"),
    [
        ("average", 0.85, "slabs of", 1e-5),
        ("fuse+features", 0.955, "sums of features in bfloat16", 0.01),
        ("fuse+features", 0.87, "tiles of", 0.01),
    ],
)
def test_what_fits_with_help_says_so(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    share: float,
    words: str,
    apart: float,
) -> None:
    expected = pipeline(IMAGE, seed=3, strategy=strategy)
    pipeline.free()
    has(monkeypatch, int(share * needs(pipeline, IMAGE, strategy=strategy)))
    result = pipeline(IMAGE, seed=3, strategy=strategy)
    assert len(result.warnings) == 1 and "\n" not in result.warnings[0]
    for each in ("memory is short", "free on this machine", "going on with", words, "result"):
        assert each in result.warnings[0]
    difference = np.abs(result.volume - expected.volume).max()
    assert difference <= apart * np.ptp(expected.volume)


def test_fewer_samples_at_once_come_first(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tiny_image((14, 16, 15))
    expected = pipeline(image, samples=4, batch=4)
    pipeline.free()
    has(monkeypatch, int(1.6 * needs(pipeline, image)))
    result = pipeline(image, samples=4, batch=4)
    assert result.warnings[-1] == "memory is short: 1 samples at once, not 4; equal to rounding"
    np.testing.assert_allclose(result.volume, expected.volume, atol=1e-3 * np.ptp(expected.volume))


def test_where_nothing_fits_one_line_says_what_would(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crop that it names does fit."""
    has(monkeypatch, int(0.5 * needs(pipeline, IMAGE)))
    monkeypatch.setattr("scorefusion.data.prepare_conditions", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(OutOfMemory) as caught:
        pipeline(IMAGE)
    assert isinstance(caught.value, ScoreFusionError) and caught.value.__cause__ is None
    said = str(caught.value)
    for words in (
        "image: needs 0.05 GB of memory",
        "0.04 GB are free on this machine",
        "Crop it to at most",
        "`scorefusion plan --shape ",
    ):
        assert words in said, said
    edges = [int(word) for word in said.split("at most ")[1].split(" voxels")[0].split(" × ")]
    assert all(4 <= edge < n for edge, n in zip(edges, IMAGE.shape, strict=True))
    monkeypatch.undo()
    part = tuple(
        slice(n // 2 - edge // 2, n // 2 - edge // 2 + edge)
        for n, edge in zip(IMAGE.shape, edges, strict=True)
    )
    crop = nib.Nifti1Image(np.asarray(IMAGE.dataobj)[part], IMAGE.affine)
    has(monkeypatch, int(0.5 * needs(pipeline, IMAGE)))
    pipeline.free()
    assert pipeline(crop).volume.shape == tuple(2 * edge for edge in edges)


def test_reading_and_preparing_count(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that promises much more than can be read is refused before its voxels are."""
    has(monkeypatch, 10**6)
    big = nib.Nifti1Image(np.broadcast_to(np.int16(1), (400, 400, 400)), np.eye(4))
    with pytest.raises(OutOfMemory, match="needs at least .* 0.00 GB are free"):
        pipeline(big)


def test_max_memory_counts_the_volumes_around(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    free = Pipeline(model, device="cpu", dtype="float32")
    need = needs(free, IMAGE) + free._room._base()
    kept = Pipeline(model, device="cpu", dtype="float32", max_memory=need + 10**5)(IMAGE)
    assert kept.warnings == ()
    with pytest.raises(OutOfMemory, match=r"GB are allowed.*or allow more"):
        Pipeline(model, device="cpu", dtype="float32", max_memory=PROGRAM + need // 100)(IMAGE)


def test_other_kinds_of_measurements_are_walked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Pipeline(tiny_model(same_grid_config()), device="cpu", dtype="float32")
    has(monkeypatch, 20 * 10**6)
    with pytest.raises(OutOfMemory, match="Crop it to at most"):
        two([tiny_image((40, 40, 40))] * 2)


def run(model: Path, *arguments: str | Path) -> Result:
    machine = ("--device", "cpu", "--dtype", "float32")
    return CliRunner().invoke(app, ["translate", *map(str, arguments), "--model", str(model), *machine])


def quietly(model: Path, *arguments: str | Path) -> str:
    """The only line that a translation prints, which must be refused."""
    return one_line(run(model, *arguments, "--quiet"))


def one_line(result: Result) -> str:
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("scorefusion: "), result.stderr
    return lines[0]


def test_the_command_refuses_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = write_tiny(tmp_path)
    has(monkeypatch, 10**5)
    said = quietly(model, image, "-o", tmp_path / "out.nii.gz")
    assert str(image) in said and "scorefusion plan" in said and not (tmp_path / "out.nii.gz").exists()


def test_the_command_goes_on_with_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = write_tiny(tmp_path)
    nib.save(IMAGE, tmp_path / "in.nii.gz")
    pipeline = Pipeline(model, device="cpu", dtype="float32")
    has(monkeypatch, int(0.955 * needs(pipeline, IMAGE)))
    result = run(model, tmp_path / "in.nii.gz", "-o", tmp_path / "out.nii.gz")
    assert result.exit_code == 0, result.output
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and "bfloat16" in warned[0] and (tmp_path / "out.nii.gz").exists()


def test_in_a_batch_the_item_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "tiny")
    for number in (0, 1, 3):
        write_scan(tmp_path / "in" / f"{number}.nii.gz", number)
    write_scan(tmp_path / "in" / "2.nii.gz", 2, (60, 60, 60))
    small = Pipeline(model, device="cpu", dtype="float32")
    has(monkeypatch, 20 * needs(small, nib.Nifti1Image(np.random.rand(7, 6, 5).astype(np.float32), AFFINE)))
    events = translate(model, tmp_path / "in", "-o", tmp_path / "out", "--steps", "1", code=1)
    assert names(events, "item-done") == ["0.nii.gz", "1.nii.gz", "3.nii.gz"]
    (failed,) = [event for event in events if event["event"] == "item-failed"]
    assert failed["name"] == "2.nii.gz" and "2.nii.gz: needs " in failed["error"]
    assert failed["fix"].startswith("Crop it to at most") and "scorefusion plan" in failed["fix"]
    monkeypatch.undo()
    translate(model, tmp_path / "in", "-o", tmp_path / "out", "--steps", "1")
    assert len(volumes(tmp_path / "out")) >= 4


ERRORS = {
    "numpy": lambda: np._core._exceptions._ArrayMemoryError((2**20, 2**20), np.dtype("f8")),
    "python": lambda: MemoryError(),
    "torch": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuBLAS": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "system": lambda: OSError(12, "Cannot allocate memory"),
    "C++": lambda: RuntimeError("std::bad_alloc"),
}
STAGES = {
    "read": ("scorefusion.io.header.gzip.GzipFile.read", "reading it"),
    "prepare": ("scorefusion.data.preprocess.base_volume", "preparing it"),
    "sample": ("scorefusion.models.slabs.gather_slices", "sampling"),
    "finish": ("scorefusion.pipeline.pipeline._finished", "finishing it"),
    "write": ("nibabel.save", "writing it"),
}


def fails(monkeypatch: pytest.MonkeyPatch, target: str, error: Callable[[], Exception]) -> None:
    def short(*arguments: Any, **options: Any) -> Any:
        raise error()

    monkeypatch.setattr(target, short)


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", ["numpy", "torch", "system", pytest.param("CUDA", marks=pytest.mark.slow)])
def test_an_allocation_that_fails_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: str
) -> None:
    target, doing = STAGES[stage]
    model, image = write_tiny(tmp_path)
    fails(monkeypatch, target, ERRORS[error])
    said = quietly(model, image, "-o", tmp_path / "out.nii.gz")
    assert f"memory ran out while {doing}" in said and str(tmp_path) in said
    assert {"numpy": "8.00 TiB", "torch": "4.29 GB", "CUDA": "2.00 GiB", "system": ""}[error] in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nii.gz", "tiny"]


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("stage", STAGES)
def test_in_python_it_is_chained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str) -> None:
    _, image = write_tiny(tmp_path)
    pipeline = Pipeline(tiny_model(), device="cpu", dtype="float32")
    with monkeypatch.context() as patch:
        fails(patch, STAGES[stage][0], ERRORS["python"])
        with pytest.raises(OutOfMemory) as caught:
            pipeline(image).save(tmp_path / "out.nii.gz")
    assert isinstance(caught.value.__cause__, MemoryError) and out_of_memory(caught.value)
    del caught
    gc.collect()
    assert pipeline(image).save(tmp_path / "out.nii.gz").exists()


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("stage", STAGES)
def test_in_a_batch_it_is_tried_again_and_then_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    model = write_model(tmp_path / "tiny")
    for number in range(3):
        write_scan(tmp_path / "in" / f"{number}.nii.gz", number, (7, 6, 5) if number != 1 else (9, 6, 5))
    target, tries = STAGES[stage][0], 0
    if stage == "write":
        target = "scorefusion.batch.files.store_image"
    original = _resolve(target)

    def short(*arguments: Any, **options: Any) -> Any:
        nonlocal tries
        if _is_second(stage, arguments):
            tries += 1
            raise ERRORS["torch"]()
        return original(*arguments, **options)

    monkeypatch.setattr(target, short)
    events = translate(model, tmp_path / "in", "-o", tmp_path / "out", "--steps", "1", code=1)
    assert names(events, "item-done") == ["0.nii.gz", "2.nii.gz"]
    (failed,) = [event for event in events if event["event"] == "item-failed"]
    assert failed["name"] == "1.nii.gz" and "memory ran out while" in failed["error"] and failed["fix"]
    assert tries >= 2


def _resolve(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except ModuleNotFoundError:
        return getattr(_resolve(module), name)


def _is_second(stage: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a call is about the item of 9 voxels along x, 18 in the output."""
    if stage == "read":
        return "1.nii.gz" in str(arguments[0].name)
    if stage == "write":
        return arguments[0].shape[0] == 18
    if stage == "finish":
        return arguments[0].prepared.base.shape[-1] == 18
    if stage == "prepare":
        return arguments[0].shape[-1] == 9
    return arguments[1].shape[-1] == 18


@pytest.mark.parametrize("error", ERRORS)
def test_every_kind_of_allocation_failure_is_known(error: str) -> None:
    assert out_of_memory(ERRORS[error]())


@pytest.mark.parametrize(
    "error",
    [
        ValueError("memory layout"),
        OSError(28, "No space left on device"),
        RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"),
        ScoreFusionError("out of memory is what this file is called"),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not out_of_memory(error)


@pytest.mark.parametrize(
    ("verb", "arguments", "target", "fix"),
    [
        ("plan", ["--shape", "8", "8", "8"], "scorefusion.engine.planning.fit.fit", "plan"),
        ("demo", ["--data", "{image}", "-o", "{out}"], "scorefusion.evaluate.demo.pooled_case", "--box"),
        (
            "evaluate",
            ["{model}", "{folder}", "-o", "{out}"],
            "scorefusion.pipeline.pipeline.Pipeline.__init__",
            "smaller",
        ),
        (
            "tune",
            ["{model}", "{image}", "-o", "{out}"],
            "scorefusion.pipeline.pipeline.Pipeline.__init__",
            "--box",
        ),
        ("video", ["{image}", "-o", "{out}.gif"], "scorefusion.io.video.read_clip", "--frames"),
        ("train", ["{run}", "-o", "{out}"], "scorefusion.train.loop.train", "--dry-run"),
        ("denoise-error", ["{image}"], "scorefusion.pipeline.pipeline.Pipeline.__init__", "free some memory"),
    ],
)
def test_every_verb_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, arguments: list[str], target: str, fix: str
) -> None:
    model, image = write_tiny(tmp_path)
    root = Path(__file__).parents[2]
    run_file = next(iter(sorted((root / "configs").rglob("*.json"))))
    places = {"model": model, "image": image, "folder": tmp_path, "out": tmp_path / "out", "run": run_file}
    _resolve(target)
    fails(monkeypatch, target, ERRORS["torch"])
    result = CliRunner().invoke(app, [verb, *(text.format(**places) for text in arguments)])
    said = one_line(result)
    assert "memory ran out" in said and fix in said


LIMITED = """
import resource, sys
import torch
torch.set_num_threads(1)
from scorefusion.pipeline import Pipeline
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[1]),) * 2)
from scorefusion.cli import app
app(sys.argv[2:])
"""


@linux
@pytest.mark.parametrize("left", [pytest.param(150_000_000, marks=pytest.mark.slow), 300_000_000])
def test_under_ulimit(tmp_path: Path, left: int) -> None:
    """Refuse in one line under a real limit of the address space, naming the limit."""
    model, image = write_tiny(tmp_path)
    nib.save(tiny_image((120, 120, 120)), image)
    command = ["translate", str(image), "-o", str(tmp_path / "out.nii.gz"), "--model", str(model)]
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(left), *command, "--device", "cpu", "--dtype", "float32"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.splitlines()) == 1 and "Traceback" not in run.stderr
    assert "Crop it" in run.stderr
    # With little address space left, an allocation may fail before the forecast is made.
    assert "ulimit -v" in run.stderr or (left < 200_000_000 and "memory ran out" in run.stderr)


@pytest.mark.slow
def test_a_head_of_256_voxels_on_a_machine_of_24_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model would make 1024 × 1024 × 1024 voxels of it."""
    head = np.zeros((256, 256, 256), np.uint8)
    head[40:216, 30:226, 50:210] = np.random.default_rng(0).integers(50, 255, (176, 196, 160), np.uint8)
    with gzip.open(tmp_path / "t1.nii.gz", "wb", 1) as file:
        file.write(nib.Nifti1Image(head, np.eye(4)).to_bytes())
    has(monkeypatch, 22 * 10**9)
    monkeypatch.setattr("scorefusion.data.prepare_conditions", lambda *_: pytest.fail("work has begun"))
    arguments = [
        "translate",
        str(tmp_path / "t1.nii.gz"),
        "-o",
        str(tmp_path / "out.nii.gz"),
        "--model",
        "t1-sr4",
    ]
    said = one_line(CliRunner().invoke(app, [*arguments, "--device", "cpu", "--dtype", "float32"]))
    for words in (
        "t1.nii.gz: needs ",
        "22.",
        "GB are free",
        "Crop it to at most",
        "`scorefusion plan --model t1-sr4 --shape 640 784 704`",
    ):
        assert words in said, said
    assert float(said.split("needs ")[1].split()[0]) > 80


def test_plan_compares_with_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_of(free: int) -> str:
        monkeypatch.setattr(
            scorefusion.pipeline.footprint,
            "available_on",
            lambda device: Available(free, "free on this machine"),
        )
        monkeypatch.setattr(scorefusion.pipeline.footprint, "resident_bytes", lambda: PROGRAM)
        arguments = ["plan", "--shape", "64", "64", "64", "--device", "cpu", "--dtype", "float32"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.output.splitlines()[-1]

    assert plan_of(10**10).startswith("this machine: 10.00 GB are free on this machine")
    assert plan_of(10**10).endswith("GB: fits")
    need = float(plan_of(10**10).split("takes ")[1].split()[0]) * 1e9
    assert "GB: fits with " in plan_of(int(0.9 * (need - PROGRAM)))
    assert "does not fit" in plan_of(10**7)
