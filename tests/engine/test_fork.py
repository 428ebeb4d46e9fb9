"""Forked processes compute: whatever the parent had done before, and with whatever the child inherits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from scorefusion.engine.isolation import require_device_after_fork
from scorefusion.errors import ScoreFusionError
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# The parent has used three threads and has translated. A child that hangs is killed by its alarm.
START = """
    import os, signal, sys, threading
    from pathlib import Path
    import numpy as np
    import torch
    from tests.support.tiny import tiny_image, write_tiny
    from scorefusion.embed import LazyPipeline
    from scorefusion.pipeline import Pipeline

    torch.set_num_threads(3)
    model, file = write_tiny(Path(sys.argv[1]))
    lazy = LazyPipeline(model, device="cpu", dtype="float32")
    pipeline = lazy()

    def translate(pipeline, image=file):
        return pipeline(image, steps=2, seed=3)

    expected = translate(pipeline).volume
    square = torch.ones(512, 512)
    (square @ square).relu().sum()

    def child(compute):
        process = os.fork()
        if process == 0:
            signal.alarm(60)
            status = 1
            try:
                compute()
                status = 0
            finally:
                os._exit(status)
        status = os.waitpid(process, 0)[1]
        assert status == 0, "hangs" if status == signal.SIGALRM else status

    def same(volume):
        np.testing.assert_array_equal(volume, expected)
"""

SITUATIONS = {
    "lazy, used before": "child(lambda: same(translate(lazy()).volume))",
    "lazy, not used before": """
        other = LazyPipeline(model, device="cpu", dtype="float32", max_memory="9GB")
        child(lambda: same(translate(other()).volume))
    """,
    "a pipeline that is carried over": "child(lambda: same(translate(pipeline).volume))",
    "a pipeline that is made in the child": """
        child(lambda: same(translate(Pipeline(model, device="cpu", dtype="float32")).volume))
    """,
    "a tensor, and the child's own operations afterwards": """
        image = tiny_image()
        tensor = torch.from_numpy(np.asarray(image.dataobj).astype(np.float32))

        def compute():
            result = pipeline(tensor, affine=image.affine, steps=2, seed=3)
            same(result.native().numpy())
            assert (square @ square).relu().sum() == 512**3

        child(compute)
    """,
    "a child that asks for threads again": """
        def compute():
            same(translate(pipeline).volume)
            torch.set_num_threads(3)
            same(translate(lazy()).volume)
        child(compute)
    """,
    "a child of a child": "child(lambda: child(lambda: same(translate(pipeline).volume)))",
    "another thread of the child": """
        def compute():
            found = []
            thread = threading.Thread(target=lambda: found.append(translate(pipeline).volume))
            thread.start()
            thread.join()
            same(found[0])
        child(compute)
    """,
    "forked while another thread translates": """
        stop, turns = threading.Event(), []
        def forever():
            while not stop.is_set():
                turns.append(translate(pipeline))
        thread = threading.Thread(target=forever)
        thread.start()
        try:
            for _ in range(3):
                child(lambda: same(translate(pipeline).volume))
        finally:
            stop.set()
            thread.join()
        same(turns[-1].volume)
    """,
    "forked with the pipeline's lock held": """
        with pipeline._engines._lock, LazyPipeline._lock:
            child(lambda: (same(translate(pipeline).volume), same(translate(lazy()).volume)))
    """,
    "multiprocessing": """
        import multiprocessing
        processes = [
            multiprocessing.get_context("fork").Process(target=lambda: same(translate(lazy()).volume))
            for _ in range(2)
        ]
        for process in processes: process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0, process.exitcode
        same(translate(lazy()).volume)
    """,
    "workers of a data loader": """
        from torch.utils.data import DataLoader
        def work(item): return translate(lazy()).volume
        loader = DataLoader(
            range(4), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=600,
            collate_fn=lambda items: work(items[0]),
        )
        for volume in loader: same(volume)
        same(translate(pipeline).volume)
    """,
}


def test_forked_children_translate(tmp_path: Path) -> None:
    """Every situation, one after another, in one parent: its model and imports are what takes long."""
    program = textwrap.dedent(START)
    for number, (name, code) in enumerate(SITUATIONS.items()):
        body = textwrap.indent(textwrap.dedent(code).strip(), "    ")
        program += (
            f"def situation_{number}():\n{body}\nprint({name!r}, file=sys.stderr)\nsituation_{number}()\n"
        )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # the last situation that it names is the one that failed


def test_cuda_in_a_forked_child_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    require_device_after_fork(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    require_device_after_fork(torch.device("cpu"))
    with pytest.raises(ScoreFusionError, match="forked from one that had used CUDA.*'spawn'"):
        require_device_after_fork(torch.device("cuda", 0))
