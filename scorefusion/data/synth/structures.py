"""FreeSurfer's numbers of structures, and the tissue of each."""

#: FreeSurfer's numbers of structures on the left and on the right
SIDES = {
    2: 41, 3: 42, 4: 43, 5: 44, 6: 45, 7: 46, 8: 47, 9: 48, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54,
    19: 55, 20: 56, 25: 57, 26: 58, 27: 59, 28: 60, 30: 62, 31: 63, 78: 79, 81: 82,
}  # fmt: skip
CEREBRAL_WHITE, CORTEX = 2, 3
WHITE = (CEREBRAL_WHITE, 7, 16, 28, 77, 78, 85)
GREY = (CORTEX, 8, 9, 10, 11, 12, 13, 17, 18, 19, 20, 26, 27, 80, 81)
FLUID = (4, 5, 14, 15, 24, 31, 72)
DEEP = {10: 0.5, 13: 0.7, 12: 0.2, 11: 0.1, 26: 0.1, 9: 0.5}  #: share of white matter in deep nuclei
MOST = 15000  #: greatest number in use
OUTSIDE = ("bone", "marrow", "fat", "muscle", "muscle", "fat")


def structure(number: int) -> int:
    """Return what a FreeSurfer number stands for: the left side's number, parcels joined."""
    if number in (251, 252, 253, 254, 255) or 3000 <= number < 5000 or 13100 <= number < 15000:
        return CEREBRAL_WHITE
    if 1000 <= number < 3000 or 11100 <= number < 13100:
        return CORTEX
    return {right: left for left, right in SIDES.items()}.get(number, number)


def tissue(number: int) -> str:
    """Return ``wm``, ``gm`` or ``csf`` of a structure in the brain, ``air`` of 0, else ``outside``."""
    for name, numbers in (("wm", WHITE), ("gm", GREY), ("csf", FLUID), ("air", (0,))):
        if number in numbers:
            return name
    return "outside"
