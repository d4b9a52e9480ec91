"""A params file -> executed runs, here or on a cluster, and their report.

Read `params` for what a sweep may be, then `driver`, which executes it. Each run is a process of its own: `worker`.

    space         lists and ranges of settings, to draw from
    params        params files: grids, lists, random draws, searches, folds -> runs and their names
    search        Optuna: asks for trials, watches and prunes them, tells it their scores
    final_model   after folds: a refit on all photos, or the folds' networks together
    summary       results.csv, sweep.json
    folder        a sweep's folder: its name, whose results are in it, whether it is still there
    notebook      one notebook, by papermill
    worker        one run's notebooks, in a process of its own
    watch         a run's processes: those that were stopped or hang are found, what they leave is removed
    executors     where those processes run: here, or on a Dask cluster
    queue         tasks to processes, until all are done: waits for others, tries again what was killed
    schedule      what a sweep has before it, from which its end is guessed
    terminal      the live table with the time left, and what a sweep found
    checks        what is checked before anything is written
    starting      what was typed into a form -> a params file, checked; its sweep as a process of its own
    start_form    00: that form as a widget
    driver        a params file, from its checks to its report
"""
