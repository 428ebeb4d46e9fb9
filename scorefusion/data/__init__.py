"""Datasets, their layouts and the training store; what an image becomes before a network sees it."""

from scorefusion.data.dataset import (
    DatasetConfig,
    Found,
    Refusal,
    assemble,
    check_grids,
    find_subjects,
    find_subjects_at,
    read_subject,
)
from scorefusion.data.domain import check_domain, contrast_in, warnings_of
from scorefusion.data.intensity import Intensity, Outliers
from scorefusion.data.layouts import LAYOUTS, detect
from scorefusion.data.layouts.table import TABLES, contrast_columns, read_rows, write_table
from scorefusion.data.listing import Listing, Subject, Volume, is_volume, stem, volume_files
from scorefusion.data.preprocess import (
    BASELINES,
    Box,
    Prepared,
    foreground_box,
    interpolate,
    least_box,
    on_output_grid,
    prepare_conditions,
    sampling_box,
)
from scorefusion.data.store import MULTIPLE, Extra, Source, StoreSettings, Vary, build_store

__all__ = [
    "BASELINES",
    "Box",
    "DatasetConfig",
    "Extra",
    "Found",
    "Intensity",
    "LAYOUTS",
    "Listing",
    "MULTIPLE",
    "Outliers",
    "Prepared",
    "Refusal",
    "Source",
    "StoreSettings",
    "Subject",
    "TABLES",
    "Vary",
    "Volume",
    "assemble",
    "build_store",
    "check_domain",
    "check_grids",
    "contrast_columns",
    "contrast_in",
    "detect",
    "find_subjects",
    "find_subjects_at",
    "foreground_box",
    "interpolate",
    "is_volume",
    "least_box",
    "on_output_grid",
    "prepare_conditions",
    "read_rows",
    "read_subject",
    "sampling_box",
    "stem",
    "volume_files",
    "warnings_of",
    "write_table",
]
