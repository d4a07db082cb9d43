"""The sbatch script and what surrounds it, without a Slurm: no word of a user's is executed."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.clusters.job import Job
from launch.clusters.settings import load_cluster
from launch.clusters.slurm import controller
from launch.clusters.slurm.batch import main as batch_main
from launch.clusters.slurm.excluded import EXCLUDED_SECONDS, exclude_hosts, excluded_hosts
from launch.clusters.slurm.health import failed_hosts
from launch.clusters.slurm.script import SlurmJob, quoted_value, script_text
from launch.clusters.slurm.settings import ContainerSettings, SlurmCluster, seconds_of
from launch.clusters.slurm.steps import (
    Rendezvous,
    StepSettings,
    health_step,
    meeting_port,
    rank_step,
)
from launch.clusters.slurm.stop_file import StopFile
from launch.failures import CommandError
from pretrain.errors import ConfigError
from pretrain.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = (
    "a b",
    "'",
    '"',
    ";",
    "$(touch X)",
    "`touch X`",
    "|",
    "&",
    "#",
    "-x",
    "%j",
    "é",
    "~",
    "*",
)
# A name of a file: anything but a slash, NUL and what Slurm cannot say.
_LETTERS = st.characters(exclude_characters="/\\\0", exclude_categories=["Cc", "Cs"])
names = (
    st.lists(st.sampled_from(HOSTILE) | st.text(_LETTERS, max_size=5), min_size=1, max_size=4)
    .map("".join)
    .filter(lambda name: name.strip(".") != "" and len(name.encode()) < 200)
)


def make(
    cluster: dict[str, Any] | None = None, run: Path = Path("/runs/a"), **job: Any
) -> SlurmJob:
    description = SlurmCluster.model_validate(cluster or {})
    wanted = Job.of(Path("c.yaml"), None, **{"nodes": 2, **job})
    return SlurmJob(wanted, description, run, Path("/work"))


def as_sbatch_reads(text: str) -> dict[str, str | None]:
    """The options of a script by sbatch's rules, which were tried with the real one."""
    options: dict[str, str | None] = {}
    for line in text.split("\n"):
        if not line.startswith("#SBATCH "):
            continue
        word, quote, escaped = "", "", False
        for character in line.removeprefix("#SBATCH "):
            if escaped:
                word, escaped = word + character, False
            elif character == "\\":
                escaped = True
            elif quote:
                quote, word = ("", word) if character == quote else (quote, word + character)
            elif character in "'\"":
                quote = character
            elif character.isspace() or character == "#":
                break
            else:
                word += character
        name, separator, value = word.partition("=")
        options[name] = value if separator else None
    return options


@settings(max_examples=25)
@given(
    run=names,
    here=names,
    module=names.map(lambda name: "m" + "".join(name.split())),
    value=st.text(),
    partition=names,
)
@example(
    run="x", here="$(touch X)", module="x;touch$IFS$9X", value="\n$(touch X)\n'", partition="a"
)
def test_what_users_write_is_never_executed(
    tmp_path_factory: pytest.TempPathFactory,
    run: str,
    here: str,
    module: str,
    value: str,
    partition: str,
) -> None:
    """The whole script, run by bash, with programs on PATH that write down how they are called."""
    folder = tmp_path_factory.mktemp("script")
    working = folder / "here" / here
    working.mkdir(parents=True)
    programs = folder / "programs"
    programs.mkdir()
    called = '#!/bin/sh\nprintf \'%s\\0\' "$PWD" "$VALUE" "$@" > '
    (programs / "python").write_text(f"{called}{folder}/python.called\n")
    (programs / "python").chmod(0o755)
    (folder / "setup.sh").write_text(
        f'module() {{ printf "%s\\0" "$@" > {folder}/module.called; }}\n'
    )
    value = value.encode("utf-8", "replace").decode().replace("\0", "")
    nodes = {
        "python": programs / "python",
        "modules": (module,),
        "source": (folder / "setup.sh",),
        "environment": {"VALUE": value},
    }
    cluster = SlurmCluster.model_validate({"partition": partition, "nodes": nodes})
    job = SlurmJob(Job.of(Path("c"), None, nodes=2), cluster, folder / run, working)
    text = script_text(job)
    assert as_sbatch_reads(text)["--partition"] == partition
    assert as_sbatch_reads(text)["--output"] == (
        f"{folder}/{run}/launch/".replace("%", "%%") + "slurm-%j.out"
    )
    ran = subprocess.run(["bash"], input=text.encode(), cwd=folder, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    place, seen, *arguments = (folder / "python.called").read_bytes().decode().split("\0")[:-1]
    assert (place, seen) == (str(working), value)
    assert arguments[:2] == ["-m", "launch.clusters.slurm.batch"]
    assert arguments[-2:] == ["--", str(folder / run)]
    loaded = (folder / "module.called").read_bytes().decode().split("\0")[:-1]
    assert loaded == ["load", module]
    assert not list(folder.rglob("X"))


@pytest.mark.parametrize(
    ("cluster", "run", "complaint"),
    [
        ({}, "/runs/a\nb", "a backslash or a control"),
        ({}, "/runs/a\\b", "a backslash or a control"),
        ({"container": {"kind": "pyxis", "image": "i"}}, "/runs/a:b", "cannot express"),
    ],
)
def test_what_a_script_cannot_say_is_refused_by_name(
    cluster: dict[str, Any], run: str, complaint: str
) -> None:
    with pytest.raises(CommandError, match=complaint) as refusal:
        script_text(make(cluster, Path(run)))
    assert "\n" not in str(refusal.value)
    assert repr(run) in str(refusal.value) or repr(run)[1:-1] in str(refusal.value)


def test_a_value_is_quoted_only_where_it_must_be() -> None:
    assert quoted_value("gres", "gpu:a100:4") == "gpu:a100:4"
    assert quoted_value("comment", 'a "b" \\') == '"a \\"b\\" \\\\"'


def test_all_of_a_description_reaches_sbatch() -> None:
    cluster = {
        "partition": "gpu,long",
        "account": "mine",
        "qos": "high",
        "constraint": "a100&nvlink",
        "reservation": "week",
        "exclusive": True,
        "memory": "480G",
        "cpus_per_task": 8,
        "time_limit": "1-00:00:00",
        "signal_seconds": 300,
        "tasks": "per_gpu",
        "nodelist": ["node[1-4]", "node9"],
        "exclude": ["node2"],
        "options": {"licenses": "scratch:1", "overcommit": None},
    }
    job = make(cluster, gpus_per_node=4)
    options = as_sbatch_reads(script_text(SlurmJob(**{**vars(job), "excluded": ("node7",)})))
    assert options.pop("--job-name", "").startswith("spade-a-")  # type: ignore[union-attr]
    assert options == {
        "--dependency": "singleton",
        "--nodes": "2",
        "--ntasks-per-node": "4",
        "--cpus-per-task": "8",
        "--gpus-per-node": "4",
        "--mem": "480G",
        "--time": "1-00:00:00",
        "--signal": "B:USR1@300",
        "--output": "/runs/a/launch/slurm-%j.out",
        "--open-mode": "append",
        "--partition": "gpu,long",
        "--account": "mine",
        "--qos": "high",
        "--constraint": "a100&nvlink",
        "--reservation": "week",
        "--nodelist": "node[1-4],node9",
        "--exclude": "node2,node7",
        "--requeue": None,
        "--exclusive": None,
        "--licenses": "scratch:1",
        "--overcommit": None,
    }


def test_fewer_nodes_and_gpus_in_other_words() -> None:
    options = as_sbatch_reads(
        script_text(make({"gres": "gpu:v100:2"}, nodes=4, min_nodes=2, gpus_per_node=2))
    )
    assert options["--nodes"] == "2-4"
    assert options["--mincpus"] == options["--cpus-per-task"] == "2"
    assert options["--gres"] == "gpu:v100:2"
    assert not {"--ntasks-per-node", "--gpus-per-node", "--time"} & set(options)


def test_jobs_of_one_run_have_one_name_and_no_other_run_has_it() -> None:
    same = {make(run=Path("/runs/a")).name, make({"qos": "x"}, Path("/runs/a"), nodes=3).name}
    assert len(same | {make(run=Path("/other/a")).name}) == 2


@pytest.mark.parametrize(
    ("settings_text", "complaint"),
    [
        ("time_limit: 12:00:00", "time_limit: 43200 is a number to YAML"),
        ("time_limit: soon", "time_limit: 'soon' is no time"),
        ('time_limit: "00:00:00"', "is no time"),
        (
            'time_limit: "2"\nsignal_seconds: 120',
            "signal_seconds 120 is not less than time_limit 2",
        ),
        ("options: {output: x}", "options.output is set by the launcher; leave it out"),
        ("options: {time: x}", "options.time has a place of its own; use time_limit"),
        ("options: {qos: x}", "options.qos has a place of its own; use qos"),
        ("options: {--qos: x}", "options"),
        ("memory: lots", "memory"),
        ("partition: ''", "partition"),
        ("partition: 3", "partition"),
        ('account: "a\\nb"', "holds a control character"),
        ("tasks: per_core", "tasks"),
        ("container: {kind: docker, image: x}", "container.kind"),
        ("container: {kind: pyxis, image: x, mounts: ['a,b']}", "holds a comma"),
        ("partitoin: x", "did you mean partition?"),
    ],
)
def test_a_mistake_in_a_description_is_one_line(
    tmp_path: Path, settings_text: str, complaint: str
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(settings_text)
    with pytest.raises(ConfigError) as refusal:
        load_cluster(path, SlurmCluster)
    [line] = str(refusal.value).splitlines()
    assert complaint in line
    assert line.startswith(str(path))


def test_the_example_is_a_description_with_and_without_its_comments(tmp_path: Path) -> None:
    text = (REPOSITORY / "configs/clusters/slurm.yaml").read_text()
    assert load_cluster(REPOSITORY / "configs/clusters/slurm.yaml", SlurmCluster).time_limit
    path = tmp_path / "all.yaml"
    path.write_text(re.sub(r"^( *)# ( *[a-z_]+:( |$))", r"\1\2", text, flags=re.MULTILINE))
    everything = load_cluster(path, SlurmCluster)
    assert everything.container is not None
    assert everything.options == {"licenses": "scratch"}
    assert everything.nodes.modules == ("gcc/12", "cuda/12.4")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("12:00:00", 43200), ("1-00:00:01", 86401), ("48:00:00", 172800)],
)
def test_times(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


def read_back(step: StepSettings) -> StepSettings:
    parser = argparse.ArgumentParser()
    StepSettings.add_words(parser)
    return StepSettings.of_words(parser.parse_args(step.to_words()))


@given(
    python=names,
    image=names,
    mounts=st.lists(names, max_size=2),
    kind=st.sampled_from(["apptainer", "pyxis"]),
)
def test_settings_of_steps_survive_the_command_line(
    python: str, image: str, mounts: list[str], kind: Any
) -> None:
    inside = ContainerSettings(
        kind=kind, image=image, mounts=tuple(mount.replace(",", "") or "m" for mount in mounts)
    )
    step = StepSettings(python, 2, "per_gpu", 2, "gpu:2", 4, "ib0", inside)
    assert read_back(step) == step
    assert read_back(StepSettings(python, 1)) == StepSettings(python, 1)


def test_steps_without_and_with_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No container program runs here: the words alone are looked at."""
    monkeypatch.chdir("/tmp")
    meeting = Rendezvous(("node1", "node2"), 12345)
    config = Path("/runs/a/launch/config.yaml")
    plain = rank_step(StepSettings("/py", 2, "per_node", 2, cpus_per_task=8), meeting, config)
    assert shlex.join(plain) == (
        "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=node1,node2 --input=none "
        "--mpi=none --export=ALL --cpus-per-task=8 --gpus-per-node=2 --kill-on-bad-exit=0 "
        "--wait=120 /py -m launch.clusters.node --nodes 2 --node-rank-variable SLURM_NODEID "
        "--processes 2 --master-address=node1 --master-port 12345 -- /runs/a/launch/config.yaml"
    )
    apptainer = ContainerSettings(kind="apptainer", image="i.sif", mounts=("/data", "/a:/b"))
    boxed = rank_step(
        StepSettings("python3", 2, "per_gpu", 2, container=apptainer), meeting, config
    )
    assert "--ntasks=4" in boxed
    after = shlex.join(boxed[boxed.index("--wait=120") + 1 :])
    assert after.startswith(
        "apptainer exec --nv --bind=/tmp:/tmp --bind=/runs/a:/runs/a --bind=/data:/data "
        "--bind=/a:/b --pwd=/tmp i.sif python3 -m launch.clusters.slurm.rank --nodes 2"
    )
    pyxis = ContainerSettings(kind="pyxis", image="docker://x#y:1", mounts=("/data",))
    check = health_step(StepSettings("python3", 1, container=pyxis), ("node1",), Path("/runs/a"))
    assert "--container-image=docker://x#y:1" in check
    assert "--container-mounts=/tmp:/tmp,/runs/a:/runs/a,/data:/data" in check
    assert check[-3:] == ["launch.clusters.doctor.node_check", "--", "/runs/a"]


@given(st.integers(1, 2**31), st.integers(0, 15))
def test_ports_are_free_for_the_taking_and_differ_between_starts(job: int, attempt: int) -> None:
    assert 10000 <= meeting_port(job, attempt) < 30000
    assert meeting_port(job, attempt) != meeting_port(job, attempt + 1)
    assert meeting_port(job, attempt) != meeting_port(job + 1, attempt)


def test_the_answers_of_nodes_are_read_piece_by_piece() -> None:
    """As srun prints them: cut lines, each piece with the number of its task."""
    answers = [
        '{"findings": [{"name": "folder", "state": "ok", "value": "1 GiB"}]}',
        '{"findings": [{"name": "GPUs", "state": "fail", "value": "3 x H100"}, {"state": "warn"}]}',
        "bash: python: not found",
    ]
    pieces = [
        f"{task}: {text[i : i + 20]}"
        for i in (0, 20, 40, 60, 80)
        for task, text in enumerate(answers)
    ]
    assert failed_hosts(["a", "b", "c", "d"], "\n".join(pieces)) == {
        "b": "GPUs: 3 x H100",
        "c": "gave no answer to the check of nodes",
        "d": "gave no answer to the check of nodes",
    }


def test_a_node_is_left_out_for_a_day(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    assert excluded_hosts(tmp_path) == {}
    exclude_hosts(tmp_path, {"node1": "no disk"})
    exclude_hosts(tmp_path, {"node1": "no GPU", "node2": "x"})
    assert excluded_hosts(tmp_path) == {"node1": "no GPU", "node2": "x"}
    assert excluded_hosts(tmp_path, now=time.time() + EXCLUDED_SECONDS) == {}
    (tmp_path / "launch" / "excluded.json").write_text('[3, {"host": "a"}]')
    assert excluded_hosts(tmp_path) == {}


def test_a_persons_request_to_stop_is_told_apart_from_ours(tmp_path: Path) -> None:
    request = RunFolder(tmp_path).stop_request
    ours = StopFile(tmp_path, "7")
    ours.make()
    ours.make()
    assert not ours.others
    StopFile(tmp_path, "8").remove()
    assert not request.exists()
    request.touch()
    ours.make()
    ours.remove()
    assert ours.others
    assert request.exists()


def put_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_what_slurm_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="sbatch is not on PATH; run this where"):
        controller.submit(Path("/s"))
    put_program(
        tmp_path, "sbatch", "echo 'sbatch: error: a' >&2; echo 'sbatch: error: b' >&2; exit 1"
    )
    with pytest.raises(CommandError, match=r"^sbatch refuses: a; b$"):
        controller.submit(Path("/s"))
    put_program(tmp_path, "sbatch", "echo welcome; echo '12;cluster'")
    assert controller.submit(Path("/s")) == "12"
    put_program(tmp_path, "sbatch", "echo welcome")
    with pytest.raises(CommandError, match="gave no job number"):
        controller.submit(Path("/s"))


def test_a_job_hands_down_nothing_of_its_own() -> None:
    environment = {"SLURM_JOB_ID": "1", "SLURM_CONF": "c", "SBATCH_ACCOUNT": "a", "PATH": "p"}
    assert controller.clean_environment(environment) == {
        "SLURM_CONF": "c",
        "SBATCH_ACCOUNT": "a",
        "PATH": "p",
    }


def test_outside_of_slurm_the_program_of_a_job_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    words = StepSettings(sys.executable, 1).to_words()
    code = batch_main(["--min-nodes", "1", "--max-restarts", "0", *words, "--", str(tmp_path)])
    assert code == 1
    assert "this is no job of Slurm; start it by `spade launch slurm`" in capsys.readouterr().err
