"""`python -ISP warm.py MODULE ARGUMENTS…`: what `python -m MODULE ARGUMENTS…` does, without waiting for imports.

A process that has imported torch, pandas, matplotlib and fruitlib already (`kernels`, the zygote; one per environment)
forks, and its child becomes MODULE, with the environment, working directory and open files of this one. This one stays
as the child's stand-in: signals are passed on to it, its exit code becomes ours, and where this one ends, so does it.

Where that cannot be had (no fork on this system, no zygote), this process becomes `python -m MODULE …` itself and says
so on its standard error. `FRUITLIB_KERNELS=cold` asks for that. Standard library alone, and little of it: this file
is run by path, before anything is imported.
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import sys
import time

COLD = "fruitlib: a cold start: "  # how the line on standard error begins
# What a program, or a library while it is imported, reads of its environment: another value, another zygote. So does a
# batch job of its own, whose end takes all its processes.
READ_AT_IMPORT = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "MPL", "NPY_")
READ_AT_IMPORT += ("MALLOC_", "LANG", "LC_", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
SET_LATER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MPLBACKEND")  # the child sees to these
PATIENCE = 180.0  # seconds a zygote may take to import everything; on a busy machine of two cores it took 25
PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT")


class Unavailable(Exception):
    """No child can be forked; the message is why."""


def address(environment: dict[str, str], executable: str) -> str:
    """The socket of this environment's zygote, in a folder that belongs to this user alone.

    Raises:
        Unavailable: no such sockets on this system, or somebody else made the folder.
    """
    if not hasattr(os, "fork") or not hasattr(socket, "AF_UNIX"):
        raise Unavailable("this system has no fork")
    if environment.get("FRUITLIB_KERNELS") == "cold":
        raise Unavailable("$FRUITLIB_KERNELS is cold")
    runtime_dir = environment.get("XDG_RUNTIME_DIR", "")
    folder = f"{runtime_dir}/fruitlib" if os.path.isdir(runtime_dir) else f"/tmp/fruitlib-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Unavailable(f"{folder} is open to others than this user: remove it")
    read = sorted(
        item for item in environment.items() if item[0].startswith(READ_AT_IMPORT) and item[0] not in SET_LATER
    )
    key = json.dumps([executable, os.path.dirname(os.path.abspath(__file__)), sys.version, read])
    return f"{folder}/{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.sock"


def connect(path: str, environment: dict[str, str], executable: str) -> socket.socket:
    """A connection to the zygote, which is started where there is none; several who ask at once start one."""
    if connection := _connected(path):
        return connection
    import fcntl

    with open(f"{path[:-5]}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _connected(path) or _started(path, environment, executable)


def _connected(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        return connection
    except (FileNotFoundError, ConnectionError):
        connection.close()
        return None


def _started(path: str, environment: dict[str, str], executable: str) -> socket.socket:
    """Start a zygote and wait until it listens; its own words go to a file beside the socket."""
    import subprocess

    log = f"{path[:-5]}.log"
    theirs = {name: value for name, value in environment.items() if name not in SET_LATER}
    theirs["OPENBLAS_NUM_THREADS"] = "1"  # else it has threads as soon as it is imported, and a fork has not
    with open(log, "w") as words:
        zygote = subprocess.Popen(
            [executable, "-P", "-m", "fruitlib.kernels", path],
            env=theirs, cwd="/", stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while zygote.poll() is None and time.monotonic() < deadline:
        if connection := _connected(path):
            return connection
        time.sleep(0.02)
    zygote.kill()
    with open(log, errors="replace") as words:
        said = words.read().strip().splitlines()
    raise Unavailable(f"the zygote did not come up: {said[-1] if said else 'it took too long'} ({log})")


def ask(arguments: list[str], executable: str = sys.executable) -> tuple[socket.socket, int]:
    """Have a child forked that becomes `python -m ARGUMENTS…`; returns the connection that tells its end, and its pid.

    Raises:
        Unavailable: it cannot be had.
    """
    environment = dict(os.environ)
    wanted = {"arguments": arguments, "environment": environment, "cwd": os.getcwd(), "umask": _umask()}
    request = json.dumps(wanted).encode()
    path = address(environment, executable)
    for _ in range(3):  # one that is out of date leaves; so may one that was idle, just now
        connection = connect(path, environment, executable)
        with contextlib.suppress(ConnectionError):
            socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
            connection.sendall(request)
            if pid := told(connection).get("pid"):
                return connection, pid
        connection.close()
    raise Unavailable("the zygote went away, three times")


def told(connection: socket.socket) -> dict:
    """The zygote's next word, a line of JSON; empty at the end of the connection."""
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := connection.recv(1)):
            return {}
        line += piece
    return json.loads(line)


def _umask() -> int:
    os.umask(found := os.umask(0o077))
    return found


def stand_in(connection: socket.socket, pid: int, parent: int) -> int:
    """Live as long as the child does; returns its exit code, below zero the signal that ended it.

    When our own parent is gone, so is whoever wanted the child: it is ended.
    """
    for name in PASSED_ON:
        signal.signal(getattr(signal, name), lambda number, _: _pass_on(pid, number))
    while not select.select([connection], [], [], 0.5)[0]:
        if os.getppid() != parent:
            _pass_on(pid, signal.SIGKILL)
    return told(connection).get("exit", 1)  # no word: the zygote was killed before the child ended


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)  # as Jupyter does it: to the kernel and to what it has started


def main() -> None:
    """Have MODULE run, warm or cold; this process ends as it ends."""
    parent = os.getppid()
    try:
        connection, pid = ask(sys.argv[1:])
    except (Unavailable, OSError) as why:
        print(f"{COLD}{why}", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, "-P", "-m", *sys.argv[1:]])
    code = stand_in(connection, pid, parent)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
