"""The 3D network on tiles: exact where it can be, blended where it cannot."""

from __future__ import annotations

import math

import pytest
import torch

from scorefusion.engine.planning.tiles import Tiling, _weights, receptive_radius, run_tiled, tiling
from scorefusion.models.config import TimeConfig, UNetConfig
from scorefusion.models.unet import UNet

TIME = TimeConfig(channels=8, hidden=16)


def config(**changes):
    values = {"widths": (4, 8), "blocks": 1, "groups": 4, "norm": "channel", "time": TIME, **changes}
    return UNetConfig(**values)


def network(described):
    """With random weights, in float64."""
    made = UNet(3, 2, 3, described).eval().double()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return made


EXACT = [
    config(),
    config(resample="conv", edges="replicate"),
    config(patch=2, widths=(4,)),
    config(widths=(4,), blocks=2, edges="replicate"),
]


@pytest.mark.parametrize("described", EXACT, ids=["res", "conv, replicate", "patch", "one level"])
def test_no_voxel_sees_beyond_the_radius(described):
    made, radius = network(described), receptive_radius(described)
    length = 2 * radius + 32
    x = torch.randn(1, 2, length, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = x.clone()
    place = length // 2
    other[:, :, place] += 1.0
    with torch.no_grad():
        change = (
            (made(x, torch.tensor([0.5])) - made(other, torch.tensor([0.5]))).abs().amax(dim=(0, 1, 3, 4))
        )
    seen = change.nonzero().flatten()
    assert 0 < (seen - place).abs().max() <= radius
    assert (seen - place).abs().max() >= radius // 2  # the bound is not an idle one


@pytest.mark.parametrize("described", EXACT, ids=["res", "conv, replicate", "patch", "one level"])
def test_an_exact_halo_gives_the_whole_volumes_result(described):
    made = network(described).float()
    cell, generator = described.scales[-1], torch.Generator().manual_seed(2)
    halo = -(-receptive_radius(described) // cell) * cell
    grid = (2 * halo + 16, 8, 16)
    x = torch.randn(2, 2, *grid, generator=generator)
    inject = {
        scale: torch.randn(
            2, made.config.injected_channels(scale), *(n // scale for n in grid), generator=generator
        )
        for scale in described.scales
    }
    time = torch.tensor([0.2, 0.9])
    cut = tiling(described, grid, (3, 1, 2))
    assert cut.exact and cut.halo == halo and len(list(cut.boxes(grid))) == 6
    assert cut.largest(grid)[0] < grid[0] or cut.tile[0] + 2 * halo >= grid[0]
    out = torch.full((2, 3, *grid), torch.nan)
    with torch.no_grad():
        whole = made(x, time, inject=inject)
    run_tiled(made, x, time, inject, cut, out)
    torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-5)
    short = Tiling(cut.tile, 0, True)  # the halo matters
    assert (run_tiled(made, x, time, inject, short, out) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"norm": "group"}, {"attention": True, "head_channels": 4}])
def test_what_sees_everything_is_blended(changes):
    described = config(**changes)
    assert receptive_radius(described) is None
    cut = tiling(described, (64, 64, 32), (2, 1, 1))
    assert not cut.exact and cut.halo == 16 and cut.tile == (32, 64, 32)
    made = network(described).float()
    for parameter in made.output.parameters():
        parameter.data.zero_()
    made.output.bias.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    grid = (64, 16, 8)
    out = torch.full((1, 3, *grid), torch.nan)
    run_tiled(
        made, torch.randn(1, 2, *grid), torch.tensor([0.5]), {}, tiling(described, grid, (2, 2, 1)), out
    )
    expected = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None, None].expand(1, 3, *grid)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)  # the shares of all tiles sum to one


def test_blended_tiles_are_near_the_whole_volume():
    made = network(config(norm="group")).float()
    grid = (64, 16, 16)
    x = torch.randn(1, 2, *grid, generator=torch.Generator().manual_seed(3))
    time = torch.tensor([0.5])
    with torch.no_grad():
        whole = made(x, time)
    cut = tiling(made.config, grid, (2, 1, 1))
    tiled = run_tiled(made, x, time, {}, cut, torch.empty(1, 3, *grid))
    assert 0 < (tiled - whole).square().mean() < 0.02 * whole.var()


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 3, 1), (4, 4, 4), (7, 1, 5)])
@pytest.mark.parametrize("norm", ["channel", "group"])
def test_tiles_cover_the_grid_once(counts, norm):
    described, grid = config(norm=norm), (56, 48, 40)
    cut = tiling(described, grid, counts)
    covered, share = torch.zeros(grid), torch.zeros(grid)
    read = 0
    for parts in cut.boxes(grid):
        covered[tuple(slice(*own) for own, _ in parts)] += 1
        inside = torch.ones(())
        for axis, (own, seen) in enumerate(parts):
            assert all(edge % described.scales[-1] == 0 for edge in (*own, *seen))
            line = _weights(own, seen, grid[axis], 0 if cut.exact else cut.halo, share)
            inside = inside[..., None] * line
        if not cut.exact:
            share[tuple(slice(*seen) for _, seen in parts)] += inside
        read += math.prod(stop - start for _, (start, stop) in parts)
    assert (covered == 1).all()
    assert cut.exact or torch.allclose(share, torch.ones(()), atol=1e-5)
    assert cut.extra(grid) == pytest.approx(read / math.prod(grid))
