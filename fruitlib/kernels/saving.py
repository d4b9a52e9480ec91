"""After JupyterLab has saved a notebook: git sees no change where only outputs have changed.

The filter in .gitattributes keeps outputs out of git. But git compares the size of a file before it asks a filter, and
so calls the notebook modified until it is added again, which then changes nothing. `make lab` names this hook.
"""

import contextlib
import subprocess
import threading

# -u: a notebook that git does not know stays unknown to it
UNLESS_CHANGED = 'git diff --quiet -- "$1" && git add -u -- "$1"'


def refresh_git(os_path: str, **_) -> threading.Thread | None:
    """Jupyter's `post_save_hook`: add the notebook again if its content, filtered, is the one in git's index.

    Returns:
        the thread that waits for git, so that saving need not; None for other files.
    """
    if not os_path.endswith(".ipynb"):
        return None
    thread = threading.Thread(target=_add, args=(os_path,), daemon=True)
    thread.start()
    return thread


def _add(path: str) -> None:
    folder = path.rpartition("/")[0] or "."
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with contextlib.suppress(OSError):  # no git, no sh
        subprocess.run(["sh", "-c", UNLESS_CHANGED, "sh", path], cwd=folder, **quiet)
