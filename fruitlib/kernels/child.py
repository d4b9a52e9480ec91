"""What a forked child does: it becomes `python -m MODULE`, as if it had been started cold.

What would differ from a cold start is put right here: standard files, environment, limits, threads, random states,
matplotlib's backend, signals.
"""

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
import types
import warnings

from fruitlib.core import machine
from fruitlib.kernels import launcher

INLINE = "module://matplotlib_inline.backend_inline"


def become(request: dict) -> None:
    """Turn this child into the process that was asked for, and end with it."""
    import resource

    connection = request["connection"]
    os.setsid()
    for name in (*launcher.FORWARDED_SIGNALS, "SIGCHLD"):  # which the zygote's starter may have ignored
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for target, file in enumerate(request["files"]):
        os.dup2(file, target)
    close_files(request["files"])
    _reopen_streams()
    # Sent by the child itself: a stand-in that does not get it may ask another zygote.
    send(connection, {"pid": os.getpid()})
    threading.Thread(target=_end_with_stand_in, args=(connection,), daemon=True).start()
    os.register_at_fork(after_in_child=connection.close)  # it ends with this process, not with one that outlives it
    os.environ.clear()
    os.environ.update({**launcher.SET_BY_IMPORT, **request["environment"]})
    launcher.register()
    os.environ["JPY_PARENT_PID"] = "1"  # its parent is the zygote; the stand-in watches its own
    for number, *limits in request["limits"]:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(number, limits)  # a limit above the zygote's is refused
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
    """Open Python's own streams again, for the files that are behind 0, 1 and 2 now."""
    for name, file, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        was = getattr(sys, f"__{name}__")
        buffering = -1 if mode == "r" else 1
        stream = open(file, mode, buffering, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _end_with_stand_in(connection: socket.socket) -> None:
    """End this process, and all that it has started, when its stand-in has ended. A living zygote does so too."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.killpg(os.getpid(), signal.SIGKILL)


def _as_if_cold(backend: str) -> None:
    """Repeat what imports in the zygote have read from its environment or drawn at random.

    `backend` is matplotlib's, used if the environment names none.
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
    """Run on these cores, with as many threads as libraries imported there, in this environment, would have."""
    before = machine.usable_cores()
    if allowed:
        with contextlib.suppress(OSError):  # the zygote was started where other cores are
            os.sched_setaffinity(0, allowed)
    omp, mkl, blas = (machine.requested_threads(f"{name}_NUM_THREADS") for name in ("OMP", "MKL", "OPENBLAS"))
    pools, torch = thread_pools(), sys.modules.get("torch")
    pools.limit(limits=min(blas or omp or machine.usable_cores(), machine.usable_cores()), user_api="blas")
    if omp or mkl or machine.usable_cores() != before:
        most = torch.get_num_threads() if torch else 0
        pools.limit(limits=omp or machine.usable_cores(), user_api="openmp")
        if torch:
            torch.set_num_threads(min(mkl or omp or most, most, machine.usable_cores()))


@functools.cache  # called in the zygote first: it takes a twentieth of a second
def thread_pools():
    """The thread pools of the libraries that are loaded."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _run(module: str, connection: socket.socket) -> None:
    """`python -m module`, then the end of the process without taking down thousands of modules one by one."""
    code = 1
    try:
        code = _exit_code(module)
        for step in (threading._shutdown, atexit._run_exitfuncs, _release_main):  # as the interpreter does when it ends
            with contextlib.suppress(BaseException):
                step()
        send(connection, {"leaving": code})  # in case the zygote has ended and cannot
    finally:
        launcher.leave(code)


def _exit_code(module: str) -> int:
    """Run it; returns its exit code."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # the zygote has imported it already
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


def _release_main() -> None:
    """Release what `__main__` holds, so that it ends properly, and flush the files that are still open."""
    vars(sys.modules["__main__"]).clear()
    gc.collect()
    for held in gc.get_objects():
        if issubclass(type(held), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            with contextlib.suppress(OSError, ValueError):
                held.flush()


def send(connection: socket.socket, message: dict) -> None:
    """Send one line of JSON to a stand-in, unless it has ended."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def close_files(files: list[int]) -> None:
    """Close file descriptors."""
    for file in files:
        os.close(file)
