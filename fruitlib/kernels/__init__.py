"""Notebooks that start at once. This room can be deleted: the sweep then starts ordinary kernels.

Read `launcher` first: it describes how the others work together.

    launcher    python -m, without waiting for imports: asks the zygote for a child, stands in for it
    zygote      a process that has imported everything, and forks
    child       what a forked child does to become the process that was asked for
    kernelspec  the kernel "fruitlib (warm)", which starts by the launcher
    saving      after a notebook was saved by hand: to git it has not changed where only outputs have
"""
