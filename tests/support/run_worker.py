"""The worker as a script: ``python run_worker.py CONFIG [a.b=c ...]``."""

from __future__ import annotations

import sys
from pathlib import Path

from pretrain.config import RunConfig
from pretrain.worker import main

if __name__ == "__main__":
    try:
        sys.exit(main(RunConfig.load(Path(sys.argv[1]), sys.argv[2:])))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
