"""How much is measured: on a GPU, and in a test."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[int, int, int]


@dataclass(frozen=True)
class Sizes:
    """What sections run on.

    Attributes:
        steps: models and boxes whose steps are timed; the first is the one that tables show.
        traced: models and boxes whose distinct operations are timed and checked.
        slabs: pixels that a 2D network is given at once, in the order they are timed.
        plain: model and box of the plain implementation.
        volume: model, and size of the scan that is translated.
        boxes: sizes of other scans, each a new box.
        settings: of these translations.
        folder: scans of the folder.
        small: model and box that is compared with the CPU.
        dtype: of the networks; ``auto`` is the device's.
        copy: bytes of the buffer that is copied.
        product: edge of the matrices that are multiplied.
        convolution: edge of the convolution's input.
        seconds: that a group of replays lasts.
        processes: that compile kernels at once.
        compile: the most kernels that are compiled.
        backend: of `torch.compile`.
        inductor: seconds that a case of `torch.compile` is expected to take.
        translating: seconds that a folder is expected to take.
    """

    steps: tuple[tuple[str, Box], ...]
    traced: tuple[tuple[str, Box], ...]
    slabs: tuple[int, ...]
    plain: tuple[str, Box]
    volume: tuple[str, Box]
    boxes: tuple[Box, ...]
    settings: tuple[tuple[str, int], ...]
    folder: int
    small: tuple[str, Box]
    dtype: str
    copy: int
    product: int
    convolution: int
    seconds: float
    processes: int
    compile: int
    backend: str
    inductor: float
    translating: float


FULL = Sizes(
    steps=(
        ("t1-sr4", (96, 112, 96)),
        ("t1-sr4", (192, 224, 192)),
        ("paper", (64, 96, 96)),
        ("paper", (152, 192, 192)),
    ),
    traced=(("t1-sr4", (96, 112, 96)), ("paper", (152, 192, 192))),
    slabs=(2**20, 2**19, 2**18, 2**17, 2**21),
    plain=("t1-sr4", (96, 112, 96)),
    volume=("t1-sr4", (40, 48, 40)),
    boxes=((36, 44, 38), (38, 46, 36), (34, 42, 34), (40, 44, 36), (36, 40, 34), (32, 44, 38), (38, 42, 40)),
    settings=(),
    folder=16,
    small=("t1-sr4", (32, 48, 40)),
    dtype="auto",
    copy=4 << 30,
    product=8192,
    convolution=128,
    seconds=0.01,
    processes=16,
    compile=10**6,
    backend="inductor",
    inductor=90.0,
    translating=20.0,
)

TINY = Sizes(
    steps=(("small", (8, 8, 8)),),
    traced=(("small", (8, 8, 8)),),
    slabs=(2**10, 2**7),
    plain=("small", (8, 8, 8)),
    volume=("t1-sr4", (4, 4, 4)),
    boxes=((4, 5, 4),),
    settings=(("steps", 1),),
    folder=2,
    small=("small", (8, 8, 8)),
    dtype="float32",
    copy=1 << 16,
    product=32,
    convolution=8,
    seconds=1e-5,
    processes=1,
    compile=1,
    backend="eager",
    inductor=0.0,
    translating=0.0,
)
