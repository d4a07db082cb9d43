"""The images that the manifests name: one set of parts, in Docker's words and in Apptainer's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml

from launch.clusters.kubernetes.settings import KubernetesCluster

REPOSITORY = Path(__file__).resolve().parents[2]
CONTAINERS = REPOSITORY / "launch" / "containers"


def dockerfile() -> list[tuple[str, str]]:
    """Instructions with their words; lines that go on are one."""
    text = (CONTAINERS / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def definition() -> dict[str, list[str]]:
    """Sections of the Apptainer definition, its header under ""."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in (CONTAINERS / "spade.def").read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            name = line.strip()
            sections[name] = []
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    return sections


def copied_by_docker() -> dict[str, str]:
    """Where each path of the repository ends up."""
    copied = {}
    for instruction, words in dockerfile():
        if instruction in ("COPY", "ADD"):
            *sources, target = words.split()
            for source in sources:
                inside = f"{target}{PurePosixPath(source).name}" if target[-1] == "/" else target
                copied[source] = inside
    return copied


def copied_by_apptainer() -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in definition()["%files"]}


def docker_arguments() -> dict[str, str]:
    words = [words for instruction, words in dockerfile() if instruction == "ARG"]
    return dict(word.split("=", 1) for word in words)


def test_both_copy_the_same_things_to_the_same_places() -> None:
    assert copied_by_docker() == copied_by_apptainer()
    for source in copied_by_docker():
        assert (REPOSITORY / source).exists(), source


def test_all_that_is_installed_is_copied_and_reaches_the_builder() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^include = \[(.+)\]$", project, re.MULTILINE)
    needed = set(re.findall(r'"(\w+)\*"', packages)) | {"pyproject.toml", "constraints.txt"}
    needed |= set(re.findall(r'^(?:readme|license-files) = \[?"(.+?)"', project, re.MULTILINE))
    assert len(needed) == 9
    copied = set(copied_by_docker())
    assert needed <= copied
    ignore = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignore, "nothing reaches the builder but what is named"
    for source in copied:
        assert f"!{source.split('/')[0]}" in ignore


def test_both_take_the_same_arguments_and_run_the_same_parts() -> None:
    arguments = dict(line.split("=", 1) for line in definition()["%arguments"])
    assert arguments == docker_arguments()
    called = re.compile(r"bash (\S+/install\.sh) (\w+)")
    by_docker = [called.findall(words)[0] for name, words in dockerfile() if name == "RUN"]
    by_apptainer = [called.findall(line)[0] for line in definition()["%post"] if "bash" in line]
    assert by_docker == by_apptainer
    assert [part for _, part in by_docker] == ["system", "torch", "package"]
    assert {path for path, _ in by_docker} == {copied_by_docker()["launch/containers/install.sh"]}


def test_everything_is_installed_under_the_constraints() -> None:
    script = (CONTAINERS / "install.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    installs = [line for line in script.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
    index = docker_arguments()["TORCH_INDEX"]
    environment = (REPOSITORY / "launch" / "environment.sh").read_text(encoding="utf-8")
    assert f'CPU_INDEX="{index}"' in environment, "the images take the CPU build from there too"
    extras = docker_arguments()["EXTRAS"].split(",")
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert set(extras) <= set(re.findall(r"^(\w+) = \[", project, re.MULTILINE))


def test_the_image_has_the_name_and_the_user_that_manifests_expect() -> None:
    example = yaml.safe_load((REPOSITORY / "configs" / "clusters" / "kubernetes.yaml").read_text())
    built = re.findall(r"-t (\S+)", (CONTAINERS / "Dockerfile").read_text(encoding="utf-8"))
    default = KubernetesCluster()
    assert set(built) == {example["image"]} == {default.image}
    instructions = dockerfile()
    users = [words for instruction, words in instructions if instruction == "USER"]
    assert users == ["spade"]
    script = (CONTAINERS / "install.sh").read_text(encoding="utf-8")
    assert f"useradd --create-home --uid {default.user} --shell /bin/bash spade" in script
    assert ("ENTRYPOINT", '["spade"]') in instructions


def test_sshd_is_where_the_mpi_job_looks_for_it() -> None:
    made = (REPOSITORY / "launch" / "clusters" / "kubernetes" / "mpijob.py").read_text()
    script = (CONTAINERS / "install.sh").read_text(encoding="utf-8")
    (file,) = re.findall(r'"-f", "(\S+)"', made)
    (port,) = re.findall(r"_SSH_PORT = (\d+)", made)
    (folder,) = re.findall(r'_SSH_FOLDER = "(\S+)"', made)
    assert f"cat >{file} " in script
    assert set(re.findall(r"Port (\d+)", script)) == {port}
    keys = re.findall(r"(?:HostKey|AuthorizedKeysFile|IdentityFile) (\S+)/\w+", script)
    assert set(keys) == {folder}


def test_the_scripts_are_bash() -> None:
    for name, shell in (("install.sh", "bash"), ("known-host", "sh")):
        subprocess.run([shell, "-n", str(CONTAINERS / name)], check=True)
    usage = subprocess.run(
        ["bash", str(CONTAINERS / "install.sh"), "nothing"], capture_output=True, check=False
    )
    assert usage.returncode == 2


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_a_host_is_known_by_the_jobs_own_key(tmp_path: Path) -> None:
    """What ssh reads from the script is a line that ssh-keygen finds the host in."""
    key = tmp_path / "id_rsa"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-C", "a comment", "-f", key],
        check=True,
    )
    script = (CONTAINERS / "known-host").read_text(encoding="utf-8")
    script = script.replace("/home/spade/.ssh", str(tmp_path))
    line = subprocess.run(
        ["sh", "-c", script, "known-host", "[worker-0.job.svc]:2222"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (tmp_path / "known_hosts").write_text(line, encoding="utf-8")
    found = subprocess.run(
        ["ssh-keygen", "-F", "[worker-0.job.svc]:2222", "-f", tmp_path / "known_hosts"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert key.with_suffix(".pub").read_text(encoding="utf-8").split()[1] in found
