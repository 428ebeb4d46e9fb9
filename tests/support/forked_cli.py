"""Run ``scorefusion`` in processes whose standard streams fail, forked from one that imported everything.

    python tests/support/forked_cli.py < cases

A case is a line of JSON: ``args``, ``stdout`` and ``stderr``; a stream is a file or one of ``STREAMS``. The
answer to each is the exit status of the process, as a shell reports it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

STREAMS = ("full", "closed", "gone", "one line", "terminal gone", "terminal goes")


def main() -> None:
    import nibabel  # noqa: F401
    import PIL.WebPImagePlugin  # noqa: F401
    import rich.progress  # noqa: F401
    import torch._dynamo  # noqa: F401

    import scorefusion.batch.session
    import scorefusion.cli.batch_run  # noqa: F401
    import scorefusion.doctor  # noqa: F401
    import scorefusion.pipeline.pipeline  # noqa: F401

    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)


def run(case: dict[str, object]) -> int:
    streams = {number: open_stream(str(case[name])) for name, number in (("stdout", 1), ("stderr", 2))}
    child = os.fork()
    if not child:
        for _, until in streams.values():
            if until is not None:
                os.close(until[0])
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        start(streams, [str(each) for each in case["args"]])  # type: ignore[attr-defined]
    for descriptor, until in streams.values():
        if descriptor is not None:
            os.close(descriptor)
        if until is not None:
            threading.Thread(target=read_until, args=until, daemon=True).start()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def open_stream(name: str) -> tuple[int | None, tuple[int, bytes] | None]:
    """What a process writes to, and its other end with the text after which that is closed."""
    if name == "closed":
        return None, None
    if name == "full":
        return os.open("/dev/full", os.O_WRONLY), None
    if name in ("gone", "one line"):
        end, descriptor = os.pipe()
    elif name in ("terminal gone", "terminal goes"):
        end, descriptor = os.openpty()
    else:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), None
    if name in ("gone", "terminal gone"):
        os.close(end)
        return descriptor, None
    return descriptor, (end, b"\n" if name == "one line" else b"translating")


def read_until(end: int, text: bytes) -> None:
    seen = b""
    try:
        while text not in seen and (part := os.read(end, 100)):
            seen += part
    except OSError:  # a terminal whose process has ended
        pass
    os.close(end)


def start(streams: dict[int, tuple[int | None, object]], args: list[str]) -> None:
    """Be a new process with these streams, as far as Python's start goes."""
    kept = {number: descriptor for number, (descriptor, _) in streams.items()}
    for number, descriptor in kept.items():
        if descriptor is None:
            os.close(number)
        else:
            os.dup2(descriptor, number)
    modes = {1: None, 2: 1}
    out, err = (
        None if kept[number] is None else open(number, "w", buffering=modes[number] or -1, closefd=False)
        for number in (1, 2)
    )
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    sys.argv = ["scorefusion", *args]
    from scorefusion.cli import main

    status = 1
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(flushed(status))


def flushed(status: int) -> int:
    """The status that Python ends with: 120 if a standard stream cannot be flushed."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return 120
    return status


if __name__ == "__main__":
    main()
