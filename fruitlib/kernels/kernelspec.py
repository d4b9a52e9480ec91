"""The kernel "fruitlib (warm)": its kernelspec in this environment, and whether it can be used.

    python -m fruitlib.kernels.kernelspec      puts "fruitlib (warm)" beside the other kernels of this environment

papermill, JupyterLab and anything else that starts Jupyter kernels then use `fruitlib-warm` as they use `python3`. The
command that it names is `launcher.py`.
"""

import json
import os
import sys
from pathlib import Path

from fruitlib.kernels import launcher

NAME = "fruitlib-warm"


def install() -> Path:
    """Write the kernelspec into this environment, unless it is there already; returns its folder.

    Raises:
        OSError: the environment cannot be written to.
    """
    from fruitlib.core.files import write_json

    folder = Path(sys.prefix) / "share" / "jupyter" / "kernels" / NAME
    command = [sys.executable, "-ISP", str(Path(launcher.__file__).resolve()), "ipykernel_launcher"]
    spec = {
        "argv": [*command, "-f", "{connection_file}"],
        "display_name": "fruitlib (warm)",
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {"debugger": True},
    }
    path = folder / "kernel.json"
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != spec:
        write_json(path, spec)
    return folder


def ready() -> tuple[str, str]:
    """The kernel to execute notebooks with, `fruitlib-warm` or `python3`, and why, as text.

    Starts the zygote if there is none, and waits for it.
    """
    try:
        path = launcher.address(dict(os.environ), sys.executable)
        install()
        launcher.connect(path, dict(os.environ), sys.executable).close()
    except (launcher.Unavailable, OSError) as why:
        return "python3", f"cold: {why}"
    return NAME, "warm"


if __name__ == "__main__":
    print(f"installed: {install()}")
