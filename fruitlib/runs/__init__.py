"""The run folder: what is in it, which stages of it still hold, how far it is.

In and out: files. Read `run` first; `stages` says when a result is stale.

    stages     a run's stages, and the code, settings and data that each depends on
    run        one run's folder: its settings, photos, predictions, records and locks
    changes    how a training that is held differs from the one asked for, in words
    headline   the answer on top of a notebook
    status     how far a sweep is, read from its folder
    outlook    when a sweep will be over, from what its stages took so far
"""
