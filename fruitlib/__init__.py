"""fruitlib: the vocabulary of the notebooks, for classifying few photographs, unevenly spread.

Read it in this order; a module imports only modules above it (`tests/test_architecture.py` holds it so):

    core     runtime sample config space params fetch sources intake duplicates stratify splits runs
    core     preprocess cache augment balance images models transfer losses optim speed metrics evaluate
    core     crossval stats calibration thresholds audit sanity baselines gradcam compare insight learning export
    core     checkpoint tracking distributed train finder plots plots_photos plots_metrics plots_compare plots_insight
    around   warm kernels progress widgets report execute work placement engine shipping summary search sweep cli

`import fruitlib` itself imports neither torch nor Jupyter.
"""

import os

__version__ = "0.1.0"

# torch's CPU threads wait for each other by spinning. Beside any other busy process that made training 5 times slower
# (two cores, 3-conv model), and waiting passively cost nothing measurable on a quiet machine. Set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
