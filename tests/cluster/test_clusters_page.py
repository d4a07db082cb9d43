"""What docs/clusters.md tells people to type is typed here, on a cluster of this machine."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines.hosts import LOGIN, wait_for
from machines.slurm import Slurm
from worker_processes import read_lines

from launch.clusters.record import read_events
from launch.clusters.settings import load_cluster
from launch.clusters.slurm.settings import SlurmCluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clusters.md"
# This cluster's own words; all else stays as it stands.
OURS = {"partition: long": "partition: low", "--gpus-per-node 8": "--processes 1"}


def section(title: str) -> str:
    """The text below a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def blocks(title: str, language: str) -> list[str]:
    """The fenced blocks of one language in a section."""
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


def commands(title: str) -> list[str]:
    """All commands of a section."""
    return [line for block in blocks(title, "bash") for line in block.splitlines()]


def in_our_words(text: str) -> str:
    for printed, ours in OURS.items():
        text = text.replace(printed, ours)
    return text


def test_every_section_is_typed_below_and_every_file_exists() -> None:
    titles = re.findall(r"^## (.*)", PAGE.read_text(), re.MULTILINE)
    with_commands = {title for title in titles if commands(title)}
    assert with_commands == {
        *("Look before you launch", "One machine", "Slurm", "ssh", "MPI", "Kubernetes")
    }
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).exists(), path


def test_the_description_of_a_cluster_is_valid(tmp_path: Path) -> None:
    (tmp_path / "slurm.yaml").write_text(blocks("Slurm", "yaml")[0])
    assert load_cluster(tmp_path / "slurm.yaml", SlurmCluster).partition == "long"


@pytest.mark.slow
@pytest.mark.cluster
class TestCommands:
    """Section by section; each trains a run of its own, since a finished one ends at once."""

    @pytest.fixture(autouse=True)
    def place(
        self, slurm: Slurm, run_settings: dict[str, Any], prose_data: Path, tmp_path: Path
    ) -> None:
        self.slurm, self.folder = slurm, tmp_path
        self.run = tmp_path / "runs" / "first"
        (tmp_path / "configs").symlink_to(PAGE.parent.parent / "configs")
        run_settings |= {"name": "first", "run_dir": "runs"}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_settings))
        for title, language in (("Slurm", "yaml"), ("ssh", "text")):
            text = blocks(title, language)[0]
            name = text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(in_our_words(text))

    def type(self, command: str, *overrides: str) -> str:
        """Type a command on the login host; it must succeed."""
        words = shlex.split(in_our_words(command))
        if "run.yaml" in words:
            place = words.index("run.yaml") + 1
            words[place:place] = overrides
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = self.slurm.hosts.run(
            *(LOGIN, *words), environment={"PATH": path}, folder=self.folder, timeout_seconds=300
        )
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def steps(self) -> int:
        lines = read_lines(self.run / "metrics.jsonl")
        return max((line["step"] for line in lines if "loss" in line), default=0)

    def type_all(self, title: str, check: Callable[[str, str], None] | None = None) -> None:
        for command in commands(title):
            output = self.type(command)
            if check is not None:
                check(command, output)

    def test_look_before_you_launch(self) -> None:
        self.type_all("Look before you launch")

    def test_one_machine(self) -> None:
        outputs: dict[str, str] = {}
        self.type_all("One machine", outputs.__setitem__)
        assert self.steps() == 6
        assert "done" in outputs["spade jobs runs"]

    def test_slurm(self) -> None:
        shown, submit, jobs, stop = commands("Slurm")
        endless = ("train.max_steps=1000000", "evaluation.every_steps=1000")
        assert "#SBATCH" in self.type(shown, *endless)
        assert not self.run.exists()
        self.type(submit, *endless)
        wait_for(lambda: self.steps() > 2, 200, "a run on two nodes")
        assert "running" in self.type(jobs)
        self.type(stop)
        wait_for(lambda: read_events(self.run)[-1]["event"] == "stopped", 120, "the run's stop")
        assert (self.run / "stopped.json").exists()
        assert self.slurm.run("squeue", "--noheader", "--state=pending").stdout == ""

    def test_ssh(self) -> None:
        self.type_all("ssh")
        assert self.steps() == 6
        assert {event["launcher"] for event in read_events(self.run)} == {"ssh"}

    def test_mpi(self) -> None:
        self.type_all("MPI")
        assert self.steps() == 6

    def test_kubernetes(self) -> None:
        manifests = []
        self.type_all("Kubernetes", lambda _, output: manifests.append(output))
        assert "kind: TrainJob" in manifests[0]
