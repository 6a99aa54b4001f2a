# SPDX-License-Identifier: Apache-2.0
"""The launchers and the CI script: what they run and refuse, and that no process outlives a failed job."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NEEDED = (
    "bash",
    "sh",
    "env",
    "dirname",
    "mktemp",
    "cat",
    "awk",
    "git",
    "rm",
    "mkdir",
    "tar",
    "gzip",
    "tail",
    "sleep",
)


@pytest.fixture
def programs(tmp_path) -> pathlib.Path:
    """A folder with the usual programs and nothing else, to be the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def program(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def launch(script: str, *args: str, path: pathlib.Path, root=ROOT, **env: str) -> subprocess.CompletedProcess:
    command = ["bash", str(root / "launch" / script), *args]
    env = {"PATH": str(path), "HOME": str(path), "TMPDIR": str(path.parent)} | env
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def commands(done: subprocess.CompletedProcess) -> list[list[str]]:
    """What a dry run printed, as a shell would read it; not the question whether the TPU VM is there."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["launch/tpu.sh", "launch/local.sh", "check.sh", ".ci/run"])
def test_shellcheck(script):
    done = subprocess.run(["shellcheck", str(ROOT / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["tpu.sh", "local.sh"])
def test_help(script, programs):
    done = launch(script, "--help", path=programs)
    assert done.returncode == 0 and done.stdout.startswith(f"Usage: launch/{script}") and not done.stderr


@pytest.mark.parametrize(
    "args, text",
    [
        ([], "action is missing"),
        (["destroy"], "unknown action 'destroy'"),
        (["create", "--zoned", "a"], "unknown option '--zoned'"),
        (["create", "--zone"], "--zone needs a value"),
        (["create", "delete"], "two actions"),
        (["create", "--name", "a b"], "no name of a TPU VM"),
        (["delete", "--", "--config=x"], "for run and all, not for delete"),
        (["run"], "needs the config"),
        (["create"], "gcloud is not installed"),
    ],
)
def test_tpu_refuses(args, text, programs):
    done = launch("tpu.sh", *args, path=programs)
    assert done.returncode == 2 and text in done.stderr and not done.stdout


def test_tpu_dry_run_needs_no_gcloud_and_quotes(programs):
    flags = ["--config=configs/loo.py:held_out=land cover", "--config.data.datasets=('a', \"b\")"]
    options = [
        "--name",
        "pod",
        "--zone",
        "z",
        "--project",
        "p",
        "--type",
        "v4-32",
        "--version",
        "v",
        "--spot",
    ]
    done = launch("tpu.sh", "all", "--dry-run", *options, "--", *flags, path=programs)
    create, archive, up, _, setup, run, pack, _, down, unpack, _, delete = commands(done)
    for command in (create, up, setup, run, pack, down, delete):
        assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert "--zone=z" in command and "--project=p" in command
    assert create[4:6] == ["create", "pod"]
    assert {"--accelerator-type=v4-32", "--version=v", "--spot"} <= set(create)
    assert archive[:2] == ["git", "archive"] and f"--output={up[5]}" in archive
    assert up[6] == "pod:metaicl.tar.gz" and "--worker=all" in up
    assert "jax[tpu]" in shlex.split(setup[-1]) and "--worker=all" in setup
    remote = run[-1].removeprefix("--command=")
    assert "--worker=all" in run and shlex.split(remote)[-2:] == flags and "--distributed" in remote
    assert (
        "--worker=0" in pack
        and "--exclude=checkpoints" in pack[-1]
        and down[5] == "pod:metaicl-results.tar.gz"
    )
    assert unpack[:2] == ["tar", "-xzf"] and unpack[-1] == "runs/pod"
    assert delete[4:] == ["delete", "pod", "--zone=z", "--project=p", "--quiet"]
    assert list(programs.parent.glob("*.gz")) == [], "a dry run leaves nothing behind"


def test_tpu_takes_its_defaults_from_the_environment(programs):
    env = {"TPU_NAME": "mine", "TPU_ZONE": "there", "TPU_PROJECT": "ours", "TPU_SPOT": "1"}
    (create,) = commands(launch("tpu.sh", "create", "--dry-run", path=programs, **env))
    assert {"mine", "--zone=there", "--project=ours", "--spot"} <= set(create)


@pytest.fixture
def cloud(programs) -> pathlib.Path:
    """A gcloud that knows the TPU VMs listed in a file, notes its commands, and can be told to fail."""
    program(
        programs,
        "gcloud",
        'state="$(dirname "$0")/state"\n'
        'echo "$4 $*" >>"$(dirname "$0")/calls"\n'
        '[[ "$4" != "${FAIL:-}" ]] || exit 3\n'
        'case "$4" in list) [[ ! -e "$state" ]] || cat "$state" ;; esac\n'
        'case "$4" in create) echo "metaicl READY" >"$state" ;; delete) rm "$state" ;; esac\n'
        'case "$4 $5" in "scp metaicl:"*) tar -czf "$6" -C "$(dirname "$0")" state ;; esac',
    )
    return programs


def called(cloud: pathlib.Path) -> list[str]:
    """The actions that gcloud was asked for since the last time."""
    path = cloud / "calls"
    actions = [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return actions


def test_tpu_create_and_delete_can_be_repeated(cloud):
    assert launch("tpu.sh", "create", path=cloud).returncode == 0
    assert called(cloud) == ["list", "create"]
    done = launch("tpu.sh", "create", path=cloud)
    assert done.returncode == 0 and "there already" in done.stdout and called(cloud) == ["list"]
    (cloud / "state").write_text("metaicl PREEMPTED\nother READY\n")
    done = launch("tpu.sh", "create", path=cloud)
    assert done.returncode == 2 and "PREEMPTED: delete it first" in done.stderr and called(cloud) == ["list"]
    assert launch("tpu.sh", "delete", path=cloud).returncode == 0
    assert called(cloud) == ["list", "delete"]
    done = launch("tpu.sh", "delete", path=cloud)
    assert done.returncode == 0 and "no TPU VM" in done.stdout and called(cloud) == ["list"]


def test_tpu_does_not_mistake_an_error_for_an_absence(cloud):
    for action in ("create", "delete"):
        done = launch("tpu.sh", action, path=cloud, FAIL="list")
        assert done.returncode == 3 and "no TPU VM" not in done.stdout and called(cloud) == ["list"]


def test_tpu_all(cloud, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "launch", repository / "launch")
    identity = {f"GIT_{role}_{what}": "t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = os.environ | identity | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_DIR": str(repository / ".git")}
    for args in (["init", "--quiet"], ["add", "launch"], ["commit", "--quiet", "--message=first"]):
        subprocess.run(["git", *args], cwd=repository, env=env, check=True)
    (repository / "draft").touch()
    args = ["all", "--out", str(tmp_path / "out"), "--", "--config=configs/loo.py"]

    done = launch("tpu.sh", *args, path=cloud, root=repository, FAIL="ssh")
    assert done.returncode == 3 and "is kept, and is paid for" in done.stderr
    assert "What is not committed stays behind:\n?? draft" in done.stderr
    assert called(cloud) == ["list", "create", "scp", "ssh"]
    done = launch("tpu.sh", *args, path=cloud, root=repository)
    assert done.returncode == 0, done.stderr
    assert called(cloud) == ["list", "scp", "ssh", "ssh", "ssh", "scp", "list", "delete"]
    assert (tmp_path / "out" / "state").exists() and "is kept" not in done.stderr


@pytest.mark.parametrize(
    "args, text",
    [
        ([], "--processes is missing"),
        (["--processes"], "--processes needs a value"),
        (["--processes", "0"], "not a number of at least 1"),
        (["--processes", "2", "--devices-per-process", "x"], "not a number of at least 1"),
        (["--processes", "2", "--config=x"], "unknown option '--config=x'"),
        (["--processes", "2", "--", "--process=1"], "'--process=1' is set by this script"),
        (["--processes", "2", "--", "--config=x"], "there is no 'python'"),
    ],
)
def test_local_refuses(args, text, programs):
    done = launch("local.sh", *args, path=programs)
    assert done.returncode == 2 and text in done.stderr and not done.stdout


@pytest.fixture
def fake_python(programs) -> pathlib.Path:
    """A `python` that names a port, and else is a process that sleeps, fails or says its arguments."""
    program(
        programs,
        "python",
        'if [[ "$1" == -c ]]; then echo 4711; exit; fi\n'
        "number=${*: -2:1}; number=${number#--process=}\n"
        'echo "$JAX_NUM_CPU_DEVICES $*"\n'
        'if [[ "$number" == "${FAIL:-}" ]]; then echo broken >&2; exit 7; fi\n'
        '[[ -z "${FAIL:-}${WAIT:-}" ]] || { echo $$ >>"$HOME/sleepers"; exec sleep 60; }',
    )
    return programs


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_local_starts_every_process(fake_python, tmp_path):
    logs = tmp_path / "logs"
    args = ["--processes", "3", "--devices-per-process", "2", "--logs", str(logs), "--", "--config=a b"]
    done = launch("local.sh", *args, path=fake_python)
    assert done.returncode == 0
    line = "2 -m metaicl.main --config=a b --coordinator=127.0.0.1:4711 --process={} --processes=3\n"
    assert done.stdout == line.format(0)
    assert [(logs / f"process-{i}.log").read_text() for i in (1, 2)] == [line.format(1), line.format(2)]


@pytest.mark.parametrize("failing", ["0", "2"])
def test_local_stops_the_others_when_one_fails(failing, fake_python, tmp_path):
    args = ["--processes", "3", "--logs", str(tmp_path / "logs"), "--", "--config=x"]
    done = launch("local.sh", *args, path=fake_python, FAIL=failing)
    assert done.returncode == 7 and f"Process {failing} failed with status 7" in done.stderr
    assert "broken" in done.stderr
    for pid in (fake_python / "sleepers").read_text().split():
        assert gone(int(pid))


@pytest.fixture
def interruptible():
    """A job in the background of a shell ignores SIGINT, and so would its children; with a handler they do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_local_stops_all_on_a_signal(sent, status, fake_python, tmp_path):
    command = [
        "bash",
        str(ROOT / "launch" / "local.sh"),
        "--processes",
        "2",
        "--logs",
        str(tmp_path / "logs"),
    ]
    env = {"PATH": str(fake_python), "HOME": str(fake_python), "WAIT": "1"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*command, "--", "--config=x"], env=env, stdout=quiet, stderr=quiet) as job:
        sleepers, until = fake_python / "sleepers", time.monotonic() + 20
        while not (sleepers.exists() and len(sleepers.read_text().split()) == 2) and time.monotonic() < until:
            time.sleep(0.05)
        job.send_signal(sent)
        assert job.wait(20) == status
    for pid in sleepers.read_text().split():
        assert gone(int(pid))


JUNIT = (
    '<testsuites><testsuite><testcase classname="tests.test_a" name="test_x[1]">{}</testcase>'
    '<testcase classname="tests.test_a" name="test_y"><skipped message="no GPU"/></testcase>'
    "</testsuite></testsuites>"
)


@pytest.fixture
def ci(programs, tmp_path) -> pathlib.Path:
    """A copy of the CI script among stand-ins for python3, pip and pytest; slow tests are in two files."""
    (tmp_path / "repository" / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / "repository" / ".ci")
    for name in ("tee", "sed", "sort", "timeout"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "python").symlink_to(sys.executable)
    program(programs, "python3", 'mkdir -p "$3/bin" && echo : >"$3/bin/activate"')
    program(programs, "pip", 'echo "pip $*" >>"$HOME/calls"')
    (programs / "junit").write_text(JUNIT.format(""))
    program(
        programs,
        "pytest",
        'echo "pytest $*" >>"$HOME/calls"\n'
        'case "$*" in\n'
        '  "--collect-only -m real") echo "tests/test_a.py::test_x[1]"; exit ;;\n'
        '  "--collect-only -m slow") printf "tests/%s.py::t[a::b]\\n" test_a test_b test_a; exit ;;\n'
        "  *slow*) status=${SLOW:-0} ;;\n"
        '  *) status=${FAST:-0}; echo "9 passed in 1.00s" ;;\n'
        "esac\n"
        'for last; do :; done; [[ "$1" != --junit* ]] || last=$1\n'
        'cat "$HOME/junit" >"${last#--junitxml=}"; exit "$status"',
    )
    return programs


def run_ci(ci: pathlib.Path, **env: str) -> subprocess.CompletedProcess:
    script = ci.parent / "repository" / ".ci" / "run"
    env = {"PATH": str(ci), "HOME": str(ci), "TMPDIR": str(ci.parent)} | env
    return subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, timeout=60)


def test_ci_runs_everything_and_ends_with_the_closing_line(ci):
    done = run_ci(ci)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[-1] == "9 passed in 1.00s" and "Slow tests: 2 files passed." in done.stdout
    )
    install, *_ = calls = (ci / "calls").read_text().splitlines()
    assert install.endswith("-c constraints.txt -e .[test,oracle] torch==2.13.0")
    assert [call.split()[3] for call in calls if call.startswith("pytest -m slow")] == [
        "tests/test_a.py",
        "tests/test_b.py",
    ]
    assert list(ci.parent.glob("tmp.*")) == [], "the environment is removed"


def test_ci_fails_with_the_tests(ci):
    assert run_ci(ci, FAST="1").returncode == 1
    done = run_ci(ci, SLOW="1")
    assert done.returncode == 1 and "Slow tests failed: tests/test_a.py" in done.stderr
    done = run_ci(ci, SLOW="124")
    assert done.returncode == 0 and "no time was left for the slow tests of tests/test_a.py" in done.stdout


def test_ci_fails_if_real_tests_are_skipped_beside_real_data(ci):
    (ci / "junit").write_text(JUNIT.format('<skipped message="no real data"/>'))
    assert run_ci(ci).returncode == 0
    done = run_ci(ci, METAICL_DATA=str(ci))
    assert done.returncode == 1 and "tests/test_a.py::test_x[1]: no real data" in done.stderr
    assert "test_y" not in done.stderr
    (ci.parent / "shared" / "data").mkdir(parents=True)
    assert run_ci(ci).returncode == 1, "shared/data beside the repository counts as well"
