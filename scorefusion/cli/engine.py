"""``scorefusion engine build``: TensorRT engines of a model's 2D networks."""

from dataclasses import dataclass

import typer

from scorefusion.cli.options import ModelArgument, Quiet, Target, Verb, expanded, opt

program = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@program.callback()
def _engine() -> None:
    """TensorRT engines of a model's 2D networks, for an NVIDIA GPU.

    \b
    Example:
      scorefusion engine build t1-sr4 -o engines
    """


@dataclass
class Made:
    """What engines are made."""

    size: tuple[int, int, int] | None = opt(
        "Largest volume, D H W voxels; it is tuned for that. Any up to 256 a side.", None, "--shape"
    )
    slab: int | None = opt("Most slices at once; it is tuned for that many. Up to 64.")
    precision: str = opt("fp16, bf16 or fp32: weights, inputs and outputs. Normalisation is float32.", "bf16")
    workspace: float | None = opt("GiB of scratch memory allowed; TensorRT's own limit.")
    no_check: bool = opt("Do not compare the exported networks with PyTorch.", False)
    keep_onnx: bool = opt("Leave the ONNX files too.", False)


@program.command("build", cls=Verb)
@expanded
def build(model: ModelArgument, output: Target, made: Made, quiet: Quiet = False) -> None:
    """Build a TensorRT engine of each 2D network, for any slab of slices up to a size.

    Needs tensorrt, which builds for the GPU that is there, or tensorrt-rtx, which needs none to build
    (pip install 'scorefusion[tensorrt]'). Each network is exported as ONNX, compared with PyTorch on the CPU
    (with onnxruntime), and compiled. The folder appears whole or not at all; one that holds engines is
    replaced. Loading refuses engines of a model whose weights have changed since: build them again.

    \b
    Examples:
      scorefusion engine build t1-sr4 -o engines
      scorefusion engine build t1-sr4 -o engines --shape 152 192 192 --slab 16
      scorefusion engine build my_model -o engines --precision fp16
    """
    from scorefusion.cli.console import progress
    from scorefusion.engine.tensorrt.build import build_engines, check_target
    from scorefusion.models.score_fusion import ScoreFusion

    check_target(output)
    loaded, options = ScoreFusion.from_pretrained(model), vars(made)
    check = not options.pop("no_check")
    with progress("building engines", quiet=quiet) as report:
        manifest = build_engines(loaded, output, **options, check=check, source=model, report=report)
    if quiet:
        return
    print(f"{output}: {manifest.library} {manifest.version}, {made.precision}, for {manifest.target}")
    for name, entry in manifest.networks.items():
        times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in entry.seconds.items())
        print(f"  {name}: {(output / entry.file).stat().st_size / 1e6:.1f} MB; {times}")
        print(f"    takes {entry.profile}; features at scales {', '.join(map(str, entry.scales)) or 'none'}")
        differs = "" if entry.onnx_error is None else f"ONNX differs from PyTorch by {entry.onnx_error:.1e}: "
        print(f"    {differs}{entry.onnx_check}")
