"""Threads share a pipeline; a callback tells how far each is, and stops one that is no longer wanted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from scorefusion import Cancelled, Pipeline


def main() -> None:
    """Translate two images in two threads, then cancel one."""
    generator = np.random.default_rng(0)
    images = [generator.uniform(200, 900, (4, 4, 4)) for _ in range(2)]
    pipeline = Pipeline("t1-sr4", dtype="float32")

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda image: pipeline(image, affine=np.eye(4), steps=1), images))
    print([result.volume.shape for result in results])

    stop = threading.Event()  # set by whoever wants it to end: a button, a request that was dropped

    def callback(done: int, total: int) -> None:
        print(f"{done} of {total}")
        stop.set()
        if stop.is_set():
            raise Cancelled("no longer wanted")

    try:
        pipeline(images[0], affine=np.eye(4), steps=3, callback=callback)
    except Cancelled as reason:
        print("cancelled:", reason)
    again = pipeline(images[0], affine=np.eye(4), steps=1)
    print("the same bits as before:", bool((again.volume == results[0].volume).all()))


if __name__ == "__main__":
    main()
