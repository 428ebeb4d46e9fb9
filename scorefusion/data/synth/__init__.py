"""Synthetic subjects: aligned contrasts of deformed tissue maps, with their labels."""

from scorefusion.data.synth.anatomy import Maps, read_maps, rotation
from scorefusion.data.synth.make import SEQUENCES, PhantomSubject, Settings, make_subject, write_subjects

__all__ = [
    "SEQUENCES",
    "Maps",
    "PhantomSubject",
    "Settings",
    "make_subject",
    "read_maps",
    "rotation",
    "write_subjects",
]
