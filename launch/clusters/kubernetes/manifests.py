"""All that a run needs on a cluster, as one YAML text for kubectl."""

from __future__ import annotations

import re
from typing import Any

from launch.clusters.kubernetes.jobset import jobset
from launch.clusters.kubernetes.mpijob import mpi_config_map, mpi_job
from launch.clusters.kubernetes.pods import Workload, config_map
from launch.clusters.kubernetes.pytorchjob import pytorch_job
from launch.clusters.kubernetes.trainjob import train_job, training_runtime

# YAML readers differ about words such as y, off, 0o7 or 1_0: what is not surely a word is quoted.
_SURELY_A_WORD = re.compile(r"[A-Za-z/][A-Za-z0-9/_.-]+")
_NOT_WORDS = {"true", "false", "null", "none", "yes", "no", "on", "off"}


def manifests(workload: Workload) -> list[dict[str, Any]]:
    """The objects, in the order in which they are to be made: the job comes last."""
    kind = workload.cluster.kind
    if kind == "trainjob":
        return [config_map(workload), training_runtime(workload), train_job(workload)]
    if kind == "pytorchjob":
        return [config_map(workload), pytorch_job(workload)]
    if kind == "mpijob":
        return [mpi_config_map(workload), mpi_job(workload)]
    return [config_map(workload), jobset(workload)]


def to_manifest(objects: list[dict[str, Any]]) -> str:
    """Write objects as YAML documents, in which every text stays a text for every reader."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """The safe dumper, without references between documents, and with careful quotes."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=_style(text))

    Dumper.add_representer(str, write_text)
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, explicit_start=True, width=4096)


def _style(text: str) -> str | None:
    if _SURELY_A_WORD.fullmatch(text) and text.lower() not in _NOT_WORDS:
        return None
    # A configuration is shown line by line, where nothing in it needs escapes.
    if re.fullmatch(r"(?:[!-~][ -~]*[!-~]?\n)+(?:[ -~]*[!-~]\n)*", text):
        return "|"
    return '"'
