"""Says whether this machine can take part: ``python -m launch.clusters.doctor.node_check FOLDER``.

Prints one JSON object on one line, with ``findings`` beside the facts, and ends with 1 where
something essential fails. Launchers run it before the ranks to leave bad machines out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.clusters.doctor.facts import gather
from launch.clusters.doctor.judging import judge_node


def main(arguments: Sequence[str]) -> int:
    """Examine this machine; 0 where nothing essential fails, else 1."""
    parser = argparse.ArgumentParser(prog="launch.clusters.doctor.node_check", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("--gpus-per-node", type=int, help="GPUs this machine should have")
    options = parser.parse_args(arguments)
    facts = gather(options.folder)
    findings = judge_node(facts, options.gpus_per_node)
    rows = [finding.to_dict() for finding in findings]
    print(json.dumps({**facts.to_dict(), "findings": rows}), flush=True)
    return int(any(finding.state == "fail" for finding in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
