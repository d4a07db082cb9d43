"""A process finds its rank under each launcher, and says what is wrong when it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import RunError
from pretrain.mpi_meeting import Doorbell, common_address, free_port, own_addresses, reaches
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
        export_rendezvous(Ranks(0, 2, 0, "Slurm"), {})


def test_a_single_process_finds_a_port_of_its_own():
    environment: dict[str, str] = {}
    export_rendezvous(Ranks(0, 1, 0, "none"), environment)
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert int(environment["MASTER_PORT"]) > 0


def run_ranks(program: str, processes: int) -> list[str]:
    """Lines of ranks that mpiexec starts; each writes its own in one piece."""
    command = ["mpiexec", "-n", str(processes), sys.executable, "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        pytest.skip("no mpiexec on PATH: install the mpi extra")
    assert done.returncode == 0, done.stderr
    return sorted(line for line in done.stdout.split("\n") if line)


def test_under_a_real_mpiexec_the_ranks_agree_where_to_meet():
    """By the launcher's variables, and without those that another launcher would not set."""
    program = """
import os
from pretrain.ranks import export_rendezvous, find_ranks
names = ("PMI_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
for hidden in ((), names):
    environment = {key: text for key, text in os.environ.items() if key not in hidden}
    ranks = find_ranks(environment)
    export_rendezvous(ranks, environment)
    place = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    line = f"{ranks.rank} {ranks.world_size} {ranks.local_rank} {place} {ranks.launcher}"
    os.write(1, f"{line}\\n".encode())
"""
    lines = run_ranks(program, 3)
    assert [line.split()[:3] for line in lines] == [[r, "3", r] for r in "001122"]
    assert {line.split()[4] for line in lines} > {"MPI"}
    [place] = {line.split()[3] for line in lines}
    assert place.startswith("127.0.0.1:")


def test_another_mpi_than_the_launchers_is_named():
    program = """
import os
from pretrain import ranks
wrong = ranks.Ranks(0, 7, 0, "MPICH")
try:
    ranks.agree_on_rendezvous(wrong, {})
except ranks.RunError as error:
    os.write(1, f"{error}\\n".encode())
"""
    [line] = run_ranks(program, 1)
    assert "started rank 0 of 7" in line
    assert "MPI4PY_LIBMPI" in line


def test_a_program_with_an_mpi_of_its_own_does_not_ask():
    assert find_ranks({"PMIX_RANK": "1"}, ask_mpi=False) == Ranks(0, 1, 0, "none")
    half = {"PMI_RANK": "3", "PMI_SIZE": "4"}
    assert find_ranks(half, ask_mpi=False) == Ranks(3, 4, 3, "MPICH")
    srun = {"SLURM_STEP_ID": "0", "SLURM_LOCALID": "1"}
    assert find_ranks(half | srun) == Ranks(3, 4, 1, "MPICH")


addresses = st.lists(st.sampled_from(["10.0.0.1", "172.17.0.1", "fd00::1"]), unique=True)


@given(offered=addresses, reached=st.lists(st.none() | addresses, max_size=5))
def test_the_address_agreed_on_is_the_first_that_all_have_reached(offered, reached):
    found = common_address(offered, reached)
    for address in offered:
        good = all(address in item for item in reached if item is not None)
        if address == found:
            assert good
            return
        assert not good
    assert found is None


def test_a_door_is_known_by_its_word():
    doorbell = Doorbell()
    try:
        assert reaches("127.0.0.1", doorbell.port, doorbell.word)
        assert not reaches("127.0.0.1", doorbell.port, "another host's")
    finally:
        doorbell.close()
    assert not reaches("127.0.0.1", free_port(), doorbell.word)
    assert not any(address.startswith("127.") or "%" in address for address in own_addresses())
    assert own_addresses("no-such-interface") == []
