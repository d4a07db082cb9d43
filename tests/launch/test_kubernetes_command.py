"""``spade launch kubernetes``: what is checked, what kubectl gets, and what its pods really run.

No cluster is at hand here. `kubectl` is a small real program on PATH that keeps its arguments and
standard input; the pods' commands are run as they stand in the manifest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import run
from pretrain.config import RunConfig

WriteConfig = Callable[[dict[str, Any]], Path]
KUBECTL = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "arguments.json").write_text(json.dumps(sys.argv[1:]))
(here / "stdin.yaml").write_bytes(sys.stdin.buffer.read())
if (here / "refuse").exists():
    sys.exit("error: trainjobs.trainer.kubeflow.org is forbidden")
print("configmap/tiny-run created")
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a kubectl that records."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text(KUBECTL.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def cluster(tmp_path: Path, prose_data: Path) -> Callable[..., Path]:
    """Writes a description of a cluster that has the tests' folders as volumes."""

    def write(**settings: Any) -> Path:
        places = (tmp_path, prose_data)
        volumes = [{"mount_path": str(p), "claim": f"c{n}"} for n, p in enumerate(places)]
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump({"volumes": volumes, "volumes_here": True, **settings}))
        return path

    return write


def launch(*arguments: str | Path) -> int:
    return run(["launch", "kubernetes", *map(str, arguments)])


def test_kubectl_gets_the_manifest_and_nothing_is_a_shell_s(
    run_settings: dict[str, Any],
    write_config: WriteConfig,
    cluster: Callable[..., Path],
    kubectl: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hostile = "a; touch pwned $(touch pwned) `touch pwned`"
    run_settings["name"] = "Tiny_Run.1"
    run_settings["run_dir"] += " $(touch pwned); y"
    config = write_config(run_settings)
    description = cluster(context=hostile, namespace="team-a", kind="jobset")
    options = (config, "train.max_steps=4", "--cluster", description, "--nodes", "2")
    assert launch(*options, "--dry-run") == 0
    shown = capfd.readouterr().out
    assert not (kubectl / "arguments.json").exists(), "a dry run starts nothing"
    assert not Path(run_settings["run_dir"]).exists(), "a dry run writes nothing"

    assert launch(*options) == 0
    told = capfd.readouterr().out
    arguments = json.loads((kubectl / "arguments.json").read_text())
    assert arguments == [f"--context={hostile}", "--namespace=team-a", "apply", "--filename=-"]
    submitted = (kubectl / "stdin.yaml").read_text(encoding="utf-8")
    assert submitted == shown, "the dry run shows exactly what is submitted"
    assert "configmap/tiny-run created" in told
    (name,) = {made["metadata"]["name"] for made in yaml.safe_load_all(submitted)} - {
        f"{made['metadata']['name']}-run" for made in yaml.safe_load_all(submitted)
    }
    assert f"delete jobset.jobset.x-k8s.io/{name}" in told

    configuration = next(iter(yaml.safe_load_all(submitted)))["data"]["config.yaml"]
    assert yaml.safe_load(configuration)["train"]["max_steps"] == 4
    frozen = Path(run_settings["run_dir"]).parent / "frozen.yaml"
    frozen.write_text(configuration, encoding="utf-8")
    assert RunConfig.load(frozen) == RunConfig.load(config, ["train.max_steps=4"])
    events = Path(run_settings["run_dir"], "Tiny_Run.1", "launch", "events.jsonl")
    (event,) = map(json.loads, events.read_text().splitlines())
    assert (event["launcher"], event["event"], event["nodes"]) == ("kubernetes", "submitted", 2)
    assert not Path("pwned").exists()


def test_commands_that_are_shown_can_be_pasted(
    run_settings: dict[str, Any],
    write_config: WriteConfig,
    cluster: Callable[..., Path],
    kubectl: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By a real bash, with a hostile context in them."""
    context = "x; touch pwned; $(touch pwned)"
    assert launch(write_config(run_settings), "--cluster", cluster(context=context)) == 0
    shown = [line for line in capfd.readouterr().out.splitlines() if "kubectl" in line]
    assert len(shown) == 3
    for line in shown:
        command = line.partition(": ")[2]
        subprocess.run(["bash", "-c", command], cwd=kubectl, check=True, capture_output=True)
        assert f"--context={context}" in json.loads((kubectl / "arguments.json").read_text())
    assert not (kubectl / "pwned").exists()


def test_mistakes_are_told_before_anything_is_submitted(
    run_settings: dict[str, Any],
    write_config: WriteConfig,
    cluster: Callable[..., Path],
    kubectl: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def complaint(*arguments: str | Path) -> str:
        assert launch(*arguments) == 1
        assert not (kubectl / "arguments.json").exists()
        return capfd.readouterr().err

    config = write_config(run_settings)
    here = cluster()
    assert "global_batch_size 8" in complaint(config, "--cluster", here, "--nodes", "3")
    said = complaint(config, "--cluster", here, "--nodes", "2", "--min-nodes", "1")
    assert "--min-nodes 1: Kubernetes waits" in said
    said = complaint(config, "run_dir=/elsewhere", "--cluster", here, "--dry-run")
    assert "run_dir: /elsewhere/tiny lies on no volume and would be lost" in said
    assert str(tmp_path) in said, "says what is mounted"
    (tmp_path / "cluster.yaml").write_text(
        yaml.safe_dump({"volumes": [{"mount_path": "/", "claim": "a"}]})
    )
    assert "no place for a volume" in complaint(config, "--cluster", tmp_path / "cluster.yaml")
    elsewhere = [{"mount_path": "/runs", "claim": "a"}]
    there = cluster(volumes=elsewhere, volumes_here=False)
    said = complaint(config, "run_dir=/runs", "model.vocab_size=512", "--cluster", there)
    assert "not looked at" in said
    assert f"data.train: {run_settings['data']['train']} lies on no volume" in said
    read_only = cluster(volumes=[{**elsewhere[0], "read_only": True}], volumes_here=False)
    said = complaint(config, "run_dir=/runs", "model.vocab_size=512", "--cluster", read_only)
    assert "read_only: true" in said


def test_kubectl_refusing_or_missing_is_one_line(
    run_settings: dict[str, Any],
    write_config: WriteConfig,
    cluster: Callable[..., Path],
    kubectl: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (kubectl / "refuse").touch()
    options = (write_config(run_settings), "--cluster", cluster())
    assert launch(*options) == 1
    assert "kubectl: error: trainjobs.trainer.kubeflow.org is forbidden" in capfd.readouterr().err
    monkeypatch.setenv("PATH", str(kubectl.parent))
    assert launch(*options) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "kubectl is not found" in line
    assert "--dry-run" in line


@pytest.mark.slow
def test_the_pods_of_a_manifest_really_train_and_survive_an_eviction(
    run_settings: dict[str, Any],
    write_config: WriteConfig,
    cluster: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two pods' commands, with their variables, as two processes that meet on this machine."""
    run_settings["train"]["max_steps"] = 60
    run_settings["evaluation"]["every_steps"] = run_settings["checkpoint"]["every_steps"] = 60
    options = ("--cluster", cluster(), "--nodes", "2", "--dry-run")
    assert launch(write_config(run_settings), *options) == 0
    config_map, runtime, job = yaml.safe_load_all(capfd.readouterr().out)
    config = tmp_path / "mounted.yaml"
    config.write_text(config_map["data"]["config.yaml"], encoding="utf-8")
    group = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = group["template"]["spec"]["containers"]
    name = job["metadata"]["name"]
    # What differs between a pod and this machine: names in DNS, the place of the mounted file.
    here = {
        f"{name}-node-0-0.{name}": "127.0.0.1",
        "/etc/spade/config.yaml": str(config),
        "python": sys.executable,
    }
    assert here.keys() <= set(container["command"])
    command = [here.get(word, word) for word in container["command"]]
    variables = {item["name"]: item["value"] for item in container["env"]}
    run_folder = Path(run_settings["run_dir"], run_settings["name"])

    def run_pods(evict: int | None = None) -> list[int]:
        pods = [
            subprocess.Popen(
                command,
                env={**os.environ, **variables, "JOB_COMPLETION_INDEX": str(index)},
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
            )
            for index in range(group["completions"])
        ]
        try:
            if evict is not None:
                wait_until(lambda: bool(steps(run_folder)), pods[0])
                pods[evict].terminate()  # as the kubelet does
            return [pod.wait(timeout=240) for pod in pods]
        finally:
            for pod in pods:
                pod.kill()

    assert run_pods(evict=1) == [75, 75], "one pod is evicted: all save and leave"
    (rule,) = (
        rule
        for rule in group["podFailurePolicy"]["rules"]
        if 75 in rule.get("onExitCodes", {}).get("values", [])
    )
    assert rule["action"] == "Ignore", "so that the Job controller makes both again"
    stopped = max(steps(run_folder))
    assert stopped < 60
    assert run_pods() == [0, 0]
    assert steps(run_folder) == list(range(1, 61)), "no step twice, none left out"
    environment = json.loads((run_folder / "environment.json").read_text())
    assert environment["processes"] == 2


def steps(run_folder: Path) -> list[int]:
    """The training steps that a run has told."""
    try:
        lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [value["step"] for value in map(json.loads, lines) if "loss" in value]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, "ended before its time"
        assert time.monotonic() < deadline
        time.sleep(0.1)
