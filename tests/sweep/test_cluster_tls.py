"""A Dask cluster over TLS, its certificates made here: with them work is done, without them nobody is let in."""

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
from support import wait_until

from fruitlib.core.errors import InputError
from fruitlib.sweep import executors

pytest.importorskip("distributed")
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_certificate(folder, name: str) -> dict[str, str]:
    """An authority and a certificate that it signed; the variables by which Dask finds them."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", *KEY, "-subj", f"/CN={name}-ca", "-keyout", f"{name}-ca.key", "-out", f"{name}-ca.pem")
    openssl("req", *KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    signed = ("-CA", f"{name}-ca.pem", "-CAkey", f"{name}-ca.key", "-CAcreateserial", "-out", f"{name}.pem")
    openssl("x509", "-req", "-in", f"{name}.csr", *signed)
    with (folder / f"{name}.pem").open("a") as file:
        file.write((folder / f"{name}.key").read_text())
    prefix = "DASK_DISTRIBUTED__COMM__TLS__"
    found = {f"{prefix}{role}__CERT": str(folder / f"{name}.pem") for role in ("SCHEDULER", "WORKER", "CLIENT")}
    return found | {f"{prefix}CA_FILE": str(folder / f"{name}-ca.pem")}


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A scheduler and a worker on loopback; its address, our certificates and another authority's."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates, and is not there")
    folder = tmp_path_factory.mktemp("tls")
    ours, others = make_certificate(folder, "ours"), make_certificate(folder, "others")
    options = {"env": os.environ | ours, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--protocol", "tls", *local]
    started = [subprocess.Popen([*command, "--scheduler-file", "s.json"], **options)]
    try:
        wait_until(lambda: (folder / "s.json").is_file() and (folder / "s.json").read_text().endswith("}"))
        address = json.loads((folder / "s.json").read_text())["address"]
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--nthreads",
            "1",
            "--no-nanny",
            *local,
        ]
        started.append(subprocess.Popen(command, **options))
        yield address, ours, others
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def configured():
    """`configured(variables)`: Dask as if it had been started with these."""
    import dask

    before = copy.deepcopy(dask.config.get("distributed.comm.tls"))

    def configure(variables: dict[str, str]) -> None:
        dask.config.set({"distributed.comm.tls": copy.deepcopy(before)})
        dask.config.update(dask.config.config, dask.config.collect_env(variables))

    yield configure
    dask.config.set({"distributed.comm.tls": before})


def test_with_certificates_work_is_done(secured, configured, tmp_path):
    address, ours, _ = secured
    configured(ours)

    def connected():
        try:
            return executors.cluster(address, tmp_path)
        except InputError as problem:  # the worker is not there yet
            assert "no workers yet" in str(problem)
            return None

    pool, words = wait_until(connected)
    try:
        assert words == "1 at a time on 1 Dask worker"
        job = {"folder": str(tmp_path / "elsewhere")}
        assert "does not see the folder" in pool.submit(executors.perform, job).result(timeout=60)["error"]
    finally:
        pool.shutdown()


@pytest.mark.parametrize(
    ("whose", "scheme", "words"),
    [
        ("nobody's", "tls", "tls needs certificates: set DASK_DISTRIBUTED__COMM__TLS__CA_FILE"),
        ("others", "tls", "no Dask scheduler answers there (TLS certificate does not match"),
        ("missing", "tls", "its certificates cannot be read"),
        ("nobody's", "tcp", "no Dask scheduler answers there"),
    ],
)
def test_without_them_nobody_is_let_in_and_one_line_says_so(secured, configured, tmp_path, whose, scheme, words):
    address, ours, others = secured
    missing = {name: f"{path}.missing" for name, path in ours.items()}
    configured({"nobody's": {}, "others": others, "missing": missing}[whose])
    with pytest.raises(InputError) as problem:
        executors.cluster(address.replace("tls://", f"{scheme}://"), tmp_path)
    assert words in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("tcp://127.0.0.1:8786", True),
        ("localhost:8786", True),
        ("tcp://[::1]:8786", True),
        ("tcp://10.0.0.4:8786", False),
        ("tcp://127-some.host:8786", False),
    ],
)
def test_which_addresses_are_on_this_machine_alone(address, local):
    assert executors._is_local(address) == local
