"""A translation gives the same bits with 1, 2 and 3 threads, in every instruction set it can be held to."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from scorefusion.ops import backends
from scorefusion.ops.device import cpu_instructions
from tests.support.waiting import PATIENCE

REASON = backends.missing("cpp") or backends.outdated()
pytestmark = pytest.mark.skipif(bool(REASON), reason=str(REASON))
ROOT = Path(__file__).parents[2]


class Held(NamedTuple):
    """An instruction set: the flag of a processor that has it, what holds a process to it, and its dtypes."""

    flag: str
    environment: dict[str, str]
    dtypes: tuple[str, ...] = ("float32",)


def _held(oneDNN: str, aten: str, own: str, *dtypes: str, flag: str) -> Held:
    variables = {"ONEDNN_MAX_CPU_ISA": oneDNN, "ATEN_CPU_CAPABILITY": aten, "SCOREFUSION_CPU": own}
    mkl = {"avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}}.get(aten, {})
    return Held(flag, {**variables, **mkl}, dtypes or ("float32",))


SETS = {
    "plain": _held("SSE41", "default", "baseline", flag="avx2"),
    "AVX2": _held("AVX2", "avx2", "avx2", flag="avx2"),
    "AVX-512": _held("AVX512_CORE", "avx512", "avx512", flag="avx512f"),
    "AVX512-BF16": _held("AVX512_CORE_BF16", "avx512", "all", "float32", "bfloat16", flag="avx512_bf16"),
    "all": Held("avx2", {}),
}
"""bfloat16 with AMX is computed by oneDNN, which promises nothing (docs/embed.md): `all` is float32."""

PROGRAM = """
    import sys
    import torch
    from scorefusion.ops.device import DTYPES
    from scorefusion.engine.prepack import packed_layers, packed_model
    from scorefusion.models.score_fusion import ScoreFusion
    from scorefusion.pipeline import Pipeline
    from tests.support.tiny import same_grid_config, tiny_image, tiny_model

    def with_threads(compute, what):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(compute())
        assert all(torch.equal(results[0], each) for each in results[1:]), what

    def layers(model, dtype, seen):
        # Shapes at which libraries change how they split a sum: few and many samples, rows and voxels.
        shapes = {0: [(1,), (112,)], 2: [(3, 12, 10), (20, 12, 14)], 3: [(1, 4, 8, 6), (2, 6, 12, 12)]}
        network = packed_model(ScoreFusion.from_pretrained(model).eval().to(dtype))
        convolution = torch.nn.modules.conv._ConvNd
        kinds = torch.nn.Linear | convolution
        rest = [name for name, part in network.named_modules() if isinstance(part, kinds)]
        assert not rest, rest
        for name, layer in packed_layers(network).items():
            weight = layer.weight
            if weight.shape in seen:
                continue
            seen.add(weight.shape)
            for samples, *size in shapes[weight.ndim - 2]:
                x = torch.randn(samples, *size, weight.shape[1]).movedim(-1, 1).to(dtype)
                with_threads(lambda: layer(x), (model, name, x.shape))

    image = tiny_image((7, 6, 5))
    for dtype in sys.argv[1:]:
        with torch.no_grad():
            seen = set()
            for model in ("t1-sr4", "t1-t2"):
                layers(model, DTYPES[dtype], seen)
        for name, model, images, strategies in (
            ("bundled", "t1-sr4", tiny_image((4, 3, 3)), ("fuse+features",)),
            ("tiny", tiny_model(), image, ("fuse+features", "average")),
            ("two conditions", tiny_model(same_grid_config()), [image, image], ("fuse",)),
        ):
            pipeline = Pipeline(model, device="cpu", dtype=dtype)
            for strategy in strategies:
                def translate():
                    result = pipeline(images, strategy=strategy, steps=2, seed=1, crop=False)
                    return torch.from_numpy(result.volume)
                with_threads(translate, (name, strategy, dtype))
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("plain", "AVX-512"))) for name in SETS]
)
def test_translations_and_every_layer_of_bundled_models(name: str) -> None:
    held = SETS[name]
    if held.flag not in cpu_instructions():
        pytest.skip(f"this processor has no {name}")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **held.environment}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *held.dtypes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
