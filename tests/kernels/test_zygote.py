"""Warm processes: what is forked behaves as what is started, and whoever is killed, nobody is left behind."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import KernelManager
from support import wait_until

from fruitlib.kernels import launcher, zygote
from fruitlib.kernels.kernelspec import NAME

if not hasattr(os, "fork"):
    pytest.skip("this system has no fork: processes start cold", allow_module_level=True)

WAITS = "print(os.getpid(), os.getppid(), flush=True); sys.stdin.read()"  # until its standard input is closed
ADDRESS = "from fruitlib.kernels import launcher; print(launcher.address(dict(os.environ), sys.executable))"
SOON = 20.0  # seconds for what takes some milliseconds on a quiet machine


TRAINING = """
import numpy, torch
from threadpoolctl import threadpool_info
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 196, 3)
)
photos = torch.utils.data.TensorDataset(torch.randn(32, 3, 16, 16), torch.arange(32) % 3)
optimizer = torch.optim.AdamW(net.parameters())
losses = []
for batch, labels in torch.utils.data.DataLoader(photos, 8, shuffle=True):
    loss = torch.nn.functional.cross_entropy(net(batch), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item().hex())
weights = [weight.detach().numpy().tobytes().hex() for weight in net.parameters()]
pools = {os.path.basename(pool["filepath"]): pool["num_threads"] for pool in threadpool_info()}
print(json.dumps([losses, weights, torch.get_num_threads(), pools]), flush=True)
os._exit(0)  # torch takes a second to leave
"""


class Place:
    """A copy of the package with a zygote of its own, and processes of it, warm or cold."""

    def __init__(self, folder: Path, preloaded: str = "json", **environment: str):
        self.folder = folder
        (folder / "runtime").mkdir(parents=True)
        package = Path(launcher.__file__).parent.parent
        shutil.copytree(package, folder / "fruitlib", ignore=shutil.ignore_patterns("__pycache__", "assets"))
        if preloaded:  # little enough for a zygote to be there in a moment
            path = folder / "fruitlib" / "kernels" / "zygote.py"
            text, found = re.subn('PRELOADED = """.*?"""', f"PRELOADED = {preloaded!r}", path.read_text(), flags=re.S)
            assert found == 1
            path.write_text(text)
        (folder / "does.py").write_text("import json, os, random, signal, sys\nexec(sys.argv[1])\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FRUITLIB_KERNELS")}
        paths = {
            "XDG_RUNTIME_DIR": "runtime",
            "PYTHONPATH": "",
            "JUPYTER_PATH": "share/jupyter",
            "IPYTHONDIR": "ipython",
        }
        mine = {name: str(folder / path) for name, path in paths.items()}
        server = {"JPY_PARENT_PID": str(os.getpid())}  # as a Jupyter server tells its kernels
        self.environment = {**kept, **mine, **server, "OMP_NUM_THREADS": "1", **environment}
        self.launch = [sys.executable, "-ISP", str(folder / "fruitlib" / "kernels" / "launcher.py"), "does"]

    def start(self, code: str, cold: bool = False, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
        """Begin to execute `code` in a process of its own."""
        return subprocess.Popen(
            [*([sys.executable, "-P", "-m", "does"] if cold else self.launch), code],
            env={**self.environment, **environment}, cwd=cwd, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def change(self, module: str, old: str, new: str) -> None:
        """Put one text in place of another in a module of its `kernels` folder."""
        path = self.folder / "fruitlib" / "kernels" / module
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def zygotes(self) -> list[psutil.Process]:
        """Those that serve or will; their children have another parent."""
        found = []
        for process in psutil.process_iter(["cmdline", "ppid"]):
            words = process.info["cmdline"] or []
            if "fruitlib.kernels.zygote" in words and str(self.folder) in words[-1]:
                found.append(process)
        pids = {process.pid for process in found}
        return [process for process in found if process.info["ppid"] not in pids]

    def run(self, code: str, cold: bool = False, **settings) -> tuple[int, str, str]:
        """Execute `code`: exit code, standard output, standard error."""
        with self.start(code, cold, **settings) as process:
            return ended(process)

    @contextlib.contextmanager
    def waiting(self, code: str = WAITS):
        """The stand-in of a process that waits, and two pids that it says: its own, the zygote's."""
        with self.start(code) as process:
            try:
                yield process, *map(int, process.stdout.readline().split())
            finally:
                process.kill()

    def clear(self) -> None:
        """End its zygotes and all their children, which have the same command line."""
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.folder) in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    process.kill()


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def gone(*pids: int) -> bool:
    """Whether these processes end soon."""

    def runs(pid: int) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    deadline = time.monotonic() + SOON
    while (running := any(map(runs, pids))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running


def cold_words(err: str) -> list[str]:
    return [line.removeprefix(launcher.COLD) for line in err.splitlines() if line.startswith(launcher.COLD)]


@pytest.fixture(scope="module")
def short():
    """A folder whose name is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def coming_up(short):
    """A place whose zygote imports everything, and cold processes to compare with: they begin while other tests run."""
    place = Place(short / "full", preloaded="")
    code = f"sys.prefix = {str(place.folder)!r}; from fruitlib.kernels import kernelspec; print(*kernelspec.ready())"
    processes = [place.start(code, cold=True)]
    processes += [place.start(TRAINING, cold=True, OMP_NUM_THREADS=number) for number in ("1", "")]
    yield place, *processes
    for process in processes:
        process.kill()
        process.communicate()
    place.clear()


@pytest.fixture(scope="module")
def full(coming_up):
    """That place, its zygote there and its kernel installed; `os.environ` is that of its processes."""
    place, asking, *_ = coming_up
    assert ended(asking)[:2] == (0, f"{NAME} warm\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.environment.items():
            patch.setenv(name, value)
        yield place


@pytest.fixture(scope="module")
def cheap(short):
    place = Place(short / "cheap")
    yield place
    place.clear()


@pytest.fixture
def other_place(short, request):
    """`other_place(FRUITLIB_…="…")` is a place that a test may spoil."""
    places = []

    def make(**environment: str) -> Place:
        places.append(Place(Path(tempfile.mkdtemp(dir=short)) / "copy", **environment))
        return places[-1]

    yield make
    for place in places:
        place.clear()


# ---------------------------------------------------------------- as a cold process


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("print('out'); print('err', file=sys.stderr)", 0),
        ("sys.exit(3)", 3),
        ("sys.exit(-1)", 255),
        ("sys.exit('a text')", 1),
        ("raise KeyError('gone')", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import fruitlib_nowhere", 1),
    ],
)
def test_it_ends_as_a_cold_process_does(cheap, code, exit_code):
    (found, out, err), wanted = cheap.run(code), cheap.run(code, cold=True)
    assert (found, out) == wanted[:2] and found == exit_code
    assert err.splitlines()[-1:] == wanted[2].splitlines()[-1:]
    assert ("Traceback" in err) == code.startswith(("raise", "import"))


def test_what_python_does_at_its_end_is_done(cheap, tmp_path):
    """Exit functions, threads that are waited for, and files nobody has closed."""
    code = f"""
import atexit, tempfile, threading
atexit.register(print, "exit function")
threading.Thread(target=lambda: (threading.main_thread().join(0.2), print("thread"))).start()
left_open, temporary = open({str(tmp_path / "left open")!r}, "w"), tempfile.NamedTemporaryFile()
left_open.write("written")
print(temporary.name)
"""
    code, out, _ = cheap.run(code)
    temporary, *rest = out.splitlines()
    assert (code, rest) == (0, ["thread", "exit function"])
    assert (tmp_path / "left open").read_text() == "written"
    assert not Path(temporary).exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be bound to cores on this system")
def test_it_has_what_its_caller_has(cheap, tmp_path):
    code = """
import tempfile, time, resource
os.environ.pop("JPY_PARENT_PID", None)
print(json.dumps([dict(os.environ), os.getcwd(), os.umask(0), sys.argv, sys.path, str(sys.flags), time.tzname, __name__,
    tempfile.gettempdir(), resource.getrlimit(resource.RLIMIT_NOFILE), sorted(os.sched_getaffinity(0)),
    [stream.encoding for stream in (sys.stdin, sys.stdout, sys.stderr)], len(os.listdir("/proc/self/fd"))]))
"""
    command = [
        "bash",
        "-c",
        'umask 027; ulimit -S -n 200; exec taskset -c "$0" "$@"',
        str(min(os.sched_getaffinity(0))),
    ]
    settings = {"TZ": "Asia/Tokyo", "TMPDIR": str(tmp_path), "ODD": "ä\udcff"}

    def seen(cold: bool) -> list:
        how = [sys.executable, "-P", "-m", "does"] if cold else cheap.launch
        environment = {**cheap.environment, **settings}
        return json.loads(subprocess.check_output([*command, *how, code], env=environment, cwd=tmp_path))

    *found, files = seen(cold=False)
    *wanted, few = seen(cold=True)
    wanted[0] = {**launcher.SET_BY_IMPORT, **wanted[0]}
    assert found == wanted
    assert found[1:3] == [str(tmp_path), 0o027] and found[9][0] == 200
    with cheap.waiting(), cheap.waiting():  # whose files are none of its
        assert seen(cold=False)[-1] == files == few + 1  # one ties it to its stand-in


# ---------------------------------------------------------------- who ends with whom


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signals_reach_the_child_and_what_it_has_started(cheap, name):
    code = f"""
import subprocess
def end(*_): sys.exit(7)
signal.signal(signal.{name}, end)
other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(os.getpid(), other.pid, flush=True)
signal.pause()
"""
    with cheap.waiting(code) as (process, child, other):
        process.send_signal(getattr(signal, name))
        assert process.wait(SOON) == 7
        assert gone(child, other)


def test_a_signal_that_its_caller_ignores_does_not_reach_it(cheap):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with cheap.waiting() as (process, _, _):
            process.send_signal(signal.SIGHUP)
            process.stdin.close()
            assert process.wait(SOON) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_killed_child_ends_its_stand_in(cheap):
    with cheap.waiting() as (process, child, _):
        os.kill(child, signal.SIGKILL)
        assert process.wait(SOON) == -signal.SIGKILL


@pytest.mark.skipif(
    not hasattr(socket, "SO_PEERCRED"), reason="this system does not tell who is at a socket's other end"
)
def test_a_stopped_stand_in_ends_with_its_child(cheap):
    with cheap.waiting() as (process, child, _):
        process.send_signal(signal.SIGSTOP)
        os.kill(child, signal.SIGKILL)
        assert process.wait(SOON) == -signal.SIGKILL


def test_a_killed_stand_in_ends_its_child(cheap):
    """Although none of its own threads can run."""
    code = "import ctypes; print(os.getpid(), os.getppid(), flush=True); ctypes.PyDLL(None).pause()"
    with cheap.waiting(code) as (process, child, _):
        process.kill()
        assert gone(child)


def test_a_killed_stand_in_ends_its_child_without_a_zygote(cheap):
    with cheap.waiting() as (process, child, zygote):
        os.kill(zygote, signal.SIGKILL)
        process.kill()
        assert gone(child)


@pytest.mark.parametrize("zygote_lives", [True, False])
def test_a_killed_parent_ends_both(cheap, zygote_lives):
    """Although the child's standard input, a pipe that this test holds, stays open."""
    read, write = os.pipe()
    code = (
        f"import subprocess, sys; print(subprocess.Popen({[*cheap.launch, WAITS]}).pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=cheap.environment, stdin=read, stdout=subprocess.PIPE, text=True) as parent:
        stand_in, child, zygote = map(int, (parent.stdout.readline() + parent.stdout.readline()).split())
        if not zygote_lives:
            os.kill(zygote, signal.SIGKILL)
        parent.kill()
        assert gone(stand_in, child)
    os.close(read)
    os.close(write)


LEAVES_A_FORK = "os.fork() == 0 and (os.closerange(0, 3), signal.pause())"


@pytest.mark.parametrize(
    ("code", "exit_code"), [("sys.exit(5)", 5), (f"{LEAVES_A_FORK}; sys.exit(6)", 6), ("os.kill(os.getpid(), 9)", 1)]
)
def test_a_killed_zygote_leaves_its_children_and_their_exit_codes(cheap, code, exit_code):
    with cheap.waiting(f"{WAITS}; print('works', flush=True); {code}") as (process, child, zygote):
        os.kill(zygote, signal.SIGKILL)
        assert gone(zygote)
        with cheap.waiting() as (_, _, another):  # for all that the first one's socket is still there
            assert another != zygote
        assert ended(process)[:2] == (exit_code, "works\n")
        assert gone(child)


# ---------------------------------------------------------------- the zygote


def test_those_who_ask_at_once_start_one(other_place):
    place = other_place()
    zygotes = {ended(process) for process in [place.start("print(os.getppid())") for _ in range(6)]}
    ((code, zygote, err),) = zygotes
    assert (code, err) == (0, "") and int(zygote) != os.getpid()


def test_nobody_waits_for_one_who_says_nothing_or_half_or_nonsense(cheap):
    address = cheap.run(ADDRESS)[1].strip()
    with cheap.waiting() as (_, _, zygote), contextlib.ExitStack() as stack:
        for output in (b"", b'{"argu', b"nonsense\n"):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(address)
            if output:
                socket.send_fds(client, [output], [0])
        assert cheap.run("print(os.getppid())") == (0, f"{zygote}\n", "")


def test_it_does_not_belong_to_who_started_it(other_place):
    """He may be ended with all that descends from him; others have children of it."""
    with other_place().waiting() as (process, child, zygote):
        assert psutil.Process(child).ppid() == zygote
        assert not {process.pid, os.getpid()} & {parent.pid for parent in psutil.Process(zygote).parents()}


@pytest.mark.parametrize("older", [False, True])
def test_a_changed_module_makes_another_zygote(other_place, older):
    place = other_place()
    module = place.folder / "fruitlib" / "__init__.py"
    with place.waiting(f"{WAITS}; sys.exit(4)") as (process, _, old):
        module.write_text(module.read_text() + "NEW = 1\n")
        if older:  # as one from an archive is
            os.utime(module, (1e9, 1e9))
        code, out, err = place.run("import fruitlib; print(os.getppid(), fruitlib.NEW)")
        assert (code, err) == (0, "")
        assert out.split()[0] != str(old) and out.split()[1] == "1"
        process.stdin.close()
        assert process.wait(SOON) == 4
    assert gone(old)


def test_it_leaves_when_it_is_idle(other_place):
    place = other_place(FRUITLIB_KERNELS_IDLE="1")
    with place.waiting() as (process, _, zygote):
        with pytest.raises(subprocess.TimeoutExpired):  # it is not, as long as it has a child
            process.wait(1.5)
        process.stdin.close()
        assert process.wait(SOON) == 0
    assert gone(zygote)
    assert place.run("print('again')") == (0, "again\n", "")


SLOW = "import time; open(__file__ + '.begun', 'w'); time.sleep(1.5)"  # what takes a while to import


def slow_place(other_place) -> Place:
    """A place whose zygote imports for a while."""
    place = other_place()
    (place.folder / "slow.py").write_text(SLOW)
    place.change("zygote.py", "PRELOADED = 'json'", "PRELOADED = 'slow json'")
    place.environment["PYTHONPATH"] = str(place.folder)
    return place


def test_a_new_lock_file_is_no_failure_of_another(other_place):
    """However long it takes to create it after asking."""
    place = other_place()
    place.change("launcher.py", "    asked = time.time()", "    asked = time.time() - 60")
    with place.waiting() as (process, _, zygote):
        assert zygote != os.getpid()  # the parent of a cold process
        process.stdin.close()
        assert process.wait(SOON) == 0


def test_one_whose_starter_was_killed_ends_and_nobody_starts_a_second_one_meanwhile(other_place):
    place = slow_place(other_place)
    first = place.start("print(os.getppid())")
    wait_until((place.folder / "slow.py.begun").exists, SOON)
    first.kill()
    first.communicate()
    second, most = place.start("print(os.getppid())"), 0
    while second.poll() is None:
        # Looked at twice: while one leaves its parent, two are seen for a moment.
        most = max(most, min(len(place.zygotes()), len(place.zygotes())))
        time.sleep(0.02)
    code, zygote, err = ended(second)
    assert (code, err, most) == (0, "", 1)
    assert [process.pid for process in place.zygotes()] == [int(zygote)]


def test_one_that_nobody_waits_for_any_more_ends_before_it_listens(other_place):
    place = slow_place(other_place)
    process = place.start("print('never')")
    wait_until((place.folder / "slow.py.begun").exists, SOON)
    (zygote,) = place.zygotes()
    process.kill()
    process.communicate()
    assert gone(zygote.pid)
    assert not list((place.folder / "runtime").rglob("*.sock"))


@pytest.mark.parametrize("replaced", [False, True])
def test_it_leaves_when_its_socket_is_gone_or_anothers(other_place, replaced):
    place = other_place()
    place.change("zygote.py", "LOOK = 5.0", "LOOK = 0.2")
    with place.waiting(f"{WAITS}; sys.exit(4)") as (process, _, zygote):
        (path,) = (place.folder / "runtime").rglob("*.sock")
        path.unlink()
        if replaced:
            path.touch()
        process.stdin.close()
        assert process.wait(SOON) == 4  # its child goes on, to its own end
    assert gone(zygote)
    assert path.exists() == replaced
    code, another, err = place.run("print(os.getppid())")
    assert (code, err) == (0, "") and int(another) != zygote


def test_its_socket_goes_with_it(other_place):
    place = other_place(FRUITLIB_KERNELS_IDLE="0.5")
    code, zygote, _ = place.run("print(os.getppid())")
    assert code == 0 and gone(int(zygote))
    assert not list((place.folder / "runtime").rglob("*.sock"))


def test_one_that_was_stopped_while_it_starts_keeps_nobody_waiting_for_ever(other_place):
    """It holds the lock. Its starter was killed: nobody knows it."""
    place = slow_place(other_place)
    first = place.start("print('never')")
    wait_until((place.folder / "slow.py.begun").exists, SOON)
    (zygote,) = place.zygotes()
    zygote.suspend()
    first.kill()
    first.communicate()
    place.change("launcher.py", "IMPORT_TIMEOUT = 180.0", "IMPORT_TIMEOUT = 0.5")
    code, out, err = place.run("print('ran')")
    (why,) = cold_words(err)
    assert (code, out) == (0, "ran\n") and "has held" in why and "for 0 seconds (a zygote that was stopped" in why


def test_what_zygotes_that_are_gone_have_left_is_removed(short):
    folder = Path(tempfile.mkdtemp(dir=short))
    for name in ("gone", "left", "starts", "lives"):
        (folder / f"{name}.lock").touch()
        (folder / f"{name}.log").touch()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "left.sock"))
    with socket.socket(socket.AF_UNIX) as lives, launcher.locked(str(folder / "starts.lock"), 0):
        lives.bind(str(folder / "lives.sock"))
        lives.listen()
        zygote.remove_left_over(str(folder / "mine.sock"))
    kept = [f"{name}.{kind}" for name in ("lives", "starts") for kind in ("lock", "log", "sock")]
    assert sorted(path.name for path in folder.iterdir()) == kept[:-1]


def test_one_that_was_stopped_is_replaced_and_its_children_go_on(other_place):
    place = other_place()
    place.change("launcher.py", "FORK_TIMEOUT = 60.0", "FORK_TIMEOUT = 0.5")
    with place.waiting(f"{WAITS}; sys.exit(4)") as (process, _, zygote):
        os.kill(zygote, signal.SIGSTOP)
        code, another, err = place.run("print(os.getppid())")
        assert (code, err) == (0, "") and int(another) != zygote and gone(zygote)
        process.stdin.close()
        assert process.wait(SOON) == 4


def test_another_environment_has_another_zygote(cheap):
    def address(**environment: str) -> str:
        return launcher.address({**cheap.environment, **environment}, sys.executable)

    for name in ("LD_LIBRARY_PATH", "PYTHONWARNINGS", "LANG", "OMP_WAIT_POLICY", "HOME", "SLURM_JOB_ID"):
        assert address(**{name: "other"}) != address()
    assert address(OMP_NUM_THREADS="7", MPLBACKEND="svg", EDITOR="vi") == address()


# ---------------------------------------------------------------- a cold start says so


def test_cold_on_request(cheap):
    code, out, err = cheap.run("print(os.getppid())", FRUITLIB_KERNELS="cold")
    assert (code, out) == (0, f"{os.getpid()}\n")
    assert err == f"{launcher.COLD}$FRUITLIB_KERNELS is cold\n"


def test_cold_where_others_could_put_a_socket(cheap, tmp_path):
    folder = tmp_path / "fruitlib"
    folder.mkdir()
    folder.chmod(0o777)
    code, out, err = cheap.run("print(os.getppid())", XDG_RUNTIME_DIR=str(tmp_path))
    assert (code, out) == (0, f"{os.getpid()}\n")
    assert err == f"{launcher.COLD}{folder} is open to others than this user: remove it\n"


def test_cold_where_no_zygote_comes_up_which_not_everybody_tries(other_place):
    place = other_place()
    tries = place.folder / "tries"
    code = f"import time\nprint('x', file=open({str(tries)!r}, 'a'))\ntime.sleep(2)\nraise OSError('no such luck')\n"
    (place.folder / "fruitlib" / "kernels" / "zygote.py").write_text(code)
    for code, out, err in map(ended, [place.start("print('ran')") for _ in range(4)]):
        assert (code, out) == (0, "ran\n")
        (why,) = cold_words(err)
        assert "OSError: no such luck" in why
    assert len(tries.read_text().split()) < 4


# ---------------------------------------------------------------- with everything imported


def test_random_states_are_its_own(full):
    code = "import numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    first, second = (full.run(code)[1].split() for _ in range(2))
    assert [a != b for a, b in zip(first, second, strict=True)] == [True] * 3


def test_training_is_the_same_to_the_bit_and_threads_are_as_many(full, coming_up):
    processes = [full.start(TRAINING, OMP_NUM_THREADS=number) for number in ("1", "")]
    one, many, one_cold, many_cold = (json.loads(ended(process)[1]) for process in (*processes, *coming_up[2:]))
    assert one[:2] == one_cold[:2] and len(set(one[0])) == 4
    for found, cold in ((one, one_cold), (many, many_cold)):
        assert found[2] == cold[2]
        assert {pool: found[3][pool] for pool in cold[3]} == cold[3]
    assert set(one[3].values()) == {1}


def test_it_can_start_processes(full):
    code = """
import multiprocessing, subprocess
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    for way in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(way)) as pool:
            print(list(pool.map(abs, [-1, 2])))
    import torch
    print([batch.tolist() for batch in torch.utils.data.DataLoader(torch.arange(4), num_workers=2, batch_size=2)])
    print(subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout.strip())
"""
    code, out, err = full.run(code)
    assert (code, out.splitlines()) == (0, ["[1, 2]", "[1, 2]", "[[0, 1], [2, 3]]", "1"]), err


def test_whose_imports_have_changed_his_environment_asks_the_same_zygote(full):
    imports = "before = dict(os.environ); import fruitlib, sklearn, cv2; assert os.environ != before"
    here = full.run(ADDRESS)[1]
    assert full.run(f"{imports}; {ADDRESS}", cold=True, TORCHINDUCTOR_CACHE_DIR="/tmp/by_torch") == (0, here, "")


def test_what_an_import_took_from_the_environment_is_taken_from_its_own(full, tmp_path):
    code = "import matplotlib, tempfile; print(matplotlib.get_backend(), tempfile.gettempdir())"
    assert full.run(code, MPLBACKEND="svg", TMPDIR=str(tmp_path))[1] == f"svg {tmp_path}\n"
    assert full.run(code, MPLBACKEND="", TMPDIR="/tmp")[1] == "agg /tmp\n"


@contextlib.contextmanager
def kernel(**options):
    """A kernel that is about to answer: its manager and a client. A failure shows what the kernel wrote."""
    with tempfile.TemporaryFile("w+") as log:
        manager = KernelManager(kernel_name=NAME, **options)
        manager.start_kernel(stderr=log)
        client = manager.client()
        client.start_channels()
        try:
            yield manager, client
        except RuntimeError as problem:
            log.seek(0)
            problem.add_note(log.read())
            raise
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()


def execute(client, code: str) -> list:
    """What a cell shows: texts, MIME bundles, names of errors."""
    shown = []

    def take(message: dict) -> None:
        shown.extend(message["content"][key] for key in ("text", "data", "ename") if key in message["content"])

    client.execute_interactive(code, timeout=60, output_hook=take)
    return shown


def check_interrupt(manager, client) -> None:
    """A cell that sleeps is interrupted."""
    message = client.execute("print('sleeps', flush=True); import time; time.sleep(99)")
    while not client.get_iopub_msg(timeout=SOON)["content"].get("text", "").startswith("sleeps"):
        pass
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=SOON)
    assert reply["parent_header"]["msg_id"] == message and reply["content"]["ename"] == "KeyboardInterrupt"


def test_a_kernel_is_interrupted_though_its_server_ignores_interrupts_and_runs_what_it_was_sent_early(full):
    """As of a server that a script started in the background; cells are sent before the kernel is up."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with kernel() as (manager, client):
            early = [client.execute(f"print({number})") for number in range(3)]
            replies = [client.get_shell_msg(timeout=60) for _ in early]
            assert [reply["parent_header"]["msg_id"] for reply in replies] == early
            assert {reply["content"]["status"] for reply in replies} == {"ok"}
            client.wait_for_ready(timeout=60)  # output before this client listened is lost, of any kernel
            check_interrupt(manager, client)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_kernel_does_what_kernels_do(full):
    with kernel() as (manager, client):
        client.wait_for_ready(timeout=60)
        (pids,) = execute(
            client, "import os, subprocess; print(os.getpid(), os.getppid(), subprocess.Popen(['sleep', '99']).pid)"
        )
        pid, zygote, sleeper = map(int, pids.split())
        assert execute(client, "print(get_ipython().kernel.parent.poller)") == ["None\n"]  # which would end it
        *_, figure = execute(client, "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()")
        assert base64.b64decode(figure["image/png"]).startswith(b"\x89PNG")
        assert (
            execute(client, "'jupyter.widget' in get_ipython().kernel.comm_manager.targets")[0]["text/plain"] == "True"
        )

        check_interrupt(manager, client)
        assert "".join(execute(client, "print(os.getpid())")) == f"{pid}\n"  # in one message or in two

        manager.restart_kernel(now=False)
        client.wait_for_ready(timeout=60)
        assert gone(pid, sleeper)
        assert execute(client, "print(os.getppid())") == ["NameError"]
        (pids,) = execute(client, "import os; print(os.getpid(), os.getppid())")
        again, same = map(int, pids.split())
        assert again != pid and same == zygote

        stand_in = manager.provisioner.process.pid
        manager.shutdown_kernel(now=False)
        assert gone(stand_in, again) and psutil.pid_exists(zygote)


def test_eight_kernels_at_once(full, short):
    """Over sockets on disk, as sweeps have them: a free port may be another process's when a kernel binds it."""
    with contextlib.ExitStack() as stack:
        files = [f"{short}/kernel-{number}.json" for number in range(8)]
        clients = [stack.enter_context(kernel(transport="ipc", connection_file=file))[1] for file in files]
        output = []
        for client in clients:
            client.wait_for_ready(timeout=60)
            output += execute(client, "import os, torch; print(os.getpid(), os.getppid(), torch.get_num_threads())")
        pids, zygotes, threads = zip(*map(str.split, output), strict=True)
        assert (len(set(pids)), len(set(zygotes)), set(threads)) == (8, 1, {"1"})


def test_a_zygote_killed_while_it_starts_is_started_once_more(monkeypatch, tmp_path):
    tries = []

    def started(*_):
        tries.append(1)
        if len(tries) < kills + 1:
            raise launcher.Killed("the zygote was killed before it came up")
        return "connection"

    monkeypatch.setattr(launcher, "_started", started)
    kills, path = 1, str(tmp_path / "zygote.sock")
    assert launcher.connect(path, {}, sys.executable) == "connection" and len(tries) == 2
    kills, tries[:] = 9, []
    with pytest.raises(launcher.Unavailable, match="killed"):
        launcher.connect(path, {}, sys.executable)
    assert len(tries) == 2


def test_a_zygote_that_is_killed_says_so(monkeypatch, tmp_path):
    """A real one, killed while it imports."""
    place = tmp_path / "fruitlib"
    place.mkdir()

    def shot(*arguments, **options):
        done = run(*arguments, **options)
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] and process.info["cmdline"][-1] == str(place / "zygote.sock"):
                process.kill()
        return done

    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", shot)
    with open(place / "zygote.lock", "a+") as lock, pytest.raises(launcher.Killed, match="killed before it came up"):
        launcher._started(str(place / "zygote.sock"), dict(os.environ), sys.executable, lock.fileno())
