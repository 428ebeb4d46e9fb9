"""What varying a 64³ crop costs: ours, and TorchIO's and MONAI's nearest equivalents.

TorchIO is needed for nothing else here, so run it in an environment of its own:

    python -m venv /tmp/augment
    /tmp/augment/bin/pip install -c constraints.txt . torchio==1.2.1 monai==1.6.1
    /tmp/augment/bin/python tools/compare_augmentation.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import monai.transforms as mo
import numpy as np
import torch
import torchio as tio

from scorefusion.train.config import AugmentConfig
from scorefusion.train.examples import vary

SIZE = 64
NOTHING = AugmentConfig(flip=False, gamma=0, remap=0, sharpen=0, bias=0, noise=0, noise_probability=0)
VOLUME = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 1, *(SIZE,) * 3)).astype(np.float32))
UNIT = (VOLUME[0] + 1) / 2

Step = Callable[[], object]


def ours(augment: AugmentConfig) -> Step:
    """Our variation, with a generator of its own."""
    random = np.random.default_rng(1)
    return lambda: vary(VOLUME, augment, random)


def torchio(*steps: tio.Transform) -> Step:
    """A TorchIO chain, the subject made anew each time, as a loader would."""
    chain = tio.Compose(steps)
    return lambda: chain(tio.Subject(t1=tio.ScalarImage(tensor=UNIT)))


def monai(*steps: mo.Transform) -> Step:
    """A MONAI chain."""
    chain = mo.Compose(steps)
    return lambda: chain(UNIT)


def cpu_ms(step: Step, number: int = 40, repeats: int = 7) -> float:
    """Milliseconds of processor time, the median of the repeats."""
    step()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(number):
            step()
        times.append(1e3 * (time.process_time() - start) / number)
    return statistics.median(times)


def import_seconds(module: str) -> float:
    """Seconds of processor time to import a module where torch is imported already; the median of five."""
    code = "import time, torch; start = time.process_time(); "
    code += f"import {module}; print(time.process_time() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(5)]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    only = NOTHING.model_copy
    flips = [mo.RandFlip(prob=0.5, spatial_axis=axis) for axis in range(3)]
    gamma = mo.RandAdjustContrast(prob=1, gamma=(0.8, 1.25))
    bias = mo.RandBiasField(prob=1, degree=1, coeff_range=(0, 0.15))
    chains: dict[str, tuple[Step, Step | None, Step]] = {
        "flip": (ours(only(update={"flip": True})), torchio(tio.RandomFlip(axes=(0, 1, 2))), monai(*flips)),
        "gamma": (ours(only(update={"gamma": 0.25})), torchio(tio.RandomGamma(0.25)), monai(gamma)),
        "intensity curve": (ours(only(update={"remap": 1.0})), None, monai(mo.RandHistogramShift(6, 1.0))),
        "bias field": (
            ours(only(update={"bias": 0.15})),
            torchio(tio.RandomBiasField(0.15, order=1)),
            monai(bias),
        ),
        "noise (TorchIO: not Rician)": (
            ours(only(update={"noise": 0.04, "noise_probability": 1.0})),
            torchio(tio.RandomNoise(std=(0, 0.04))),
            monai(mo.RandRicianNoise(prob=1, std=0.04)),
        ),
        "all, with their probabilities": (
            ours(AugmentConfig()),
            torchio(
                tio.RandomFlip(axes=(0, 1, 2)),
                tio.RandomBlur(std=(0, 1), p=0.5),
                tio.RandomGamma(0.25),
                tio.RandomBiasField(0.15, order=1),
                tio.RandomNoise(std=(0, 0.04), p=0.5),
            ),
            monai(
                *flips,
                mo.RandGaussianSharpen(prob=0.5),
                gamma,
                mo.RandHistogramShift(6, 0.3),
                bias,
                mo.RandRicianNoise(prob=0.5, std=0.04),
            ),
        ),
    }
    print("| CPU ms a crop, one thread | ours | TorchIO | MONAI |\n| --- | --- | --- | --- |")
    for name, steps in chains.items():
        cells = ["–" if step is None else f"{cpu_ms(step):.1f}" for step in steps]
        print(f"| {name} | {' | '.join(cells)} |")
    modules = ("scorefusion.train.examples", "torchio", "monai.transforms")
    print(f"| import, CPU s | {' | '.join(f'{import_seconds(module):.2f}' for module in modules)} |")


if __name__ == "__main__":
    main()
