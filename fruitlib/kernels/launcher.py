"""`python -ISP launcher.py MODULE ARGUMENTS…`: what `python -m MODULE ARGUMENTS…` does, without waiting for imports.

The zygote, a process that has imported torch, pandas, matplotlib and fruitlib already (one per environment), forks. Its
child becomes MODULE, with the environment, working directory and standard files of this process. This process stays as
the child's stand-in: it passes signals on to the child, ends with the child's exit code, and if it is killed, the child
is killed too.

If there is no zygote, or the system has no fork, this process becomes `python -m MODULE …` itself and reports that on
its standard error. `FRUITLIB_KERNELS=cold` asks for that. It imports little, and from the standard library alone: this
file is run by path, before anything is imported.
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time

COLD = "fruitlib: a cold start: "  # the beginning of the line on standard error
# Variables that a program, or a library while it is imported, reads: another value needs another zygote. So does each
# batch job, because its end takes all its processes.
READ_AT_IMPORT = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "MPL", "NPY_")
READ_AT_IMPORT += ("MATPLOTLIBRC", "NUMPY_", "PANDAS_", "SCIPY_", "SKLEARN_", "JOBLIB_", "LOKY_", "TQDM_")
READ_AT_IMPORT += ("MALLOC_", "LANG", "LC_", "HOME", "XDG_CONFIG_HOME", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
SET_LATER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MPLBACKEND", "TORCHINDUCTOR_CACHE_DIR")
# What fruitlib and sklearn set when they are imported: a process that has imported them is served by the same zygote.
SET_BY_IMPORT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
SET_BY_IMPORT |= {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}
IMPORT_TIMEOUT = 180.0  # seconds a zygote may take to import everything; on a busy machine of two cores it took 50
FORK_TIMEOUT = 60.0  # seconds a zygote may take to fork a child; a longer wait means that it hangs
JOB = "FRUITLIB_JOB"  # a folder where the processes of one run write down that they are, for `sweep.watch`
FORWARDED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT")


class Unavailable(Exception):
    """No child can be forked; the message is why."""


class Killed(Unavailable):
    """The zygote was killed before it came up."""


def address(environment: dict[str, str], executable: str) -> str:
    """The socket of this environment's zygote, in a folder that belongs to this user alone.

    Raises:
        Unavailable: no such sockets on this system, or the folder belongs to another user.
    """
    if not hasattr(os, "fork") or not hasattr(socket, "AF_UNIX"):
        raise Unavailable("this system has no fork")
    if environment.get("FRUITLIB_KERNELS") == "cold":
        raise Unavailable("$FRUITLIB_KERNELS is cold")
    runtime_dir = environment.get("XDG_RUNTIME_DIR", "")
    folder = f"{runtime_dir}/fruitlib" if os.path.isdir(runtime_dir) else f"/tmp/fruitlib-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise Unavailable(f"{folder} is open to others than this user: remove it")
    key = json.dumps([executable, os.path.realpath(__file__), sys.version, os.nice(0), _read_at_import(environment)])
    return f"{folder}/{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.sock"


def _read_at_import(environment: dict[str, str]) -> list[tuple[str, str]]:
    """The variables whose values decide which zygote serves a process."""
    seen = {**SET_BY_IMPORT, **environment}
    folders = seen.get("LD_LIBRARY_PATH", "").split(":")  # cv2 puts a folder of its own before the others
    seen["LD_LIBRARY_PATH"] = ":".join(folder for folder in folders if folder and "/cv2/" not in folder)
    return sorted(item for item in seen.items() if item[0].startswith(READ_AT_IMPORT) and item[0] not in SET_LATER)


def connect(path: str, environment: dict[str, str], executable: str) -> socket.socket:
    """A connection to the zygote, which is started if there is none; several processes that ask at once start one."""
    if connection := _connected(path):
        return connection
    asked = time.time()
    with locked(f"{path[:-5]}.lock", IMPORT_TIMEOUT) as lock:
        if connection := _connected(path):
            return connection
        # A process that asked before us has tried in vain; eight need not try in turn. (A new file holds nothing.)
        lock.seek(0)
        if (why := lock.read()) and os.fstat(lock.fileno()).st_mtime > asked:
            raise Unavailable(why)
        try:
            with contextlib.suppress(Killed):  # the next one may come up
                return _started(path, environment, executable, lock.fileno())
            return _started(path, environment, executable, lock.fileno())
        except Unavailable as why:
            lock.truncate(0)
            lock.write(str(why))
            raise


@contextlib.contextmanager
def locked(path: str, seconds: float):
    """Hold the lock of a zygote's starter, and yield its file.

    The zygote holds it, too, until it listens: a killed starter lets in no other.

    Raises:
        Unavailable: another process holds it for so many seconds.
    """
    import fcntl

    deadline = time.monotonic() + seconds
    while True:
        with open(path, "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    hint = "a zygote that was stopped while it started, say"
                    raise Unavailable(f"another process has held {path} for {seconds:.0f} seconds ({hint})") from None
            else:  # `zygote.remove_left_over` may have removed it meanwhile, and then others lock a new one
                if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(lock.fileno())):
                    yield lock
                    return
        time.sleep(0.02)


def is_listening(path: str) -> bool:
    """Whether a zygote listens at this socket, or may do so: one that was stopped does not answer."""
    try:
        connection = _connected(path, timeout=0)
    except OSError:
        return True
    if connection:
        connection.close()
    return connection is not None


def _connected(path: str, timeout: float = FORK_TIMEOUT) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)  # of one that was stopped, the queue may be full
    try:
        connection.connect(path)
        return connection
    except (FileNotFoundError, ConnectionError):
        connection.close()
        return None


def _started(path: str, environment: dict[str, str], executable: str, lock: int) -> socket.socket:
    """Start a zygote and wait until it listens; its output goes to a file beside the socket.

    It inherits `lock`, a file descriptor, and closes it when it listens. It ends if this process does before that.
    """
    import subprocess

    log = f"{path[:-5]}.log"
    its_environment = {name: value for name, value in environment.items() if name not in (*SET_LATER, JOB)}
    its_environment["OPENBLAS_NUM_THREADS"] = "1"  # else it has threads as soon as it is imported, and a fork has not
    its_environment["JPY_PARENT_PID"] = "1"  # ipykernel reads it when imported: "do not watch your parent", the zygote
    its_environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the debugger writes a warning into every log
    ours, its_end = socket.socketpair()  # carries the zygote's pid, and closes when it ends: it is not our child
    with open(log, "w") as output, its_end, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [executable, "-P", "-m", "fruitlib.kernels.zygote", str(lock), path], pass_fds=[lock],
            env=its_environment, cwd="/", stdin=its_end, stdout=output, stderr=output, start_new_session=True,
            timeout=FORK_TIMEOUT,
        )  # fmt: skip
    deadline = time.monotonic() + IMPORT_TIMEOUT
    with ours:
        ours.settimeout(IMPORT_TIMEOUT)
        pid = ours.recv(16)
        while pid and not select.select([ours], [], [], 0.02)[0] and time.monotonic() < deadline:
            if connection := _connected(path):
                return connection
    with contextlib.suppress(ValueError, ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)
    with open(log, errors="replace") as output:
        lines = output.read().strip().splitlines()
    if not lines and time.monotonic() < deadline:
        raise Killed("the zygote was killed before it came up")
    raise Unavailable(f"the zygote did not come up: {lines[-1] if lines else 'too slow'} ({log})")


def ask_zygote(arguments: list[str], executable: str = sys.executable) -> tuple[socket.socket, int]:
    """Have a child forked that becomes `python -m ARGUMENTS…`; returns its connection and its pid.

    Raises:
        Unavailable: no child could be forked.
    """
    environment = dict(os.environ)
    request = json.dumps({"arguments": arguments, "environment": environment, **_surroundings()}).encode() + b"\n"
    path = address(environment, executable)
    for _ in range(3):  # a zygote that is out of date, or was idle for long, ends just now
        connection, pid = connect(path, environment, executable), 0
        connection.settimeout(FORK_TIMEOUT)
        try:
            socket.send_fds(connection, [request[:1]], [0, 1, 2])
            connection.sendall(request[1:])
            signal.pthread_sigmask(signal.SIG_BLOCK, _forwarded())  # until `stand_in` can pass them on
            if pid := receive(connection).get("pid"):
                connection.settimeout(None)
                return connection, pid
        except TimeoutError:
            _end_hung(connection)
        except ConnectionError:
            pass
        finally:
            if not pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _forwarded())
        connection.close()
    raise Unavailable("the zygote ended three times before it forked")


def _end_hung(connection: socket.socket) -> None:
    """End a zygote that does not answer, because it was stopped, say: the next one takes its place.

    Its children go on: they and their stand-ins do without it.
    """
    try:
        os.kill(peer(connection), signal.SIGKILL)
    except ProcessLookupError:
        pass
    except OSError:
        raise Unavailable(f"the zygote did not answer within {FORK_TIMEOUT:.0f} seconds") from None


def peer(connection: socket.socket) -> int:
    """The pid of the process at the other end.

    Raises:
        OSError: this system does not tell.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        raise OSError("not known on this system")
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def receive(connection: socket.socket) -> dict:
    """The next message of the zygote or its child, a line of JSON; empty at the end of the connection."""
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := connection.recv(1)):
            return {}
        line += piece
    return json.loads(line)


def _surroundings() -> dict:
    """What a process inherits besides files and environment: working directory, umask, cores, limits."""
    import resource

    limits = [(n, *resource.getrlimit(n)) for name, n in sorted(vars(resource).items()) if name.startswith("RLIMIT_")]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    os.umask(umask := os.umask(0o077))
    return {"cwd": os.getcwd(), "umask": umask, "cores": cores, "limits": limits}


def stand_in(connection: socket.socket, pid: int, parent: int, is_kernel: bool = False) -> int:
    """Live as long as the child does; returns its exit code, below zero the signal that ended it.

    When our own parent has ended, nobody needs the child any more: it is killed. Signals that were ignored when this
    process began, by `nohup` say, stay ignored, but a kernel is always interrupted, as IPython's own kernel is.
    """
    for number in _forwarded():
        if signal.getsignal(number) != signal.SIG_IGN or (is_kernel and number == signal.SIGINT):
            signal.signal(number, lambda number, _: _forward(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _forwarded())
    code = 1  # if it is not known: the zygote was killed, and then the child
    while True:
        if select.select([connection], [], [], 0.5)[0]:
            message = receive(connection)
            if message.keys() != {"leaving"}:
                return message.get("exit", code)
            code = message["leaving"]
        elif os.getppid() != parent:
            _forward(pid, signal.SIGKILL)
            return -signal.SIGKILL


def _forwarded() -> list[int]:
    return [getattr(signal, name) for name in FORWARDED_SIGNALS]


def _forward(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)  # as Jupyter does it: to the kernel and to what it has started


def register() -> None:
    """Write down that this process belongs to the run whose folder the environment names, if it names one."""
    if folder := os.environ.get(JOB):
        with contextlib.suppress(OSError), open(f"{folder}/{os.getpid()}.pid", "w"):
            pass


def leave(code: int) -> None:
    """End at once, with this exit code or, below zero, by that signal."""
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def main() -> None:
    """Run MODULE, warm or cold; this process ends as MODULE ends."""
    parent = os.getppid()
    register()
    try:
        connection, pid = ask_zygote(sys.argv[1:])
    except (Unavailable, OSError) as why:
        print(f"{COLD}{why}", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, "-P", "-m", *sys.argv[1:]])
    leave(stand_in(connection, pid, parent, is_kernel=sys.argv[1] == "ipykernel_launcher"))


if __name__ == "__main__":
    main()
