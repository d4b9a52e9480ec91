"""Kernels that start at once: the zygote, which has imported everything and forks, and the kernelspec that uses it.

    python -m fruitlib.kernels.zygote install      puts "fruitlib (warm)" beside the other kernels of this environment

papermill, JupyterLab and anything else that starts Jupyter kernels then use `fruitlib-warm` as they use `python3`; the
command it names is `warm.py`, which asks this module's `serve`. A zygote imports, and does nothing else: no tensor is
computed and no CUDA call made before the fork (after one matrix product in the parent, training in a child hangs), and
it has one thread. What would differ from a cold start is put right in the child: threads, random states, matplotlib's
backend, signals. A zygote leaves when it was idle for ten minutes (`FRUITLIB_KERNELS_IDLE`, seconds), or when a file
that it has imported changed: an edited module is never served stale.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import time
import types
import weakref
from pathlib import Path

from fruitlib.kernels import launcher

NAME = "fruitlib-warm"
IDLE = 600.0  # seconds
# What notebooks and the processes that execute them import. Left out: onnxruntime, which starts a thread, and
# matplotlib's inline backend, which looks for its kernel when it is imported.
PRELOADED = """torch torchvision pandas matplotlib.pyplot seaborn scipy.stats sklearn
sklearn.linear_model cv2 onnx onnxscript torch.onnx._internal.exporter._core pytorch_grad_cam ipykernel.kernelapp
ipykernel.ipkernel ipykernel.zmqshell ipykernel.debugger IPython.core.completerlib IPython.core.debugger
IPython.extensions.storemagic tornado.platform.asyncio nbclient papermill
sklearn.metrics statsmodels.stats.contingency_tables
fruitlib.training.lr_finder fruitlib.evaluation.leakage fruitlib.evaluation.compare
fruitlib.reporting.metrics_figures fruitlib.reporting.compare_figures fruitlib.reporting.effects_figures
fruitlib.sweep.worker fruitlib.reporting.site"""
INLINE = "module://matplotlib_inline.backend_inline"
FRESH = ("tqdm.auto", "tqdm.autonotebook")  # they look for a notebook when they are imported


def install() -> Path:
    """Write the kernelspec into this environment, unless it is there; returns its folder.

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
    """The kernel that notebooks are to be executed with, `fruitlib-warm` or `python3`, and in words why.

    Starts the zygote where there is none, and waits for it.
    """
    try:
        install()
        path = launcher.address(dict(os.environ), sys.executable)
        launcher.connect(path, dict(os.environ), sys.executable).close()
    except (launcher.Unavailable, OSError) as why:
        return "python3", f"cold: {why}"
    return NAME, "warm"


# ---------------------------------------------------------------- the zygote


def serve(path: str) -> dict | None:
    """Fork a child for everyone who asks at the socket `path`; returns in each child, with what it is to become.

    In the zygote itself it returns None, when it is no longer wanted.
    """
    started = time.time()
    if hasattr(os, "sched_setaffinity"):  # to all there are, not to those of the first who asked
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
    preload()
    if problem := _unfit():
        sys.exit(problem)
    _thread_pools()
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):  # torch's, on which each child spent 0.1 s
        finalizer.atexit = False
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else each child writes it again
    gc.collect()
    gc.freeze()  # a child's collector would write into every object, and so copy every page
    return _Zygote(path, started).run()


def preload() -> None:
    """Import what notebooks import; what is not installed is left out."""
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
    known = tuple(f"{folder}{os.sep}" for folder in (*installed, sysconfig.get_path("stdlib")))
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return [*installed, *(file for file in files if os.path.isabs(file) and not file.startswith(known))]


def _watched(started: float) -> dict[str, tuple[float, int]]:
    """Each imported file's stamp; one that never fits for those written since the imports began."""
    stamps = {path: _stamp(path) for path in _imported_files()}
    return {path: (0.0, -1) if started < stamp[0] < time.time() else stamp for path, stamp in stamps.items()}


def _stamp(path: str) -> tuple[float, int]:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_mtime, found.st_size
    return 0.0, 0


class _Zygote:
    """The loop that forks: one socket to ask at, one connection to each who asks and then to each child's stand-in."""

    def __init__(self, path: str, started: float):
        self.idle = float(os.environ.get("FRUITLIB_KERNELS_IDLE", IDLE))
        self.watched = _watched(started)
        self.asking: dict[socket.socket, tuple[bytearray, list[int]]] = {}
        self.children: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.woken, self.waker = socket.socketpair()
        for end in (self.woken, self.waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(128)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.woken, selectors.EVENT_READ, self.reap)

    def run(self) -> dict | None:
        """Serve until nobody wants it any more (None); in a child, the request it answers."""
        while self.children or self.listener.fileno() >= 0:
            ready = self.selector.select(None if self.children else self.idle)
            if not ready and not self.children:
                self.close()
            for key, _ in ready:
                if key.fileobj.fileno() >= 0 and (request := key.data(key.fileobj)):
                    return request
        return None

    def accept(self, listener: socket.socket) -> None:
        """Somebody is there. What is asked comes when it comes: others are not to wait for it."""
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            self.asking[connection] = bytearray(), []
            self.selector.register(connection, selectors.EVENT_READ, self.hear)

    def hear(self, connection: socket.socket) -> dict | None:
        """Take a part of a request; a whole one is answered with a child, or by leaving. In the child: the request."""
        summary, files = self.asking[connection]
        part, sent = b"", []
        with contextlib.suppress(OSError):
            part, sent, _, _ = socket.recv_fds(connection, 65536, 3)
        summary += part
        files += sent
        if part and not part.endswith(b"\n"):
            return None
        self.selector.unregister(connection)
        del self.asking[connection]
        pid = self.fork() if part else None  # else somebody who only looked whether there is one, or changed his mind
        if pid == 0:
            self.forget()
            return {**json.loads(summary), "files": files, "connection": connection}
        if pid:
            self.children[pid] = connection
            self.selector.register(connection, selectors.EVENT_READ, self.hung_up)
        else:
            connection.close()
        _close(files)
        return None

    def fork(self) -> int | None:
        """The new child's pid, and 0 in the child; None where there is none: this zygote is out of date, say."""
        if changed := self.changed():
            print(f"{changed} changed: this zygote leaves", flush=True)
            self.close()
            return None
        try:
            return os.fork()
        except OSError as problem:
            print(f"no child: {problem}", flush=True)
            return None

    def forget(self) -> None:
        """In a child: close what belongs to the zygote and to other children."""
        signal.set_wakeup_fd(-1)
        self.selector.close()
        for other in (self.listener, self.woken, self.waker, *self.children.values(), *self.asking):
            other.close()
        for _, files in self.asking.values():
            _close(files)

    def changed(self) -> str:
        """What was imported and has changed since, or while it was; empty where nothing has.

        Installed packages are not edited but replaced, and that shows in the folder they stand in.
        """
        return next((path for path, was in self.watched.items() if _stamp(path) != was), "")

    def hung_up(self, connection: socket.socket) -> None:
        """A stand-in is gone: its child goes too."""
        self.selector.unregister(connection)
        pid = next(pid for pid, held in self.children.items() if held is connection)
        for kill in (os.killpg, os.kill):  # the second for one that has no group of its own yet
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)

    def reap(self, woken: socket.socket) -> None:
        """Tell the stand-ins of children that have ended how they did."""
        with contextlib.suppress(BlockingIOError):
            woken.recv(4096)
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if connection := self.children.pop(pid, None):
                with contextlib.suppress(KeyError):  # its stand-in is gone
                    self.selector.unregister(connection)
                _tell(connection, {"exit": os.waitstatus_to_exitcode(status)})
                connection.close()

    def close(self) -> None:
        """Ask no more: whoever comes now starts another zygote, which puts a socket of its own in this one's place."""
        if self.listener.fileno() >= 0:
            self.selector.unregister(self.listener)
            self.listener.close()


def _tell(connection: socket.socket, word: dict) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(word).encode() + b"\n")


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


# ---------------------------------------------------------------- a child


def become(request: dict) -> None:
    """Turn this child into what was asked for, and end with it."""
    import resource

    connection = request["connection"]
    os.setsid()
    for name in (*launcher.PASSED_ON, "SIGCHLD"):  # which the zygote's starter may have ignored
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for target, file in enumerate(request["files"]):
        os.dup2(file, target)
    _close(request["files"])
    _reopen_streams()
    _tell(connection, {"pid": os.getpid()})  # by the child itself: who has not heard it may ask another zygote
    threading.Thread(target=_leave_with, args=(connection,), daemon=True).start()
    os.register_at_fork(after_in_child=connection.close)  # which ends with this process, not with one it leaves behind
    os.environ.clear()
    os.environ.update({**launcher.SET_BY_IMPORT, **request["environment"]})
    os.environ["JPY_PARENT_PID"] = "1"  # its parent is the zygote; the stand-in watches its own
    for number, *limits in request["limits"]:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(number, limits)  # one that is higher than the zygote's cannot be had
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    module, *arguments = request["arguments"]
    is_kernel = module == "ipykernel_launcher"
    if is_kernel and "ipywidgets" in sys.modules:  # seaborn imports it; when imported it looks for its kernel
        arguments.append("--ext=ipywidgets")
    _set_threads(request["cores"])
    _as_if_cold(INLINE if is_kernel else "")
    sys.argv = [module, *arguments]
    _run(module, connection)


def _reopen_streams() -> None:
    """Python's own streams, for the files that stand behind 0, 1 and 2 now."""
    for name, file, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        was = getattr(sys, f"__{name}__")
        buffering = -1 if mode == "r" else 1
        stream = open(file, mode, buffering, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _leave_with(connection: socket.socket) -> None:
    """End this process, and all it has started, when the stand-in is gone; the zygote does so too, if there is one."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.killpg(os.getpid(), signal.SIGKILL)


def _as_if_cold(backend: str) -> None:
    """What an import took from the zygote's environment, or drew at random, is taken and drawn again.

    `backend` is matplotlib's where the environment names none.
    """
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    if "matplotlib" in sys.modules and (backend := os.environ.get("MPLBACKEND") or backend):
        sys.modules["matplotlib"].rcParams["backend"] = backend
    tempfile.tempdir = None
    time.tzset()


def _set_threads(allowed: list[int]) -> None:
    """Run on these cores, with the threads that libraries have where they are imported there, in this environment."""
    before = cores()
    if allowed:
        with contextlib.suppress(OSError):  # the zygote was started where there are others
            os.sched_setaffinity(0, allowed)
    omp, mkl, blas = (threads_asked(f"{name}_NUM_THREADS") for name in ("OMP", "MKL", "OPENBLAS"))
    pools, torch = _thread_pools(), sys.modules.get("torch")
    pools.limit(limits=min(blas or omp or cores(), cores()), user_api="blas")
    if omp or mkl or cores() != before:
        most = torch.get_num_threads() if torch else 0
        pools.limit(limits=omp or cores(), user_api="openmp")
        if torch:
            torch.set_num_threads(min(mkl or omp or most, most, cores()))


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_asked(name: str) -> int:
    """The threads a variable of the environment asks for, such as OMP_NUM_THREADS; 0 where there is none."""
    first = os.environ.get(name, "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


@functools.cache  # found in the zygote already: it takes a twentieth of a second
def _thread_pools():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _run(module: str, connection: socket.socket) -> None:
    """`python -m module`, then the end of the process without taking down thousands of modules one by one."""
    code = 1
    try:
        code = _outcome(module)
        for step in (threading._shutdown, atexit._run_exitfuncs, _let_go):  # as the interpreter does at its end
            with contextlib.suppress(BaseException):
                step()
        _tell(connection, {"leaving": code})  # in case there is no zygote any more that could
    finally:
        launcher.leave(code)


def _outcome(module: str) -> int:
    """Run it; returns its exit code."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        runpy._run_module_as_main(module)
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return (left.code or 0) & 0xFF
        print(left.code, file=sys.stderr)
        return 1
    except BaseException as problem:
        sys.excepthook(type(problem), problem, problem.__traceback__.tb_next)
        return -signal.SIGINT if isinstance(problem, KeyboardInterrupt) else 1
    return 0


def _let_go() -> None:
    """Let go of what `__main__` holds, which ends it properly, and get to disk what was written to files left open."""
    vars(sys.modules["__main__"]).clear()
    gc.collect()
    for held in gc.get_objects():
        if issubclass(type(held), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            with contextlib.suppress(OSError, ValueError):
                held.flush()


def main() -> None:
    """`install`, or the path of the socket to serve at (which `warm.py` passes)."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fruitlib.kernels.zygote install")
    if sys.argv[1] == "install":
        print(f"installed: {install()}")
    elif pid := os.fork():  # a process that nobody has started is not ended with others that somebody has
        os.write(0, str(pid).encode())
    elif request := serve(sys.argv[1]):
        become(request)
    else:
        os._exit(0)


if __name__ == "__main__":
    main()
