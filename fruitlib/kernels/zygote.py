"""The zygote: a process that has imported everything, and forks.

`launcher` starts it and asks it for children; `child` says what becomes of them. The zygote imports, and does nothing
else: no tensor is computed and no CUDA call made before the fork (after one matrix product in the parent, training in
a child hangs), and it has one thread. It ends when it was idle for ten minutes (`FRUITLIB_KERNELS_IDLE`, seconds), or
when a file that it has imported changed: an edited module is never served stale.

There is one for each user and environment. It holds the lock of whoever started it until it listens, so that nobody
starts a second one meanwhile; it ends if its starter does before that; and it accepts no more requests when another
socket, or none, is at its path.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import sys
import sysconfig
import threading
import time
import weakref
from pathlib import Path

from fruitlib.core import machine
from fruitlib.kernels import launcher
from fruitlib.kernels.child import become, close_files, send, thread_pools

IDLE = 600.0  # seconds
LOOK = 5.0  # seconds between two looks at the path of its socket
# What notebooks and the processes that execute them import. Left out: onnxruntime, which starts a thread, and
# matplotlib's inline backend, which looks for its kernel when it is imported.
PRELOADED = """torch torchvision timm pandas matplotlib.pyplot seaborn scipy.stats sklearn
sklearn.linear_model cv2 onnx onnxscript torch.onnx._internal.exporter._core pytorch_grad_cam ipykernel.kernelapp
ipykernel.ipkernel ipykernel.zmqshell ipykernel.debugger IPython.core.completerlib IPython.core.debugger
IPython.extensions.storemagic tornado.platform.asyncio nbclient papermill sklearn.metrics
fruitlib.training.lr_finder fruitlib.evaluation.leakage fruitlib.evaluation.compare
fruitlib.reporting.metrics_figures fruitlib.reporting.compare_figures fruitlib.reporting.effects_figures
fruitlib.sweep.worker fruitlib.reporting.site"""
FRESH = ("tqdm.auto", "tqdm.autonotebook")  # they look for a notebook when they are imported


def serve(path: str, lock: int) -> dict | None:
    """Fork a child for each request at the socket `path`; returns, in each child, its request.

    In the zygote itself it returns None, when it is out of date or was idle for long. `lock` is a file descriptor,
    closed as soon as the socket listens.
    """
    signal.alarm(int(launcher.IMPORT_TIMEOUT))  # which ends it, should an import hang with nobody left to wait for it
    started = time.time()
    if hasattr(os, "sched_setaffinity"):  # to all cores, not only to those of the process that asked first
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
    preload()
    if problem := _why_not_to_fork():
        sys.exit(problem)
    thread_pools()
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):  # torch's, on which each child spent 0.1 s
        finalizer.atexit = False
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else each child writes it again
    gc.collect()
    gc.freeze()  # a child's collector would write into every object, and so copy every page
    leave_without_starter()
    remove_left_over(path)
    zygote = _Zygote(path, started)
    signal.alarm(0)
    os.close(lock)
    return zygote.run()


def leave_without_starter() -> None:
    """End this process if the one that started it has ended, which holds the other end of the standard input."""
    if select.select([0], [], [], 0)[0]:
        os._exit(0)


def remove_left_over(path: str) -> None:
    """Remove what zygotes that are gone have left beside the socket `path`: their locks, logs and sockets."""
    for lock in Path(path).parent.glob("*.lock"):
        with contextlib.suppress(OSError, launcher.Unavailable), launcher.locked(str(lock), 0):
            if not launcher.is_listening(str(lock.with_suffix(".sock"))):
                for kind in (".sock", ".log", ".lock"):
                    lock.with_suffix(kind).unlink(missing_ok=True)


def preload() -> None:
    """Import what notebooks import, if it is installed, and parse the code that the stages' identities depend on."""
    with machine.quick_imports():
        for name in PRELOADED.split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
            leave_without_starter()
        if source_code := sys.modules.get("fruitlib.core.source_code"):
            source_code.parse_all()
    for name in FRESH:
        sys.modules.pop(name, None)


def _why_not_to_fork() -> str:
    """Why this process must not fork; empty if it may."""
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
    """The folders that packages are installed in, and the files of all modules outside them."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    known = tuple(f"{folder}{os.sep}" for folder in (*installed, sysconfig.get_path("stdlib")))
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return [*installed, *(file for file in files if os.path.isabs(file) and not file.startswith(known))]


def _watched(started: float) -> dict[str, tuple[float, int]]:
    """The stamp of each imported file; a stamp that never fits for files written since the imports began."""
    stamps = {path: _stamp(path) for path in _imported_files()}
    return {path: (0.0, -1) if started < stamp[0] < time.time() else stamp for path, stamp in stamps.items()}


def _stamp(path: str) -> tuple[float, int]:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_mtime, status.st_size
    return 0.0, 0


def _identity(path: str) -> tuple[int, int] | None:
    """What tells a socket from another one at the same path; None where there is none."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


class _Zygote:
    """The loop that forks: one socket that listens, one connection to each launcher (then a stand-in)."""

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
        self.path, self.bound = path, _identity(path)
        self.listener.listen(128)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.woken, selectors.EVENT_READ, self.report_exits)

    def run(self) -> dict | None:
        """Serve until it is out of date or idle, and has no children: None. In a child, returns its request."""
        last = time.monotonic()
        while self.children or self.listener.fileno() >= 0:
            ready = self.selector.select(min(LOOK, self.idle))
            if ready or self.children:
                last = time.monotonic()
            if time.monotonic() - last >= self.idle or _identity(self.path) != self.bound:
                self.stop_listening()
            for key, _ in ready:
                if key.fileobj.fileno() >= 0 and (request := key.data(key.fileobj)):
                    return request
        return None

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection. Its request is read when it arrives, so that other launchers need not wait for it."""
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            self.asking[connection] = bytearray(), []
            self.selector.register(connection, selectors.EVENT_READ, self.receive)

    def receive(self, connection: socket.socket) -> dict | None:
        """Read a part of a request, and fork when it is whole. Returns the request in the child, None in the zygote."""
        received, files = self.asking[connection]
        part, sent = b"", []
        with contextlib.suppress(OSError):
            part, sent, _, _ = socket.recv_fds(connection, 65536, 3)
        received += part
        files += sent
        if part and not part.endswith(b"\n"):
            return None
        self.selector.unregister(connection)
        del self.asking[connection]
        pid = self.fork() if part else None  # else a launcher that only looked for a zygote, or was killed
        if pid == 0:
            self.close_inherited()
            return {**json.loads(received), "files": files, "connection": connection}
        if pid:
            self.children[pid] = connection
            self.selector.register(connection, selectors.EVENT_READ, self.kill_child)
        else:
            connection.close()
        close_files(files)
        return None

    def fork(self) -> int | None:
        """The new child's pid; 0 in the child; None if nothing was forked, because this zygote is out of date, say."""
        if changed := self.changed_file():
            print(f"{changed} changed: this zygote leaves", flush=True)
            self.stop_listening()
            return None
        try:
            return os.fork()
        except OSError as problem:
            print(f"no child: {problem}", flush=True)
            return None

    def close_inherited(self) -> None:
        """In a child: close the connections of the zygote and of other children."""
        signal.set_wakeup_fd(-1)
        self.selector.close()
        for other in (self.listener, self.woken, self.waker, *self.children.values(), *self.asking):
            other.close()
        for _, files in self.asking.values():
            close_files(files)

    def changed_file(self) -> str:
        """An imported file that has changed since its import; empty if none has.

        Installed packages are replaced rather than edited, and that changes the folder they are in.
        """
        return next((path for path, was in self.watched.items() if _stamp(path) != was), "")

    def kill_child(self, connection: socket.socket) -> None:
        """Kill the child whose stand-in has ended."""
        self.selector.unregister(connection)
        pid = next(pid for pid, held in self.children.items() if held is connection)
        for kill in (os.killpg, os.kill):  # the second for a child that has no process group of its own yet
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)

    def report_exits(self, woken: socket.socket) -> None:
        """Send the exit codes of children that have ended to their stand-ins."""
        with contextlib.suppress(BlockingIOError):
            woken.recv(4096)
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if connection := self.children.pop(pid, None):
                with contextlib.suppress(KeyError):  # its stand-in has ended
                    self.selector.unregister(connection)
                send(connection, {"exit": os.waitstatus_to_exitcode(status)})
                _continue_stand_in(connection)
                connection.close()

    def stop_listening(self) -> None:
        """Accept no more requests, and remove the socket: the next launcher starts another zygote."""
        if self.listener.fileno() >= 0:
            self.selector.unregister(self.listener)
            if _identity(self.path) == self.bound:  # else it is another's by now
                os.unlink(self.path)
            self.listener.close()


def _continue_stand_in(connection: socket.socket) -> None:
    """Continue the stand-in of a child that has ended: one that was stopped (SIGSTOP) would never hear of it."""
    with contextlib.suppress(OSError):
        os.kill(launcher.peer(connection), signal.SIGCONT)


def main() -> None:
    """Serve at the socket whose path `launcher` passes."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m fruitlib.kernels.kernelspec")
    if pid := os.fork():  # the new process has no parent that could end it together with others
        os.write(0, str(pid).encode())
    elif request := serve(sys.argv[2], int(sys.argv[1])):
        become(request)
    else:
        os._exit(0)


if __name__ == "__main__":
    main()
