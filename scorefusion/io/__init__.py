"""Reading and writing of volumes: NIfTI in, NIfTI out, and files that appear whole or not at all."""
