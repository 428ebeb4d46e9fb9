"""Synthetic subjects: aligned contrasts of deformed tissue maps, with their labels."""

from scorefusion.data.synth.anatomy import rotation
from scorefusion.data.synth.make import PhantomSubject, Settings, make_subject, write_subjects
from scorefusion.data.synth.maps import Maps, make_maps, read_maps
from scorefusion.data.synth.scanner import SEQUENCES

__all__ = [
    "SEQUENCES", "Maps", "PhantomSubject", "Settings", "make_maps", "make_subject", "read_maps", "rotation",
    "write_subjects",
]  # fmt: skip
