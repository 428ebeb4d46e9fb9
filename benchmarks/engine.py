"""The engine against the plain implementation: a step, a volume, memory, and how time grows with voxels.

    python -m benchmarks.engine step                    # paper widths, 32×64×64 and 64×96×96
    python -m benchmarks.engine step --compile          # torch.compile of the plain implementation as well
    python -m benchmarks.engine step --device cuda      # on a GPU, with and without a graph
    python -m benchmarks.engine volume data/oasis_t1.nii.gz
    python -m benchmarks.engine memory --size 152 192 192 --max-memory 9GiB
    python -m benchmarks.engine growth

Times are the least of a few turns, taken in turn; what counts is their ratio. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ceilings import best_convolution
from benchmarks.plain import Plain
from benchmarks.step_budget import config_of
from scorefusion.diffusion.level import NoiseLevel
from scorefusion.diffusion.sample import sample
from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.fit import parse_memory
from scorefusion.engine.planning.forecast import forecast
from scorefusion.engine.planning.memory import keep_freed_memory
from scorefusion.engine.pool import EnginePool
from scorefusion.evaluate.demo import BOX, pooled_case
from scorefusion.evaluate.tune import table_of
from scorefusion.io.nifti import read_scan
from scorefusion.metrics import METRICS, Pair, measure
from scorefusion.models.config import SamplingConfig
from scorefusion.models.folder import channels_last
from scorefusion.models.score_fusion import ScoreFusion
from scorefusion.models.table import table_for
from scorefusion.ops.backends import use_backend
from scorefusion.ops.device import choose_dtype, cpu_instructions
from scorefusion.pipeline import Settings, draw_residuals

AS_REALISTIC = SamplingConfig(
    solver="ddim",
    steps=5,
    sigma_max=20.0,
    sigma_min=1.0,
    rho=-2.0,
    eta=1.0,
    spread=1.0,
    strategy="fuse+features",
)
"""Chosen on a training head by `scorefusion tune`: PSNR, spectrum and patches as of 50 ancestral steps."""

SIZES = ((32, 64, 64), (64, 96, 96))


def seeded(name: str) -> ScoreFusion:
    """A preset's or folder's model, drawn anew, in which no weight is left at zero."""
    torch.manual_seed(0)
    model = ScoreFusion(config_of(name)).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return channels_last(model)


def engine_for(
    model: ScoreFusion,
    size: Sequence[int],
    dtype: torch.dtype,
    max_memory: str | None = None,
    device: str = "cpu",
) -> Engine:
    """An engine as pipelines have it, with random conditions, at the start of a solver of 50 steps."""
    model.to(device).slice_networks.to(dtype)
    assert model.fusion is not None
    model.fusion.to(dtype)
    with EnginePool(model, max_memory=max_memory).borrow(size, strategy="fuse+features") as engine:
        engine.load(condition_of(model, size).to(device))
        engine.start(table_for(model.config, solver="ddpm", steps=50), [0])
        return engine


def condition_of(model: ScoreFusion, size: Sequence[int]) -> Tensor:
    """Random conditions ``[1, C, D, H, W]``."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, len(model.config.conditions), *size, generator=generator).clamp(-1, 1)


def in_turn(bodies: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """The least seconds of each body; each is run once before."""
    best = dict.fromkeys(bodies, math.inf)
    for turn in range(turns + 1):
        for name, body in bodies.items():
            wait_for_gpu()
            start = time.perf_counter()
            body()
            wait_for_gpu()
            best[name] = min(best[name], time.perf_counter() - start) if turn else math.inf
    return best


def wait_for_gpu() -> None:
    """Wait until what was launched is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@torch.no_grad()
def step(
    sizes: Sequence[Sequence[int]], turns: int, compiled: bool, name: str, device: str = "cpu"
) -> list[dict[str, Any]]:
    """One step of the fused model: plainly, by the engine in float32, and in the dtype that is fast there."""
    fast = choose_dtype("auto", device)
    ceiling = best_convolution(dict.fromkeys((torch.float32, fast)), device)
    print(json.dumps({"best convolution, GFLOP/s": ceiling / 1e9}), flush=True)
    found = []
    for size in sizes:
        model = seeded(name)
        plain = Plain(model.to(device))
        x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2)).to(device)
        inputs = model.prepare(condition_of(model, size).to(device))
        level = NoiseLevel.of(0.5, 300, 1, device)
        with FlopCounterMode(display=False) as counter:
            expected = plain(x, inputs, level)
        bodies: dict[str, Callable[[], Any]] = {"plain float32": partial(plain, x, inputs, level)}
        if device == "cuda":
            bodies["plain, autocast"] = torch.autocast(device, fast)(bodies["plain float32"])
        if compiled:
            bodies["plain float32, torch.compile"] = partial(Plain(model, compiled=True), x, inputs, level)
        apart = {}
        for dtype in dict.fromkeys((torch.float32, fast)):
            engine = engine_for(seeded(name), size, dtype, device=device)
            result = engine.model(x, inputs, level, strategy="fuse+features")
            label = f"engine {str(dtype).removeprefix('torch.')}"
            apart[label] = float((result - expected).norm() / expected.norm())
            if device == "cuda":
                bodies[f"{label}, launched"] = partial(launched, engine)
            bodies[label] = engine.step
        seconds = in_turn(bodies, turns)
        flop = counter.get_total_flops()
        for label, least in seconds.items():
            row = {
                "model": name, "size": "×".join(map(str, size)), "what": label, "seconds": least,
                "ratio": seconds["plain float32"] / least, "GFLOP/s": flop / least / 1e9,
                "of best convolution": flop / least / ceiling,
                "relative error": apart.get(label.removesuffix(", launched"), 0.0),
            }  # fmt: skip
            found.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
    return found


def launched(engine: Engine) -> None:
    """A step of the engine, kernel by kernel, without its graph."""
    engine.index.zero_()
    for segment in engine.segments(engine.plan.cycle[0]):
        segment.run()


@torch.no_grad()
def growth(turns: int, name: str) -> list[dict[str, Any]]:
    """Seconds of a step against voxels, and the exponent between the smallest and the largest size."""
    found: list[dict[str, Any]] = []
    for size in ((32, 64, 64), (64, 64, 64), (64, 128, 128), (128, 128, 128)):
        engine = engine_for(seeded(name), size, choose_dtype("auto"))
        seconds = in_turn({"step": engine.step}, turns)["step"]
        row = {"model": name, "size": "×".join(map(str, size)), "voxels": math.prod(size), "seconds": seconds}
        if found:
            ratio = math.log(seconds / found[0]["seconds"])
            row["exponent"] = ratio / math.log(row["voxels"] / found[0]["voxels"])
        found.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return found


@torch.no_grad()
def memory(size: Sequence[int], max_memory: str | None, name: str) -> dict[str, Any]:
    """One step, and the most that was resident meanwhile, beside what the plan had said."""
    dtype, before = choose_dtype("auto"), peak_resident()
    engine = engine_for(seeded(name), size, dtype, max_memory)
    said = forecast(engine.plan, engine.tiling)
    start = time.perf_counter()
    engine.step()
    row = {
        "model": name, "size": "×".join(map(str, size)), "dtype": str(dtype), "slabs": engine.plan.rows,
        "accumulators": str(engine.plan.accumulators), "tiles": str(engine.tiling),
        "seconds": time.perf_counter() - start, "finite": bool(engine.buffers["x"].isfinite().all()),
        "before, GiB": before / 2**30, "peak, GiB": peak_resident() / 2**30,
        "planned, GiB": said.peak_bytes / 2**30,
        "allowed, GiB": parse_memory(max_memory) / 2**30 if max_memory else None,
    }  # fmt: skip
    print(json.dumps(row, ensure_ascii=False), flush=True)
    return row


def peak_resident() -> int:
    """Bytes of this process that were in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def volume(file: Path, box: Sequence[int], steps: int, turns: int) -> list[dict[str, Any]]:
    """The bundled model on a held-out volume: plainly with many ancestral steps, and as pipelines draw."""
    model = ScoreFusion.from_pretrained("t1-sr4")
    config, fast = model.config, copy.deepcopy(model)
    case = pooled_case(read_scan(file), config, size=box)
    prepared, where = case.prepared, case.box
    condition = prepared.condition[where.index]
    inputs = model.prepare(prepared.condition[where.index], origin=where.start, full=prepared.base.shape[2:])
    plain, ancestral = Plain(model), table_for(config, solver="ddpm", steps=steps)
    dtype = choose_dtype("auto")
    fast.slice_networks.to(dtype)
    assert fast.fusion is not None
    fast.fusion.to(dtype)
    pool = EnginePool(fast)

    def plainly() -> Tensor:
        with use_backend("torch"):
            return sample(
                lambda x, level: plain(x, inputs, level), condition, ancestral, seeds=[0],
                origin=where.start, clamp=config.sampling.clamp, project=prepared.projection(config, where),
            )  # fmt: skip

    def engine(way: SamplingConfig) -> Tensor:
        settings = Settings(config, table=table_of(config, way), strategy=way.strategy)
        return draw_residuals(pool, prepared, where, settings)[0]

    ways = {"engine, the model's own sampler": config.sampling, "engine, as realistic": AS_REALISTIC}
    bodies = [("engine, first", len(table_for(config)), partial(engine, config.sampling))]
    for what, way in ways.items():
        bodies += [(what, len(table_of(config, way)), partial(engine, way))] * turns
    truth = case.target[where.index][0, 0].numpy()
    data_range = float(case.target.max() - case.target.min())
    found: list[dict[str, Any]] = []
    for what, evaluations, body in [*bodies, ("plain float32", steps, plainly)]:
        start = time.perf_counter()
        residual = body()
        seconds = time.perf_counter() - start
        fine = config.residual.added_to(prepared.base[where.index], residual)
        result = prepared.intensity.denormalise(fine)[0, 0].float().numpy()
        figures = measure(Pair(result, truth, data_range), "tune")
        found.append({
            "what": what, "size": "×".join(map(str, where.size)), "seconds": seconds,
            "evaluations": evaluations,
            **{METRICS[name].title: value for name, value in figures.items()},
        })  # fmt: skip
        print(json.dumps(found[-1], ensure_ascii=False), flush=True)
    for what in ways:
        best = min(row["seconds"] for row in found if row["what"] == what)
        print(json.dumps({"what": what, "times as fast": found[-1]["seconds"] / best}), flush=True)
    return found


def main() -> None:
    """Run one measurement and print a line of JSON a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("step", "volume", "memory", "growth"))
    parser.add_argument("file", type=Path, nargs="?", default=Path("data/oasis_t1.nii.gz"))
    parser.add_argument("--size", type=int, nargs=3)
    parser.add_argument("--model", default="paper", help="preset")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=50, help="ancestral steps of the plain implementation")
    parser.add_argument("--max-memory")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of `step`")
    given = parser.parse_args()
    if given.max_memory is None:
        keep_freed_memory()
    about = {
        "instructions": sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & cpu_instructions()),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    if given.device == "cuda":
        about["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(about), flush=True)
    if given.what == "step":
        step([given.size] if given.size else SIZES, given.turns, given.compile, given.model, given.device)
    elif given.what == "volume":
        volume(given.file, given.size or BOX, given.steps, given.turns)
    elif given.what == "memory":
        memory(given.size or (152, 192, 192), given.max_memory, given.model)
    else:
        growth(given.turns, given.model)


if __name__ == "__main__":
    main()
