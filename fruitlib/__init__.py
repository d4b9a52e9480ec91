"""fruitlib: the vocabulary of the notebooks, for classifying few photographs, unevenly spread.

Ten rooms, in this order; a room imports only rooms above it (`tests/test_architecture.py` checks that). Each room's
docstring lists its modules and says which one to read first:

    core        the settings of a run, paths and atomic writes, the machine, errors for people
    data        photos as people have them -> photos to learn from
    runs        the run folder: what is in it, what is still valid, how far it is
    evaluation  predictions -> numbers to trust, without torch
    explain     where a network looks
    training    photos -> a trained network
    deploy      a trained network -> a file that others can use
    reporting   what people see: figures, photo sheets, the report
    kernels     notebooks that start at once
    sweep       a params file -> executed runs, here or on a cluster

and `cli.py`, the command `fruitlib`. `import fruitlib` itself imports neither torch nor Jupyter.
"""

import os

__version__ = "0.1.0"

# torch's CPU threads wait for each other by spinning. Beside any other busy process that made training 5 times slower
# (two cores, 3-conv model). Waiting passively from the start cost a quarter on a quiet machine, spinning for some
# microseconds first costs neither. Set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
