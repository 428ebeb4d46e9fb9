"""Reading and writing of volumes: NIfTI and DICOM in and out, and files that appear whole or not at all."""
