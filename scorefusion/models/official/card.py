"""The model card of an imported checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from scorefusion.models.domain import made_for
from scorefusion.models.score_fusion import ScoreFusion


def official_card(model: ScoreFusion, files: Sequence[str]) -> str:
    """Markdown that says where a model came from and what is not known about it.

    Args:
        model: what :func:`~scorefusion.models.official.convert.load_official` returned.
        files: names of the checkpoint's files.
    """
    config = model.config
    widths = {f"2D ({name})": network.widths for name, network in config.slice_networks.items()}
    if config.fusion is not None:
        widths["3D"] = config.fusion.widths
    task = (
        f"{config.degradation.factor}× super-resolution from block means"
        if config.degradation.kind == "block-mean"
        else "translation between images on one grid"
    )
    lines = [
        f"# {config.name}",
        "",
        f"Imported from {', '.join(f'`{file}`' for file in files)}, trained with the authors' code of "
        "Score-Fusion (Zhu et al., ICML 2025, arXiv 2501.07430).",
        "",
        f"* Task: {task}; from {', '.join(config.conditions)} to {config.target}.",
        f"* Strategies: {', '.join(config.strategies)}; {config.sampling.strategy} by default.",
        f"* Sampler: {config.sampling.solver}, {config.sampling.steps} steps.",
        *(f"* {name} U-Net widths: {', '.join(map(str, width))}." for name, width in widths.items()),
        "",
        made_for(config),
        "The checkpoint does not say what data it was trained on, how well it does, or under which licence "
        "it may be used: ask who trained it. It is not a medical device.",
    ]
    return "\n".join(lines) + "\n"
