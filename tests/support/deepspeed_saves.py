"""The worker, and at its end DeepSpeed's own checkpoint: ``python deepspeed_saves.py CONFIG FOLDER
[a.b=c ...]`` saves to FOLDER what the engine holds after the last update."""

from __future__ import annotations

import sys
from pathlib import Path

from pretrain.config import RunConfig
from pretrain.loop import Trainer
from pretrain.worker import main

if __name__ == "__main__":
    train = Trainer.run

    def train_and_save(self: Trainer) -> bool:
        finished = train(self)
        self.engine.deepspeed.save_checkpoint(sys.argv[2])
        return finished

    Trainer.run = train_and_save  # type: ignore[method-assign]
    sys.exit(main(RunConfig.load(Path(sys.argv[1]), sys.argv[3:])))
