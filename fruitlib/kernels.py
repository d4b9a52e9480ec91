"""Kernels that start at once: the zygote, which has imported everything and forks, and the kernelspec that uses it.

    python -m fruitlib.kernels install      puts "fruitlib (warm)" beside the other kernels of this environment

papermill, JupyterLab and anything else that starts Jupyter kernels then use `fruitlib-warm` as they use `python3`; the
command it names is `warm.py`, which asks this module's `serve`. A zygote imports, and does nothing else: no tensor is
computed and no CUDA call made before the fork (after one matrix product in the parent, training in a child hangs), and
it has one thread. What would differ from a cold start is put right in the child: threads, random states, matplotlib's
backend, signals. A zygote leaves when it was idle for ten minutes (`FRUITLIB_KERNELS_IDLE`, seconds), or when a file
that it has imported changed: an edited module is never served stale.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import sysconfig
import threading
import time
from pathlib import Path

from fruitlib import warm

NAME = "fruitlib-warm"
IDLE = 600.0  # seconds
# What notebooks and the processes that execute them import. Left out: onnxruntime, which starts a thread, and
# matplotlib's inline backend, which looks for its kernel when it is imported.
PRELOADED = """torch torchvision pandas matplotlib.pyplot seaborn scipy.stats sklearn
sklearn.linear_model cv2 onnx onnxscript torch.onnx._internal.exporter._core pytorch_grad_cam ipykernel.kernelapp
ipykernel.ipkernel ipykernel.zmqshell ipykernel.debugger IPython.core.completerlib IPython.core.debugger
IPython.extensions.storemagic tornado.platform.asyncio nbclient papermill fruitlib.finder fruitlib.audit fruitlib.work fruitlib.report"""
INLINE = "module://matplotlib_inline.backend_inline"
FRESH = ("tqdm.auto", "tqdm.autonotebook")  # they look for a notebook when they are imported


def install() -> Path:
    """Write the kernelspec into this environment, unless it is there; returns its folder.

    Raises:
        OSError: the environment cannot be written to.
    """
    from fruitlib import runtime

    folder = Path(sys.prefix) / "share" / "jupyter" / "kernels" / NAME
    command = [sys.executable, "-ISP", str(Path(warm.__file__).resolve()), "ipykernel_launcher"]
    spec = {
        "argv": [*command, "-f", "{connection_file}"],
        "display_name": "fruitlib (warm)",
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {"debugger": True},
    }
    path = folder / "kernel.json"
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != spec:
        runtime.write_json(path, spec)
    return folder


def ready() -> tuple[str, str]:
    """The kernel that notebooks are to be executed with, `fruitlib-warm` or `python3`, and in words why.

    Starts the zygote where there is none, and waits for it.
    """
    try:
        install()
        path = warm.address(dict(os.environ), sys.executable)
        warm.connect(path, dict(os.environ), sys.executable).close()
    except (warm.Unavailable, OSError) as why:
        return "python3", f"cold: {why}"
    return NAME, "warm"


# ---------------------------------------------------------------- the zygote


def serve(path: str) -> dict | None:
    """Fork a child for everyone who asks at the socket `path`; returns in each child, with what it is to become.

    In the zygote itself it returns None, when it is no longer wanted.
    """
    started = time.time()
    preload()
    if problem := _unfit():
        sys.exit(problem)
    _thread_pools()
    gc.collect()
    gc.freeze()  # a child's collector would write into every object, and so copy every page
    zygote = _Zygote(path, started)
    return zygote.run()


def preload() -> None:
    """Import what notebooks import; what is not installed is left out."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED.split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    for name in FRESH:
        sys.modules.pop(name, None)


def _unfit() -> str:
    """Why this process must not fork; empty where it may."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import has started CUDA, which no fork survives"
    if threading.active_count() > 1 or _threads() > 1:
        return f"an import has started {_threads() - 1} threads, which a fork would lose"
    return ""


def _threads() -> int:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 1


def _imported_files() -> list[str]:
    """The folders packages are installed in, and the files of all modules that stand elsewhere."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    known = (*installed, sysconfig.get_path("stdlib"))
    files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    return [*installed, *(file for file in files if file and not file.startswith(known))]


class _Zygote:
    """The loop that forks: one socket to ask at, one connection to each child's stand-in."""

    def __init__(self, path: str, started: float):
        self.path, self.started = path, started
        self.idle = float(os.environ.get("FRUITLIB_KERNELS_IDLE", IDLE))
        self.watched = _imported_files()
        self.children: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.woken, waker = socket.socketpair()
        for end in (self.woken, waker):
            end.setblocking(False)
        self.waker = waker
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(128)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.woken, selectors.EVENT_READ)

    def run(self) -> dict | None:
        """Serve until nobody wants it any more (None); in a child, the request it answers."""
        while self.children or self.listener.fileno() >= 0:
            ready = self.selector.select(None if self.children else self.idle)
            if not ready and not self.children:
                self.close()
            for key, _ in ready:
                if key.fileobj is self.listener:
                    if request := self.accept():
                        return request
                elif key.fileobj is self.woken:
                    with contextlib.suppress(BlockingIOError):
                        self.woken.recv(4096)
                else:
                    self.hung_up(key.fileobj)
            self.reap()
        return None

    def accept(self) -> dict | None:
        """Answer one who asks: fork, or say that this zygote is out of date and leave."""
        connection, _ = self.listener.accept()
        connection.settimeout(10)
        try:
            request, files = _read(connection)
        except (OSError, ValueError):
            connection.close()  # somebody who only looked whether there is one
            return None
        if changed := self.changed():
            print(f"{changed} changed: this zygote leaves", flush=True)
            connection.close()
            _close(files)
            self.close()
            return None
        if pid := os.fork():
            self.children[pid] = connection
            self.selector.register(connection, selectors.EVENT_READ)
            _close(files)
            _tell(connection, {"pid": pid})
            return None
        signal.set_wakeup_fd(-1)
        self.selector.close()
        for other in (self.listener, self.woken, self.waker, *self.children.values()):
            other.close()
        return {**request, "files": files, "connection": connection}

    def changed(self) -> str:
        """What was imported and has changed since this process began; empty where nothing has.

        Installed packages are not edited but replaced, and that shows in the folder they stand in.
        """
        for path in self.watched:
            with contextlib.suppress(OSError):
                if os.stat(path).st_mtime > self.started:
                    return path
        return ""

    def hung_up(self, connection: socket.socket) -> None:
        """A stand-in is gone: its child goes too."""
        pid = next(pid for pid, held in self.children.items() if held is connection)
        self.selector.unregister(connection)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Tell the stand-ins of children that have ended how they did."""
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self.children.pop(pid)
            with contextlib.suppress(KeyError):  # its stand-in is gone
                self.selector.unregister(connection)
            _tell(connection, {"exit": os.waitstatus_to_exitcode(status)})
            connection.close()

    def close(self) -> None:
        """Ask no more: whoever comes now starts another zygote."""
        if self.listener.fileno() >= 0:
            self.selector.unregister(self.listener)
            self.listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def _read(connection: socket.socket) -> tuple[dict, list[int]]:
    """A request and the three files that come with it."""
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    if len(head) < 4 or len(files) != 3:
        _close(files)
        raise ValueError("no request")
    missing, parts = int.from_bytes(head, "big"), []
    while missing:
        if not (part := connection.recv(min(missing, 65536))):
            _close(files)
            raise ValueError("half a request")
        parts.append(part)
        missing -= len(part)
    return json.loads(b"".join(parts)), files


def _tell(connection: socket.socket, word: dict) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(word).encode() + b"\n")


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


# ---------------------------------------------------------------- a child


def become(request: dict) -> None:
    """Turn this child into what was asked for, and end with it."""
    os.setsid()
    for name in ("SIGINT", "SIGCHLD", "SIGTERM"):
        number = getattr(signal, name)
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    for target, file in enumerate(request["files"]):
        os.dup2(file, target)
    _close([file for file in request["files"] if file > 2])
    _reopen_streams()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ["JPY_PARENT_PID"] = "1"  # "do not watch your parent", which is the zygote; the stand-in watches its own
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    time.tzset()
    threading.Thread(target=_leave_with, args=(request["connection"],), daemon=True).start()
    module, *arguments = request["arguments"]
    is_kernel = module == "ipykernel_launcher"
    if (
        is_kernel and "ipywidgets" in sys.modules
    ):  # seaborn imports it; it would find its kernel by itself when imported
        arguments.append("--ext=ipywidgets")
    _as_if_cold(INLINE if is_kernel else "")
    sys.argv = [module, *arguments]
    _run(module)


def _reopen_streams() -> None:
    """Python's own streams, for the files that stand behind 0, 1 and 2 now."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


def _leave_with(connection: socket.socket) -> None:
    """End this process, and all it has started, when the stand-in is gone and the zygote, which would see to it, too."""
    with contextlib.suppress(OSError):
        connection.settimeout(None)
        connection.recv(1)
    time.sleep(1)
    os.killpg(os.getpid(), signal.SIGKILL)


def _as_if_cold(backend: str) -> None:
    """What an import took from the zygote's environment, or drew at random, is taken and drawn again.

    `backend` is matplotlib's where the environment names none.
    """
    import numpy as np

    random.seed()
    np.random.seed()
    # torch begins with the same seed in every process, so there is nothing to draw.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or 0)
    blas = int(os.environ.get("OPENBLAS_NUM_THREADS") or threads or cores)
    pools = _thread_pools()
    pools.limit(limits=blas, user_api="blas")
    if threads:
        pools.limit(limits=threads, user_api="openmp")
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    if "matplotlib" in sys.modules and (backend := os.environ.get("MPLBACKEND") or backend):
        sys.modules["matplotlib"].rcParams["backend"] = backend


@functools.cache  # found in the zygote already: it takes a twentieth of a second
def _thread_pools():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _run(module: str) -> None:
    """`python -m module`, then the end of the process without taking down thousands of modules one by one."""
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if code and not isinstance(left.code, int):
            print(left.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # waits for threads, as the interpreter does at its end
        import atexit

        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def main() -> None:
    """`install`, or the path of the socket to serve at (which `warm.py` passes)."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fruitlib.kernels install")
    if sys.argv[1] == "install":
        print(f"installed: {install()}")
    elif request := serve(sys.argv[1]):
        become(request)
    else:
        os._exit(0)


if __name__ == "__main__":
    main()
