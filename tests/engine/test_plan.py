"""Forecasts, what makes a plan fit, and `scorefusion plan`."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.engine.engine import Engine
from scorefusion.engine.planning.fit import fit, parse_memory
from scorefusion.engine.planning.forecast import PROGRAM, forecast, weight_bytes
from scorefusion.engine.planning.memory import measure
from scorefusion.engine.planning.plan import plan, slab_pixels
from scorefusion.engine.planning.report import step_figure
from scorefusion.errors import ScoreFusionError
from scorefusion.models.config import TimeConfig, UNetConfig
from scorefusion.models.folder import load_config
from scorefusion.models.presets import preset
from scorefusion.models.score_fusion import ScoreFusion
from tests.support.tiny import tiny_config, tiny_model

SIZE = (16, 24, 32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("9GB", 9 * 10**9), ("9GiB", 9 * 2**30), ("900 MB", 9 * 10**8), ("1.5gib", 3 * 2**29), ("123", 123)],
)
def test_parse_memory(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "much", "9 QB", "-1GB", "0", "9iB", "1..5GB"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(ScoreFusionError, match="memory"):
        parse_memory(text)


def test_weights():
    model = tiny_model()
    assert weight_bytes(model.config, torch.float32) == sum(p.numel() * 4 for p in model.parameters())
    layers = sum(p.numel() for p in model.features.parameters())
    rest = sum(p.numel() for p in model.parameters()) - layers
    assert weight_bytes(model.config, torch.bfloat16) == rest * 2 + layers * 4


@pytest.mark.parametrize("strategy", ["fuse+features", "fuse", "average", "single"])
def test_arithmetic_is_that_of_the_engines_step(strategy):
    """Counted while the engine itself walks a step on meta tensors."""
    config = preset("t1-sr4")
    layout = plan(config, SIZE, strategy=strategy, batch=2)
    with torch.device("meta"):
        engine = Engine(ScoreFusion(config).eval(), layout, device=torch.device("meta"))
        walked = measure(lambda: [part.run() for part in engine.segments(layout.cycle[0])])
    found = forecast(layout)
    # Embeddings of the noise level are computed once a slab, here counted once a slice.
    assert found.flop == pytest.approx(walked.flop, rel=0.01)
    assert found.workspace <= walked.peak_bytes <= 1.35 * found.workspace


def test_the_papers_arithmetic():
    """As counted by others: 232 GFLOP for a slice, 35.6 TFLOP for the 3D network, 141 in all."""
    found = forecast(plan(preset("paper"), (152, 192, 192), dtype=torch.bfloat16))
    assert found.slice_flop["axial"] / 152 / 1e9 == pytest.approx(232, rel=0.01)
    assert found.volume_flop / 1e12 == pytest.approx(35.6, rel=0.01)
    assert found.flop / 1e12 == pytest.approx(141, rel=0.01)
    assert found.peak_bytes < 9 * 2**30
    assert found.peak_bytes == PROGRAM + found.weights + found.packed + found.plan.bytes + found.volume


def test_alternate_counts_one_plane():
    config = preset("t1-sr4")
    found = forecast(plan(config, SIZE, strategy="alternate"))
    assert found.flop == max(found.slice_flop.values()) and found.volume_flop == 0


def test_a_gpu_is_given_more_slices_at_once():
    config, size = load_config("t1-sr4"), (96, 112, 96)
    rows = {
        name: list(plan(config, size, pixels=slab_pixels(*name.split())).rows.values())
        for name in ("cpu", "cuda", "cuda tensorrt")
    }
    assert rows == {"cpu": [12, 12, 12], "cuda": [96, 112, 96], "cuda tensorrt": [12, 12, 12]}
    assert max(plan(config, (152, 192, 192), pixels=slab_pixels("cuda")).rows.values()) <= 32


def test_what_fits_is_not_changed():
    layout = plan(preset("t1-sr4"), SIZE)
    for limit in (None, "2GB"):
        found = fit(layout, limit)
        assert found.fits and found.plan is layout and not found.changes and found.tiling is None


def test_first_the_slabs_then_the_sums_then_tiles():
    """Limits just below what each stage needs, without the program, as on a GPU."""
    layout = plan(preset("t1-sr4"), (96, 96, 96), slab=96)
    whole = fit(layout, None, device="cuda").forecast
    slabs = fit(layout, whole.peak_bytes - 1, device="cuda")
    assert slabs.fits and slabs.tiling is None and slabs.plan.accumulators == torch.float32
    assert slabs.plan.rows["axial"] < 96 and "slabs" in slabs.changes[0]

    least = forecast(plan(preset("t1-sr4"), (96, 96, 96), slab=4), device="cuda")
    sums = fit(layout, least.peak_bytes - 1, device="cuda")
    assert sums.fits and sums.tiling is None and sums.plan.accumulators == torch.bfloat16


def test_tiles_come_last_and_are_exact_where_norms_are_per_voxel():
    layout = plan(tiny_config(), (64, 64, 64), slab=1)
    sums = forecast(plan(tiny_config(), (64, 64, 64), slab=1, accumulators=torch.bfloat16), device="cuda")
    limit = sums.peak_bytes - sums.volume // 4
    tiled = fit(layout, limit, device="cuda")
    assert tiled.fits and tiled.forecast.peak_bytes <= limit
    assert tiled.tiling is not None and tiled.tiling.exact and "the same result" in tiled.changes[-1]
    assert [buffer.shape for buffer in tiled.plan.buffers if buffer.name == "maps"] == [(1, 3, 64, 64, 64)]
    assert tiled.forecast.volume_flop > sums.volume_flop


def test_group_norms_make_tiles_blended():
    network = UNetConfig(widths=(8, 16), blocks=1, groups=4, time=TimeConfig(channels=8, hidden=16))
    config = tiny_config(fusion=network)
    layout = plan(config, (64, 64, 64))
    whole = forecast(layout, device="cuda")
    found = fit(layout, int(whole.peak_bytes * 0.75), device="cuda")
    assert found.tiling is not None and not found.tiling.exact
    assert "blended" in found.changes[-1] and "result differs" in found.changes[-1]


def test_where_nothing_fits_it_says_what_would():
    found = fit(plan(preset("t1-sr4"), (32, 32, 32)), "25MB", device="cuda")
    assert not found.fits
    text = " ".join(found.advice)
    assert "bfloat16" in text and "strategy average" in text and "a box of 16 x 16 x 16" in text
    assert "fits" in text


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments, "--device", "cpu", "--dtype", "float32"])


def test_the_verb():
    result = run("--shape", "15", "24", "32", "--max-memory", "2GB")
    assert result.exit_code == 0, result.output
    for words in ("t1-sr4: 15 x 24 x 32 voxels, padded to 16 x 24 x 32", "program", "total.2", "axial",
                  "in all", "fits 2.00 GB", "TFLOP"):  # fmt: skip
        assert words in result.output


def test_the_verb_where_it_does_not_fit():
    result = run("--shape", "16", "24", "32", "--max-memory", "100MB", "--model", "small")
    assert result.exit_code == 1 and "does not fit" in result.output and "to fit: " in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-memory", "lots"], "amount of memory"),
        (["--model", "t1-sr5"], "t1-sr4"),
        (["--strategy", "fused"], "fuse"),
    ],
)
def test_the_verb_refuses(arguments, words):
    result = run("--shape", "16", "16", "16", *arguments)
    assert result.exit_code == 2 and words in result.output


def test_a_picture_names_every_buffer_with_its_bytes(tmp_path):
    target = tmp_path / "step.svg"
    result = CliRunner().invoke(
        app, ["plan", "--shape", "8", "8", "8", "--dtype", "float32", "--figure", str(target)]
    )
    assert result.exit_code == 0, result.output
    layout = plan(load_config("t1-sr4"), (8, 8, 8))
    figure = step_figure(forecast(layout))
    said = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert all(f"{buffer.name}  " in said for buffer in layout.buffers)
    assert target.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(("name", "purpose"), [("brain-iso", "how it was sliced"), ("paper", "position")])
def test_a_plan_says_what_the_common_channels_hold(name: str, purpose: str) -> None:
    layout = plan(preset(name), (40, 32, 32), dtype=torch.float32)
    (common,) = (buffer for buffer in layout.buffers if buffer.name == "common")
    assert common.purpose.split(" and ")[0] == purpose
