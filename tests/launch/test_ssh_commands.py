"""What ssh is given, run by a real bash as a host would: hostile names execute nothing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import spade
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.clusters.settings import NodeSettings
from launch.clusters.ssh.connection import explain_refusal
from launch.clusters.ssh.hostfile import Host
from launch.clusters.ssh.plan import SshPlan
from launch.clusters.ssh.probe import Questions, own_versions, read_answer
from launch.clusters.ssh.settings import SshCluster

# Stands for the interpreter on a host: tells its arguments, its folder and one variable.
TELL = """#!{python}
import json, os, sys
variables = [os.environ.get("SPADE_TEST"), os.environ.get("PYTHONSAFEPATH")]
print(json.dumps([sys.argv[1:], os.getcwd(), *variables]))
"""
HOSTILE = ["a b", "'", '"', "`touch PWNED`", "$(touch PWNED)", "; touch PWNED #", "\n", "&", "*"]
NAMES = (
    st.lists(
        st.one_of(
            st.sampled_from(HOSTILE),
            st.text(
                st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), max_size=6
            ),
        ),
        min_size=1,
        max_size=5,
    )
    .map("".join)
    .filter(lambda name: name not in (".", "..") and len(name.encode()) < 100)
)


@given(folder=NAMES, run=NAMES, value=NAMES)
@settings(max_examples=25)
@example(folder="=", run="a b", value="a b")
def test_what_a_host_runs_is_what_was_meant(
    tmp_path_factory: pytest.TempPathFactory, folder: str, run: str, value: str
) -> None:
    base = tmp_path_factory.mktemp("host")
    place = base / "w" / folder
    place.mkdir(parents=True)
    python = place / "python"
    python.write_text(TELL.format(python=sys.executable))
    python.chmod(0o755)
    plan = SshPlan(
        cluster=SshCluster(nodes=NodeSettings(python=python, environment={"SPADE_TEST": value})),
        hosts=(Host("node1", 2), Host("me@node2", 2)),
        processes=2,
        config=base / run / "launch" / "config.yaml",
        working_folder=place,
    )
    for rank, words in enumerate(plan.agent_commands(plan.hosts, 1234)):
        *_, dashes, host, text = words
        assert (dashes, host) == ("--", plan.hosts[rank].name)
        arguments, where, variable, safe = _on_a_host(text, base)
        assert arguments[:2] == ["-m", "launch.clusters.node"]
        assert arguments[-2:] == ["--", str(plan.config)]
        assert arguments[arguments.index("--node-rank") + 1] == str(rank)
        assert "--master-address=node1" in arguments
        assert (where, variable, safe) == (str(place), value, "1")
    questions = Questions(str(plan.config), str(place), [folder, run], "node1")
    arguments, *_ = _on_a_host(plan.probe_command(plan.hosts[0], questions)[-1], base)
    assert Questions(**json.loads(arguments[-1])) == questions
    assert not [path for path in base.rglob("*") if path.name == "PWNED"]


def _on_a_host(text: str, folder: Path) -> list[object]:
    """What sshd does with the words it gets: the user's shell runs them as one line of text."""
    told = subprocess.run(
        ["bash", "-c", text], cwd=folder, capture_output=True, timeout=30, check=True
    )
    return json.loads(told.stdout)


def test_an_answer_is_found_among_whatever_a_login_prints(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("seen")
    questions = {
        "config": "/runs/none/launch/config.yaml",
        "token_file": str(token),
        "folders": [str(tmp_path), "no/such folder"],
        "first_machine": "localhost",
    }
    words = [sys.executable, "-m", "launch.clusters.ssh.probe", json.dumps(questions)]
    text = f"echo Welcome; echo -n 'no end of line'; {shlex.join(words)}; echo bye"
    told = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60)
    answer = read_answer(told.stdout)
    assert answer is not None, told
    assert answer.token == "seen"
    assert answer.missing == ["no/such folder"]
    assert answer.first_address in ("127.0.0.1", "::1")
    assert answer.versions == own_versions()
    assert answer.busy == []
    assert 1024 < answer.port < 65536
    assert read_answer("spade-host {}\n") is None
    assert read_answer("spade-host [\n") is None
    assert read_answer("Welcome\n") is None


def test_a_running_agent_of_the_same_run_is_found(tmp_path: Path) -> None:
    from launch.clusters.ssh.probe import processes_of_run

    config = str(tmp_path / "a b" / "config.yaml")
    wait = "import sys, time; print('ready', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", wait, "launch.clusters.node", "--", config]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert processes_of_run(config) == [other.pid]
        assert processes_of_run(config + "x") == []
        other.kill()


# What OpenSSH says, word by word; that it says so is seen in tests/cluster/test_ssh.py.
UNKNOWN = (
    "No ED25519 host key is known for node1 and you have requested strict checking.\n"
    "Host key verification failed.\n"
)
CHANGED = "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n" + UNKNOWN
SILENT = "ssh: connect to host node1 port 22: Connection timed out\n"
NAMELESS = "ssh: Could not resolve hostname node1: Name or service not known\n"
NO_FILE = "Can't open user config file a b: No such file or directory\n"


@pytest.mark.parametrize(
    ("said", "remedy", "passing"),
    [
        (UNKNOWN, "ssh -o StrictHostKeyChecking=ask -F 'a b' me@node1 true", False),
        (CHANGED, "ssh-keygen -R node1", False),
        ("me@node1: Permission denied (publickey).\n", "ssh-copy-id me@node1", False),
        (SILENT, "is it up?", True),
        (NAMELESS, "is it up?", True),
        (NO_FILE, "configuration of ssh", False),
        ("", "the connection was closed", True),
    ],
)
def test_what_ssh_complains_of_has_a_remedy(said: str, remedy: str, passing: bool) -> None:
    refusal = explain_refusal(SshCluster(config_file=Path("a b")), Host("me@node1", 1), said)
    assert refusal.problem.startswith("me@node1: ")
    assert "\n" not in refusal.problem
    assert remedy in refusal.problem
    assert refusal.passing == passing


def test_a_dry_run_prints_every_command_and_starts_none(run_settings, write_config, tmp_path):
    config = write_config(run_settings)
    hostfile = tmp_path / "my hosts.txt"
    hostfile.write_text("node1 slots=1\nme@node2 slots=1  # the other one\n")
    described = tmp_path / "cluster.yaml"
    described.write_text(yaml.safe_dump({"nodes": {"environment": {"NCCL_DEBUG": "$(reboot)"}}}))
    launch = ("launch", "ssh", config, "--hostfile", hostfile, "--cluster", described)
    shown = spade(*launch, "--dry-run")
    assert not (tmp_path / "runs").exists()
    commands = [line for line in shlex.split(shown, comments=True) if line.startswith("bash -c")]
    assert len(commands) == 4
    assert all("export NCCL_DEBUG='$(reboot)'" in shlex.split(line)[-1] for line in commands)
    *_, agent1, agent2 = (shlex.split(shlex.split(line)[-1].splitlines()[-1]) for line in commands)
    assert agent2[agent2.index("--node-rank") + 1] == "1"
    assert agent1[agent1.index("--nodes") + 1] == "2"
    assert agent1[-1] == str(tmp_path / "runs" / "tiny" / "launch" / "config.yaml")
    hostfile.write_text("node1 slots=3\n-oProxyCommand=reboot slots=3\n")
    complaint = spade(*launch, "--dry-run", code=1)
    assert f"error: {hostfile}, line 2: '-oProxyCommand=reboot' is no host" in complaint
    hostfile.write_text("node1 slots=3\n")
    assert "global_batch_size 8" in spade(*launch, "--dry-run", code=1)
    assert "--nodes 2 exceeds" in spade(*launch, "--nodes", "2", "--dry-run", code=1)
    described.write_text("wait_for_hosts_seconds: -1\n")
    assert "wait_for_hosts_seconds is -1" in spade(*launch, "--dry-run", code=1)


def test_the_example_of_a_cluster_loads() -> None:
    from launch.clusters.settings import load_cluster

    example = Path(__file__).parents[2] / "configs" / "clusters" / "ssh.yaml"
    cluster = load_cluster(example, SshCluster)
    assert cluster == SshCluster(nodes=cluster.nodes)
    assert set(yaml.safe_load(example.read_text())) == set(SshCluster.model_fields) - {
        "config_file"
    }
