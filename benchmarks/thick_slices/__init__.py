"""How well thick slices become isotropic, on real heads whose isotropic volume is known.

    python -m benchmarks.thick_slices cases HEAD... -o FILE     fidelity beside interpolation, case by case
    python -m benchmarks.thick_slices lesions HEAD... -o FILE   painted lesions: kept, faded, erased, invented
    python -m benchmarks.thick_slices table FILE...             the tables of docs/thick-slices.md

Each appends a line of JSON to FILE for each case and leaves out what is there, so it may be stopped.
"""
