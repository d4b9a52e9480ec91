"""fruitlib: the vocabulary of the notebooks, for classifying few photographs, unevenly spread.

Read it in this order; a module imports only modules above it (`tests/test_architecture.py` holds it so):

    core     runtime sample config intake splits runs images models losses metrics gradcam export train plots
    around   widgets report sweep cli

`import fruitlib` itself imports neither torch nor Jupyter.
"""

__version__ = "0.1.0"
