"""Datasets, their layouts and the training store; what an image becomes before a network sees it.

A name is imported from its module when it is first used.
"""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.data.dataset import *
    from scorefusion.data.domain import *
    from scorefusion.data.intensity import *
    from scorefusion.data.layouts import *
    from scorefusion.data.preprocess import *
    from scorefusion.data.store import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "dataset": "DatasetConfig Found Progress Refusal Refused assemble find_subjects read_subject",
        "domain": "check_domain contrast_in warnings_of",
        "intensity": "Intensity Outliers",
        "layouts": "LAYOUTS TABLES Listing Subject Volume contrast_columns detect is_volume read_rows stem "
        "volume_files write_table",
        "preprocess": "BASELINES Box Prepared foreground_box interpolate least_box on_output_grid "
        "prepare_conditions sampling_box",
        "store": "MULTIPLE Extra Source StoreSettings Vary build_store",
    },
)
