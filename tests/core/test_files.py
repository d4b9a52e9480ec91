"""Files are replaced whole, with the permissions they should have; what killed processes left is removed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fruitlib.core import files
from fruitlib.core.errors import InputError

ROOT = Path(__file__).parents[2]
NO_MAPPING = [b"", b"{", b"[]", b"null", b'"x"', b"5", b"\xff", b'{"a":' * 100_000]


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(
    ("umask", "before", "after"),
    [(0o022, None, 0o644), (0o077, None, 0o600), (0o002, None, 0o664), (0o022, 0o600, 0o600), (0o077, 0o664, 0o664)],
)
def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_permissions(tmp_path, umask, before, after):
    path = tmp_path / "table.csv"
    if before is not None:
        path.write_text("old")
        path.chmod(before)
    write = """
import os, sys
from fruitlib.core import files
os.umask(int(sys.argv[2]))
files.write_text(sys.argv[1], "a")
"""
    run(write, path, umask)
    assert path.read_text() == "a" and path.stat().st_mode & 0o777 == after
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_nobody_else_may_read_a_private_file_while_it_is_written(tmp_path):
    path = tmp_path / "table.csv"
    path.touch(mode=0o400)
    with files.replacing(path) as partial:
        assert partial.stat().st_mode & 0o777 == 0o600
        partial.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o400 and path.read_text() == "new"


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs Linux")
def test_a_process_of_another_container_with_the_same_name_is_not_taken_for_dead(tmp_path):
    with files.replacing(tmp_path / "table.csv") as partial:
        theirs = partial.with_name(re.sub(r"\.\d+@(.*)-\d+\.", r".99999999@\1-1.", partial.name))
        theirs.touch()
        files.remove_stale_partials(tmp_path)
        assert theirs.exists() and theirs != partial


@pytest.mark.skipif(sys.platform == "win32", reason="Windows collects processes at once")
def test_a_killed_process_that_its_parent_has_not_collected_has_ended(tmp_path):
    write = """
import os, sys
from fruitlib.core import files
with files.replacing(sys.argv[1]):
    os.kill(os.getpid(), 9)
"""
    child = subprocess.Popen([sys.executable, "-c", write, str(tmp_path / "batch.jpg")], cwd=ROOT)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert len(os.listdir(tmp_path)) == 1
    files.remove_stale_partials(tmp_path)
    assert os.listdir(tmp_path) == []
    assert child.wait() == -9


def test_a_folder_of_a_killed_process_is_removed_by_the_next_and_a_living_ones_stays(tmp_path):
    target = tmp_path / "data [1]" / "sample"
    killed = """
import os, signal, sys
from fruitlib.core import files
with files.folder_beside(sys.argv[1]) as folder:
    (folder / "half.jpg").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run(killed, target)
    assert len(os.listdir(target.parent)) == 1
    with files.folder_beside(target) as living, files.folder_beside(target) as other:
        assert {living, other} == set(target.parent.iterdir())
        (other / "half.jpg").write_text("half")
    assert os.listdir(target.parent) == []
    run(killed, target)
    files.remove_stale_partials(tmp_path)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("content", NO_MAPPING)
def test_a_file_that_holds_no_mapping_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: damaged \(.*\); remove it, and run the same command again$"):
        files.read_json(tmp_path / "x.json")


def test_a_file_that_is_not_there_is_what_the_caller_says(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "x.json") == {"a": 1}
    assert files.read_json(tmp_path / "none.json", default={}) == {}
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)


def test_a_damaged_npz_file_is_one_line_however_it_is_damaged(tmp_path):
    path, rng = tmp_path / "arrays.npz", np.random.default_rng(0)
    arrays = {"names": np.array(["a", "b"]), "heat": rng.random((2, 40, 40))}
    np.savez_compressed(path, **arrays)
    found = files.read_npz(path)
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    whole, kinds = path.read_bytes(), set()
    for content in [b"", b"PK\x03\x04", whole[:200], *(_with_zeros(whole, at) for at in range(0, len(whole), 97))]:
        path.write_bytes(content)
        try:
            files.read_npz(path)
        except InputError as problem:
            kinds.add(str(problem).partition("(")[0])
    assert kinds == {f"{path}: damaged "}
    np.savez(path, objects=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        files.read_npz(path)
    np.savez_compressed(path, many=np.zeros(10**6))
    with pytest.raises(InputError, match="takes 8 MB of memory, above 1"):
        files.read_npz(path, most_bytes=10**6)
    with pytest.raises(FileNotFoundError):
        files.read_npz(tmp_path / "none.npz")


def _with_zeros(content: bytes, at: int) -> bytes:
    return content[:at] + bytes(20) + content[at + 20 :]


def test_what_is_gone_was_changed_at_no_time(tmp_path):
    path = tmp_path / "a"
    assert files.changed_at(path) == files.changed_at(path / "b") == 0
    path.touch()
    os.utime(path, ns=(5, 7))
    assert files.changed_at(path) == 7
