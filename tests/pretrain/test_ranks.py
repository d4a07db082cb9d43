"""A process finds its rank under each launcher, and says what is wrong when it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import RunError
from pretrain.ranks import Ranks, export_rendezvous, find_ranks


@given(size=st.integers(1, 4096), data=st.data())
def test_each_launchers_variables_are_understood(size, data):
    rank = data.draw(st.integers(0, size - 1))
    local = data.draw(st.integers(0, rank))
    for launcher, names in {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
        "Open MPI": (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ),
        "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    }.items():
        environment = dict(zip(names, map(str, (rank, size, local)), strict=True))
        environment["SLURM_STEP_ID"] = "0"
        assert find_ranks(environment) == Ranks(rank, size, local, launcher)


def test_a_plain_process_is_a_run_of_one():
    assert find_ranks({}) == Ranks(0, 1, 0, "none")


def test_an_allocation_without_srun_is_a_run_of_one():
    assert find_ranks({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}).world_size == 1


@pytest.mark.parametrize("rank", ["4", "-1", "zero"])
def test_impossible_ranks_are_named(rank):
    with pytest.raises(RunError, match="RANK"):
        find_ranks({"RANK": rank, "WORLD_SIZE": "4"})


def test_several_processes_need_a_port():
    with pytest.raises(RunError, match="MASTER_PORT"):
        export_rendezvous(Ranks(0, 2, 0, "MPICH"), {})


def test_a_single_process_finds_a_port_of_its_own():
    environment: dict[str, str] = {}
    export_rendezvous(Ranks(0, 1, 0, "none"), environment)
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert int(environment["MASTER_PORT"]) > 0


def test_under_a_real_mpiexec_every_rank_is_found_once():
    program = "from pretrain.ranks import find_ranks; import os; r = find_ranks(os.environ); "
    # In one piece, or the launcher may mix the lines of the ranks.
    program += "os.write(1, f'{r.rank} {r.world_size} {r.launcher}\\n'.encode())"
    command = ["mpiexec", "-n", "3", sys.executable, "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        pytest.skip("no mpiexec on PATH: install the mpi extra")
    lines = sorted(done.stdout.split("\n"))
    assert [line.split()[:2] for line in lines if line] == [[str(r), "3"] for r in range(3)]
