"""``scorefusion models``: which models there are, and what each is for."""

from typing import Annotated

from typer import Argument


def models(
    names: Annotated[
        list[str] | None, Argument(metavar="[MODEL]...", help="Bundled models' names, or model folders.")
    ] = None,
) -> None:
    """List the models that come with the package: what each is for, and what was measured of it.

    \b
    Examples:
      scorefusion models
      scorefusion models brain-iso my_model
    """
    import textwrap

    from scorefusion.cli.console import require_stdout
    from scorefusion.models.folder import WEIGHTS, bundled_models, find_folder, load_config, summary

    for name in names or bundled_models():
        config, folder = load_config(name), find_folder(name)
        size = (folder / WEIGHTS).stat().st_size / 1e6
        print(f"{name}: {', '.join(config.conditions)} to {config.target}, {size:.1f} MB")
        for paragraph in summary(folder):
            print(textwrap.fill(paragraph, 100, initial_indent="  ", subsequent_indent="  "))
    require_stdout()
