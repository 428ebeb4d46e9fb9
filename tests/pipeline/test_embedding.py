"""The pipeline inside somebody's program: its state untouched and without influence, threads, cancelling."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import scorefusion
from scorefusion import Cancelled, Pipeline
from scorefusion.degradations import FewViews
from scorefusion.models.config import ResidualConfig
from tests.support.tiny import AFFINE, same_grid_config, tiny_config, tiny_image, tiny_model, write_tiny
from tests.support.waiting import PATIENCE

SHAPES = [(7, 6, 5), (8, 6, 6), (6, 9, 7)]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_model(), device="cpu", dtype="float32")


def image(number: int) -> Any:
    """One of several images: three shapes, each with textures of its own."""
    own = tiny_image(SHAPES[number % len(SHAPES)])
    return nib.Nifti1Image(
        np.asarray(own.dataobj) + np.int16(7 * number) * (np.asarray(own.dataobj) > 0), AFFINE
    )


def global_state() -> dict[str, Any]:
    """All that a library could leave behind in its process."""
    loggers = {
        name: logging.getLogger(name) for name in (None, "nibabel", "nibabel.global", "torch", "scorefusion")
    }
    return {
        "torch seed": torch.initial_seed(),
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "numpy generator": np.random.get_state()[1].tobytes(),  # type: ignore[index, union-attr]
        "random": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "precision": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
        "numpy errors": np.geterr(),
        "numpy printing": str(np.get_printoptions()),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "umask": [os.umask(mask) for mask in (os.umask(0o22),)],
        "logging": {name: (it.level, list(it.handlers), it.disabled) for name, it in loggers.items()},
        "threads alive": sorted(thread.name for thread in threading.enumerate()),
    }


def odd_file(folder: Path) -> Path:
    """A NIfTI file whose header nibabel mends, with messages about it."""
    content = bytearray(tiny_image().to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["pixdim"][0] = 3
    header["pixdim"][1] = -1.5
    content[:348] = header.binaryblock
    (folder / "odd.nii").write_bytes(content)
    return folder / "odd.nii"


def test_nothing_is_printed_and_no_state_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # PyTorch imports it at a custom operation's first call; it sets a variable and adds a filter.
    importlib.import_module("torch._dynamo")
    folder, file = write_tiny(tmp_path)
    odd = odd_file(tmp_path)
    config = same_grid_config(
        conditions=("ct",),
        branches=tiny_config().branches,
        residual=ResidualConfig(base="pseudo-inverse"),
        degradation=FewViews(views=5),
    )
    sparse = tiny_model(config).train()
    random.seed(1)
    np.random.seed(2)
    before = global_state()
    for dtype in ("auto", "bfloat16"):
        pipeline = Pipeline(folder, device="cpu", dtype=dtype)
        for source in (file, odd, tiny_image()):
            result = pipeline(source, samples=2, batch=2)
            result.save(tmp_path / "out.nii.gz")
            result.save_spread(tmp_path / "spread.nii.gz")
            result.native()
    Pipeline(sparse, device="cpu")(tiny_image((8, 8, 6)), crop=False)
    after = global_state()
    for name in before:
        assert before[name] == after[name], name
    assert sparse.training and capfd.readouterr() == ("", "")


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    "surroundings",
    [
        default_dtype,
        warnings_are_errors,
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    ],
    ids=["default dtype", "warnings as errors", "inference mode", "no grad", "autocast", "device", "anomaly"],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_the_caller_has_set_changes_no_bit(surroundings: Callable[[], Any], tmp_path: Path) -> None:
    folder, file = write_tiny(tmp_path)
    expected = Pipeline(folder, device="cpu", dtype="float32")(file, solver="ddpm", samples=2)
    with surroundings():
        pipeline = Pipeline(folder, device="cpu", dtype="float32")
        inside = pipeline(file, solver="ddpm", samples=2)
    outside = pipeline(file, solver="ddpm", samples=2)
    for result in (inside, outside):
        np.testing.assert_array_equal(result.volume, expected.volume)
        np.testing.assert_array_equal(result.spread, expected.spread)
        assert result.consistency_residual == expected.consistency_residual


def test_gradients_are_not_recorded_but_the_callers_mode_stays(pipeline: Pipeline) -> None:
    seen: list[bool] = []
    pipeline(tiny_image(), callback=lambda done, total: seen.append(torch.is_grad_enabled()))
    with torch.no_grad():
        pipeline(tiny_image(), callback=lambda done, total: seen.append(torch.is_grad_enabled()))
    assert seen == [True, True, False, False] and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in pipeline.model.parameters())


def test_a_callback_may_call_the_pipeline_again(pipeline: Pipeline) -> None:
    alone = [pipeline(image(n), seed=n).volume for n in range(3)]
    inner: list[np.ndarray] = []

    def again(done: int, total: int) -> None:
        inner.append(pipeline(image(0), seed=0).volume)  # of the outer one's shape
        inner.append(pipeline(image(1), seed=1).volume)  # of another

    outer = pipeline(image(0), seed=0, callback=again)
    np.testing.assert_array_equal(outer.volume, alone[0])
    assert len(inner) == 4
    for number, volume in enumerate(inner):
        np.testing.assert_array_equal(volume, alone[number % 2])


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_share_a_pipeline(threads: int) -> None:
    """Different images and the same one interleaved, all begun at once on a pipeline that is still cold."""
    alone = Pipeline(tiny_model(), device="cpu", dtype="float32")
    expected = [alone(image(n), seed=n, solver="ddpm").volume for n in range(4)]
    pipeline = Pipeline(tiny_model(), device="cpu", dtype="float32")
    gate = threading.Barrier(threads)

    def work(turn: int) -> list[tuple[int, np.ndarray]]:
        gate.wait()
        order = [(turn + k) % 4 if turn % 2 else 0 for k in range(6)]
        return [(n, pipeline(image(n), seed=n, solver="ddpm").volume) for n in order]

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(work, range(threads)):
            for number, volume in found:
                np.testing.assert_array_equal(volume, expected[number])


def test_cancelling_leaves_the_pipeline_as_it_was(pipeline: Pipeline) -> None:
    expected = pipeline(image(0), seed=3, steps=4).volume
    running, stop = threading.Event(), threading.Event()

    def callback(done: int, total: int) -> None:
        running.set()
        if stop.wait(PATIENCE):
            raise Cancelled("by the user")

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(pipeline, image(1), steps=4, callback=callback)
        assert running.wait(PATIENCE)
        np.testing.assert_array_equal(pipeline(image(0), seed=3, steps=4).volume, expected)
        stop.set()
        with pytest.raises(Cancelled, match="by the user"):
            task.result()
    np.testing.assert_array_equal(pipeline(image(0), seed=3, steps=4).volume, expected)
    assert not issubclass(Cancelled, scorefusion.ScoreFusionError)


def counted(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The keys of the engines that a pipeline makes from now on."""
    made: list[Any] = []
    pool = pipeline._engines
    make = pool._make
    monkeypatch.setattr(pool, "_make", lambda key, around: made.append(key) or make(key, around))  # type: ignore[func-returns-value]
    return made


def cancel(done: int, total: int) -> None:
    raise Cancelled


def broken(done: int, total: int) -> None:
    raise RuntimeError("a bug of the caller's")


def test_a_cancelled_engine_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(tiny_model(), device="cpu", dtype="float32")
    made = counted(pipeline, monkeypatch)
    pipeline(image(0))
    with pytest.raises(Cancelled):
        pipeline(image(0), callback=cancel)
    pipeline(image(0))
    assert len(made) == 1
    with pytest.raises(RuntimeError, match="a bug"):
        pipeline(image(0), callback=broken)
    pipeline(image(0))
    assert len(made) == 2  # what another error has left behind is not trusted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="not run: no CUDA device")
@pytest.mark.parametrize("threads", [2, 8])
def test_threads_share_a_pipeline_on_cuda(threads: int) -> None:
    alone = Pipeline(tiny_model(), device="cuda", dtype="float32")
    expected = [alone(image(n), seed=n, solver="ddpm").volume for n in range(4)]
    pipeline = Pipeline(tiny_model(), device="cuda", dtype="float32")
    with ThreadPoolExecutor(threads) as pool:
        numbers = [n % 4 for n in range(6 * threads)]
        found = pool.map(lambda n: pipeline(image(n), seed=n, solver="ddpm").volume, numbers)
        for number, volume in zip(numbers, found, strict=True):
            np.testing.assert_array_equal(volume, expected[number])
