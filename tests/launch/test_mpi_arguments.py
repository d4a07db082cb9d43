"""The words for each MPI's mpiexec, and that hostile ones stay words: under the real programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.clusters.job import Job
from launch.clusters.mpi.flavours import (
    Start,
    detect_flavour,
    flavour_of,
    hostfile_text,
    mpiexec_arguments,
)
from launch.clusters.mpi.launcher import verdict
from launch.clusters.mpi.plan import make_plan
from launch.clusters.mpi.settings import MpiCluster
from launch.clusters.settings import load_cluster
from launch.failures import CommandError
from launch.mpi import mpi_environment
from pretrain.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
HOSTILE = "a b'c\"d; touch pwned; $(touch pwned) `touch pwned` \\ & | > pwned * ünï\n-x EVIL=1"
FLAVOURS = {
    "Intel(R) MPI Library for Linux* OS, Version 2021.19.0 Build 20260929 (id: 1821d9b)": "intel",
    "mpiexec.openmpi (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/help/": "openmpi",
    "mpirun (Open MPI) 5.0.7\n": "openmpi",
    "prterun (PRRTE) 3.0.8": "openmpi",
    "HYDRA build details:\n    Version:      5.0.2\n": "mpich",
    "mpiexec version 1.2.12": None,
    "": None,
}
START = Start(
    nodes=2,
    processes_per_node=4,
    program=("python", "-c", "1"),
    working_folder=Path("/work"),
    variables=("A", "B"),
    hostfile=Path("/hosts"),
    network_interface="ib0",
    extra_arguments=("--further",),
)


@pytest.mark.parametrize("version", FLAVOURS)
def test_a_flavour_is_known_by_its_version(version: str) -> None:
    assert flavour_of(version) == FLAVOURS[version]


def test_open_mpi_gets_its_words() -> None:
    assert mpiexec_arguments("openmpi", START) == [
        *("--map-by", "ppr:4:node", "--bind-to", "none", "--hostfile", "/hosts"),
        *("--mca", "oob_tcp_if_include", "ib0", "--mca", "btl_tcp_if_include", "ib0"),
        *("-x", "A", "-x", "B", "--wdir", "/work", "--further", "-n", "8", "python", "-c", "1"),
    ]
    assert hostfile_text("openmpi", ["one", "two"], 4) == "one slots=4\ntwo slots=4\n"
    alone = Start(1, 3, ("python",), Path("/work"))
    assert mpiexec_arguments("openmpi", alone)[4:6] == ["--host", "localhost:3"]


@pytest.mark.parametrize("flavour", ["mpich", "intel"])
def test_hydra_gets_its_words(flavour: str) -> None:
    assert mpiexec_arguments(flavour, START) == [
        *("-ppn", "4", "-f", "/hosts", "-iface", "ib0", "-genvall", "-wdir", "/work"),
        *("--further", "-n", "8", "python", "-c", "1"),
    ]
    assert hostfile_text(flavour, ["one", "two"], 4) == "one:4\ntwo:4\n"


def mpi_programs() -> list[tuple[str, Path]]:
    """An mpiexec of each flavour that is installed here."""
    named = (Path(sys.executable).parent / "mpiexec", *map(shutil.which, ("mpiexec.openmpi",)))
    found = {}
    for path in (Path(name) for name in named if name is not None):
        if path.exists():
            found.setdefault(detect_flavour(path), path)
    return sorted(found.items())


@pytest.mark.skipif(not mpi_programs(), reason="no mpiexec: install the mpi extra or Open MPI")
@pytest.mark.parametrize(("flavour", "mpiexec"), mpi_programs())
def test_hostile_words_arrive_as_they_are(flavour: str, mpiexec: Path, tmp_path: Path) -> None:
    """Arguments, values and the folder pass the real mpiexec unchanged; nothing is executed."""
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    tell = (
        "import json, os, sys; line = json.dumps([sys.argv[1:], os.getcwd(), os.environ['EVIL']]); "
        "os.write(1, (line + '\\n').encode())"
    )
    start = Start(
        nodes=1,
        processes_per_node=2,
        program=(sys.executable, "-c", tell, HOSTILE, "-x", "", "--flag=$(touch pwned)"),
        working_folder=folder,
        variables=("EVIL",),
    )
    done = subprocess.run(
        [str(mpiexec), *mpiexec_arguments(flavour, start)],
        env=mpi_environment() | {"EVIL": HOSTILE},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    arguments = [HOSTILE, "-x", "", "--flag=$(touch pwned)"]
    assert told == [[arguments, str(folder), HOSTILE]] * 2
    assert list(tmp_path.iterdir()) == [folder]
    assert not list(folder.iterdir())


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=25)
@example(HOSTILE, HOSTILE.replace("\n", " "), "-x")
@given(texts, texts.filter(lambda text: text and text.isprintable()), texts)
def test_a_shell_would_run_what_is_shown(value: str, folder: str, run: str) -> None:
    cluster = MpiCluster.model_validate(
        {
            "mpiexec": f"/opt/{folder}/mpiexec",
            "flavour": "mpich",
            "extra_arguments": [folder],
            "nodes": {"environment": {"VALUE": value}, "working_folder": f"/{folder}"},
        }
    )
    plan = make_plan(Job.of(Path("c"), None), cluster, [], Path("/runs") / run.replace("/", ""))
    script = f'for word in {plan.shown()}; do printf "%s\\0" "$word"; done'
    shell = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd="/")
    words = shell.stdout.decode().split("\0")[:-1]
    expected = [f"{name}={text}" for name, text in plan.variables().items()]
    assert words == ["env", *expected, *plan.command()]
    assert plan.environment({"RANK": "3", "HOME": "/h"}) == {"HOME": "/h", **plan.variables()}


def test_modules_are_loaded_around_the_ranks_and_around_the_probe() -> None:
    cluster = MpiCluster.model_validate(
        {"mpiexec": "/m", "flavour": "mpich", "nodes": {"modules": ["mpi/5;$(touch${IFS}pwned)"]}}
    )
    plan = make_plan(Job.of(Path("c"), None), cluster, [], Path("/runs/r"))
    for command in (plan.command(), plan.probe_command()):
        assert command[-3:-1] == ["bash", "-c"]
        assert "module load 'mpi/5;$(touch${IFS}pwned)'" in command[-1]


def test_what_cannot_be_started_is_refused(tmp_path: Path, monkeypatch) -> None:
    for name in ("SLURM_JOB_ID", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    job, run = Job.of(Path("c"), None, nodes=2), Path("/runs/r")
    known = MpiCluster.model_validate({"mpiexec": "/m", "flavour": "mpich"})
    with pytest.raises(CommandError, match="--hostfile"):
        make_plan(job, known, [], run)
    with pytest.raises(CommandError, match="user"):
        make_plan(job, known, ["one", "me@two"], run)
    assert make_plan(job, known, ["one", "two"], run).hostfile_text == "one:1\ntwo:1\n"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert make_plan(job, known, [], run).hostfile is None
    with pytest.raises(CommandError, match="cannot be started"):
        make_plan(job, MpiCluster(mpiexec=tmp_path / "none"), [], run)
    with pytest.raises(CommandError, match="`flavour`"):
        make_plan(job, MpiCluster(mpiexec=Path(shutil.which("true") or "")), [], run)


def test_the_example_is_a_description(tmp_path: Path) -> None:
    cluster = load_cluster(REPOSITORY / "configs" / "clusters" / "mpi.yaml", MpiCluster)
    assert cluster.mpiexec == Path("/usr/bin/mpiexec.openmpi")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("flavour: lam\nwait_for_hosts_seconds: 0\n")
    with pytest.raises(ConfigError) as caught:
        load_cluster(wrong, MpiCluster)
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    ("exit_code", "stopped", "failure_code", "finished", "expected"),
    [
        (0, False, None, True, 0),
        (0, True, None, False, 75),
        (9, True, None, False, 75),  # mpiexec was signalled, the ranks have saved
        (0, False, None, False, 1),  # nobody has finished, whatever mpiexec says
        (83, False, 1, False, 1),  # 1 | 82
        (137, False, -9, False, 137),
        (9, False, None, False, 9),
        (2, False, None, False, 1),  # no usage error of ours
        (75, False, None, False, 1),  # nothing was saved
        (-9, False, None, False, 137),
        (-15, False, None, False, 1),
    ],
)
def test_the_folder_tells_how_a_run_ended(exit_code, stopped, failure_code, finished, expected):
    told = verdict(exit_code, stopped=stopped, failure_code=failure_code, finished=finished)
    assert told == expected


def test_another_mpi_than_mpi4pys_is_refused_before_anything_starts(
    run_settings, write_config, tmp_path
) -> None:
    if len(mpi_programs()) < 2:
        pytest.skip("needs two MPIs: the mpi extra and Debian's openmpi-bin")
    mpiexec = dict(mpi_programs())["openmpi"]
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(f"mpiexec: {mpiexec}\n")
    program = [sys.executable, "-m", "launch.cli", "launch", "mpi", str(write_config(run_settings))]
    done = subprocess.run(
        [*program, "--processes", "2", "--cluster", str(cluster)],
        env={name: text for name, text in os.environ.items() if name != "MPI4PY_LIBMPI"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "belongs to another MPI than mpi4py's" in done.stderr
    assert "`library`" in done.stderr
    assert not (tmp_path / "runs" / "tiny" / "logs").exists()
