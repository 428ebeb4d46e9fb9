"""MONAI: load, translate and save in a Compose: python monai_transform.py IN.nii.gz FOLDER."""

from __future__ import annotations

import sys

from monai.transforms import Compose, LoadImaged, SaveImaged

from scorefusion.embed.monai import ScoreFusiond


def main(source: str, folder: str) -> None:
    """Translate a file into a folder."""
    chain = Compose(
        [
            LoadImaged("t1", image_only=True, ensure_channel_first=True),
            ScoreFusiond("t1", "t1-sr4", "fine", steps=1, dtype="float32"),
            SaveImaged(
                "fine", output_dir=folder, output_postfix="fine", separate_folder=False, print_log=False
            ),
        ]
    )
    item = chain({"t1": source})
    print(type(item["fine"]).__name__, tuple(item["fine"].shape))


if __name__ == "__main__":
    main(*sys.argv[1:])
