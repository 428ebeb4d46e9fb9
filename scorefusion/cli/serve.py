"""``scorefusion serve``: translations over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Uploads, results and the queue are kept here.")
    ],
    model: Annotated[str, typer.Option(help="A bundled model's name, or a model folder.")] = "t1-sr4",
    host: Annotated[str, typer.Option(help="Where to listen; anything but loopback needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SCOREFUSION_TOKEN", help="What clients must send as a Bearer token.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Noise levels.", show_default="the model's own")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same volume.")] = 0,
    max_memory: Annotated[
        str | None, typer.Option(help="The most memory to use, such as 9GB.", show_default="no limit")
    ] = None,
    max_voxels: Annotated[int, typer.Option(help="Refuse larger volumes, in and out.")] = 2**28,
    max_upload: Annotated[str, typer.Option(help="Refuse larger uploads.")] = "512MB",
    max_waiting: Annotated[int, typer.Option(help="Refuse more scans than this in the queue.")] = 32,
    max_kept: Annotated[
        int, typer.Option(help="Refuse more scans than this, until some are deleted.")
    ] = 1000,
    rate: Annotated[float, typer.Option(help="Requests a second of a client, in the long run.")] = 10.0,
    upload_time: Annotated[float, typer.Option(help="Give an upload up after so many seconds.")] = 600.0,
) -> None:
    """Take scans over HTTP, translate them one after another, and give the results back.

    \b
    Examples:
      scorefusion serve scans                                     then open http://127.0.0.1:8765
      SCOREFUSION_TOKEN=... scorefusion serve scans --host 0.0.0.0
      curl -F file=@t1.nii.gz http://127.0.0.1:8765/scans
    """
    from scorefusion.errors import ScoreFusionError
    from scorefusion.optional import need
    from scorefusion.serve.loopback import is_loopback

    if token is not None and len(token) < 16:
        raise ScoreFusionError("a token has 16 characters or more; make one with: openssl rand -hex 32")
    if token is None and not is_loopback(host):
        raise ScoreFusionError(
            f"others can reach {host}: give --token or SCOREFUSION_TOKEN, or leave --host out"
        )
    uvicorn = need("uvicorn", "scorefusion serve")
    for module in ("fastapi", "python_multipart"):
        need(module, "scorefusion serve")

    from scorefusion.batch.work import Work
    from scorefusion.engine.fit import parse_memory
    from scorefusion.engine.memory import keep_freed_memory
    from scorefusion.serve.app import make_app
    from scorefusion.serve.limits import Limits

    if max_memory is None:
        keep_freed_memory()
    choices = {"steps": steps, "seed": seed, "max_voxels": max_voxels}
    work = Work(model, choices, device=device, dtype=dtype, max_memory=max_memory)
    limits = Limits(parse_memory(max_upload), max_waiting, max_kept, rate, upload_time=upload_time)
    app = make_app(folder, work, token=token, limits=limits)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        limit_concurrency=64,
    )
