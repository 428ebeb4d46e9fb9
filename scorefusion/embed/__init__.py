"""The pipeline as a part of other frameworks: MONAI and nipype. docs/embed.md tells how."""
