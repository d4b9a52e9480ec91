"""Notebooks that start at once. This room can be deleted: the sweep then starts ordinary kernels.

launcher    python -m, without waiting for imports: asks the zygote for a child, stands in for it
zygote      a process that has imported everything, and forks; the kernel "fruitlib (warm)"
"""
