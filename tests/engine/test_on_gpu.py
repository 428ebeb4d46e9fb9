"""On a GPU: the kernels' float64 numbers, the CPU's noise bits, the CPU's volume, and a run of training.

The checks of the operations are those every backend passes, with their tensors moved there. That moving keeps
values, strides and gradients is tested where there is no GPU, too: it moves to the CPU then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scorefusion import Pipeline
from scorefusion.ops import backends
from scorefusion.ops.fuse_step import CUDA_EDGE, IMPLEMENTATIONS
from scorefusion.ops.noise import normal
from scorefusion.train.loop import train
from scorefusion.train.report import read_rows
from tests.ops import (
    test_ensemble_features,
    test_fuse_scores,
    test_fuse_step,
    test_gather_slices,
    test_norm_act,
    test_norm_act_gradients,
)
from tests.ops.test_noise import SHAPES, same_bits
from tests.support.moved import computing_on
from tests.support.tiny import tiny_image
from tests.train.test_train import run_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no CUDA device")
only_gpu = [pytest.mark.gpu, on_gpu]
WHERE = [
    pytest.param("torch", CPU, id="torch, cpu"),
    pytest.param("torch", CUDA, id="torch, cuda", marks=only_gpu),
    pytest.param("triton", CUDA, id="triton", marks=only_gpu),
]
FUSED = [
    *WHERE,
    pytest.param(
        "cuda",
        CUDA,
        id="CUDA extension",
        marks=[*only_gpu, pytest.mark.skipif(bool(backends.missing("cuda")), reason="not run: not built")],
    ),
]
MODULES = (
    test_ensemble_features,
    test_fuse_scores,
    test_fuse_step,
    test_gather_slices,
    test_norm_act,
    test_norm_act_gradients,
)


@pytest.fixture
def there(backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tests' own operations compute on the device, without TF32, and what no one writes is NaN."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    names = [(m, m.__name__.removeprefix("tests.ops.test_").removesuffix("_gradients")) for m in MODULES]
    with computing_on(device, *names), test_norm_act.poisoned():
        yield


@pytest.mark.parametrize("plane", test_ensemble_features.PLANES)
@pytest.mark.parametrize("name", test_ensemble_features.SHAPES)
@pytest.mark.parametrize(("backend", "device"), WHERE)
def test_ensemble_features_there(
    there: None, backend: str, device: torch.device, name: str, plane: str
) -> None:
    for layout in test_ensemble_features.LAYOUTS:
        for dtype in test_ensemble_features.DTYPES:
            test_ensemble_features.agrees(backend, name, plane, dtype, layout)


@pytest.mark.parametrize(("backend", "device"), WHERE)
def test_ensemble_features_of_mixed_dtypes(there: None, backend: str, device: torch.device) -> None:
    test_ensemble_features.mixed_dtypes_agree(backend)


@pytest.mark.parametrize("name", test_fuse_scores.CASES)
@pytest.mark.parametrize(("backend", "device"), WHERE)
def test_fuse_scores_there(there: None, backend: str, device: torch.device, name: str) -> None:
    test_fuse_scores.check_case(name, backend)


@pytest.mark.parametrize("name", test_fuse_step.CASES)
@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_fuse_step_there(there: None, backend: str, device: torch.device, name: str) -> None:
    factor = test_fuse_step.arguments(**test_fuse_step.CASES[name])["factor"]
    if backend == "cuda" and max(factor[1:]) > CUDA_EDGE:
        pytest.skip("blocks that the CUDA extension leaves to the others")
    test_fuse_step.check_case(name, backend)


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_fuse_step_draws_and_skips(there: None, backend: str, device: torch.device) -> None:
    assert backend in IMPLEMENTATIONS
    test_fuse_step.check_noise(backend)
    test_fuse_step.check_skipping(backend)


@pytest.mark.parametrize("plane", test_gather_slices.AXIS)
@pytest.mark.parametrize("name", test_gather_slices.SLABS)
@pytest.mark.parametrize(("backend", "device"), WHERE)
def test_gather_slices_there(there: None, backend: str, device: torch.device, name: str, plane: str) -> None:
    slab = test_gather_slices.SLABS[name]
    for order in ("modality", "slice"):
        for source, target in test_gather_slices.DTYPES:
            given = test_gather_slices.volumes(slab, source)
            test_gather_slices.check(slab, plane, order, backend, given, target)
    for layout in test_gather_slices.LAYOUTS:
        x_t, *others = test_gather_slices.volumes(slab)
        given = (test_gather_slices.laid_out(x_t, layout), *others)
        test_gather_slices.check(slab, plane, "modality", backend, given, torch.float32)


@pytest.mark.parametrize("dtype", test_norm_act.TOLERANCES, ids=str)
@pytest.mark.parametrize("name", test_norm_act.CASES)
@pytest.mark.parametrize(("backend", "device"), WHERE)
def test_norm_act_there(
    there: None, backend: str, device: torch.device, name: str, dtype: torch.dtype
) -> None:
    for layout in test_norm_act.LAYOUTS:
        test_norm_act.check_case(backend, name, layout, dtype)


@pytest.mark.parametrize(("backend", "device"), WHERE)
def test_norm_act_of_a_large_mean(there: None, backend: str, device: torch.device) -> None:
    test_norm_act.check_large_mean(backend)


@pytest.mark.parametrize("name", test_norm_act.CASES)
@pytest.mark.parametrize(("backend", "device"), WHERE[:2])
def test_norm_act_gradients_there(there: None, backend: str, device: torch.device, name: str) -> None:
    """By PyTorch, which `auto` takes on a GPU where a gradient is asked for."""
    given, tolerance = test_norm_act.arguments(name), test_norm_act_gradients.TOLERANCES[torch.float32]
    upstream = test_norm_act_gradients.upstream_of(given)
    test_norm_act_gradients.check(given, upstream, backend, tolerance)
    if device == CPU:
        return  # where C++ has gradients of its own
    result, _ = test_norm_act_gradients.gradients(given, upstream, backend=backend)
    assert torch.equal(test_norm_act_gradients.gradients(given, upstream)[0], result)


@pytest.mark.parametrize(("backend", "device"), WHERE)
def test_noise_is_the_cpus_bits(backend: str, device: torch.device) -> None:
    samples = [2**31, 2**32 - 1]
    for shape, origin in (*SHAPES.values(), ((2, 1, 40, 50, 70), (3, 0, 2))):
        for step in (0, 1, 2**32 - 1):
            keys = {"origin": origin, "sample": samples[: shape[0]]}
            seeds = [-1, 2**63 + 12345][: shape[0]]
            expected = normal(shape, seeds, step, **keys, backend="torch")
            found = normal(shape, seeds, step, **keys, backend=backend, device=device)
            assert same_bits(found.cpu(), expected), (shape, step)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("bfloat16", 5e-2), ("float16", 1e-2)])
@pytest.mark.parametrize("strategy", ["single", "alternate", "average", "fuse", "fuse+features"])
def test_a_translation_is_the_cpus(
    strategy: str, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled model, the same seed: of the residual's size, float32 to rounding (without TF32)."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    image, how = tiny_image((14, 12, 10)), {"strategy": strategy, "steps": 3, "seed": 5}
    expected = Pipeline("t1-sr4", device="cpu", dtype="float32")(image, **how)
    pipeline = Pipeline("t1-sr4", device="cuda", dtype=dtype)
    found = pipeline(image, **how)
    again = pipeline(image, **how)
    np.testing.assert_array_equal(found.volume, again.volume)
    apart = np.abs(found.volume - expected.volume).max()
    assert apart <= tolerance * np.ptp(expected.volume), apart / np.ptp(expected.volume)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="not run: fewer than two CUDA devices")
def test_another_device_than_the_current_one() -> None:
    """`cuda:1` while the thread is on device 0: the same volume, and nothing allocated on device 0."""
    image, how = tiny_image((14, 12, 10)), {"steps": 2, "seed": 5}
    expected = Pipeline("t1-sr4", device="cuda:0")(image, **how)
    before = torch.cuda.memory_stats(0).get("allocation.all.allocated", 0)
    found = Pipeline("t1-sr4", device="cuda:1")(image, **how)
    assert torch.cuda.memory_stats(0).get("allocation.all.allocated", 0) == before
    assert torch.cuda.current_device() == 0
    np.testing.assert_allclose(found.volume, expected.volume, atol=5e-2 * np.ptp(expected.volume))


@pytest.mark.gpu
@on_gpu
def test_samples_and_memory_limits_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several samples at once, and slabs that fit a limit, give the volume of one after the other."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    image, how = tiny_image((14, 12, 10)), {"steps": 2, "seed": 5, "samples": 2}
    pipeline = Pipeline("t1-sr4", device="cuda", dtype="float32")
    one, both = pipeline(image, **how, batch=1), pipeline(image, **how, batch=2)
    np.testing.assert_allclose(both.volume, one.volume, atol=2e-4 * np.ptp(one.volume))
    small = Pipeline("t1-sr4", device="cuda", dtype="float32", max_memory="400MB")
    np.testing.assert_allclose(small(image, **how).volume, one.volume, atol=2e-4 * np.ptp(one.volume))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_training_on_cuda(
    precision: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage: the losses of the CPU in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 44)), indexing="ij"))
    volume = np.clip(1.2 - (grid**2).sum(0), 0, None) * (1 + 0.3 * np.sin(9 * grid).prod(0))
    head = tmp_path / "head.nii.gz"
    nib.save(nib.Nifti1Image((1000 * volume).astype(np.int16), np.eye(4)), head)
    losses = []
    for device, own in (("cpu", "float32"), ("cuda", precision)):
        folder = tmp_path / device
        train(run_config(head, device=device, precision=own), folder)
        losses.append([row["loss"] for row in read_rows(folder)])
    assert len(losses[0]) == 7
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)
