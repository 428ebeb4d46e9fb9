"""Which axis of a volume [B, C, D, H, W] (z, y, x) a plane fixes.

Axial slices fix z and are [H, W]; coronal ones fix y and are [D, W]; sagittal ones fix x and are [D, H].
"""

AXIS: dict[str, int] = {"axial": 2, "coronal": 3, "sagittal": 4}
