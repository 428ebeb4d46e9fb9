"""Synthetic subjects: aligned contrasts of deformed tissue maps, with their labels."""

from scorefusion.data.synth.anatomy import Maps, read_maps, rotation
from scorefusion.data.synth.labels import (
    PAIRED,
    LabelCrops,
    LabelMap,
    Painting,
    label_files,
    paint,
    read_label_map,
    write_painted,
)
from scorefusion.data.synth.make import SEQUENCES, PhantomSubject, Settings, make_subject, write_subjects

__all__ = [
    "PAIRED",
    "SEQUENCES",
    "LabelCrops",
    "LabelMap",
    "Maps",
    "Painting",
    "PhantomSubject",
    "Settings",
    "label_files",
    "make_subject",
    "paint",
    "read_label_map",
    "read_maps",
    "rotation",
    "write_painted",
    "write_subjects",
]
