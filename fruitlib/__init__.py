"""fruitlib: the vocabulary of the notebooks, for classifying few photographs, unevenly spread.

Read it in this order; a module imports only modules above it (`tests/test_architecture.py` holds it so):

    core     runtime config runs intake splits images models losses metrics gradcam export train plots
    around   sample sweep widgets report cli

`import fruitlib` itself imports neither torch nor Jupyter.
"""

__version__ = "0.1.0"
