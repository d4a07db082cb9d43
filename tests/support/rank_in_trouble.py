"""A rank that trains nothing but talks to the others as training ranks do, and gets into trouble.

``python rank_in_trouble.py FOLDER OPTIONS``; OPTIONS is JSON:

    behaviour            one a rank: train, start slowly, go on (without the others), and at step 3
                         leave, fail or hang
    steps                number of steps
    timeout              of collective operations, in seconds
    watchdog, liveness   settings
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.resilience.collective_timeout import carry_timeout
from pretrain.resilience.collectives import CollectiveRecorder
from pretrain.resilience.liveness import Liveness
from pretrain.resilience.settings import LivenessSettings, WatchdogSettings
from pretrain.resilience.stop import StopRequest
from pretrain.resilience.watchdog import Watchdog

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
rank = int(os.environ["RANK"])
behaviour = options["behaviour"][rank]
StopRequest().install()
recorder = CollectiveRecorder()
watchdog = Watchdog(
    WatchdogSettings(**options["watchdog"]), rank=rank, log_folder=folder, recorder=recorder
)
dist.init_process_group("gloo")
recorder.attach()
carry_timeout(options["timeout"])
liveness = Liveness(
    LivenessSettings(**options["liveness"]),
    rank=rank,
    world_size=len(options["behaviour"]),
    host=os.environ["MASTER_ADDR"],
    group=dist.new_group(backend="gloo"),
    log_folder=folder,
    recorder=recorder,
)
watchdog.announce = liveness.abort
group = dist.new_group()  # as DeepSpeed makes its own


def train(steps: int) -> None:
    for step in range(steps):
        watchdog.beat(f"step {step}")
        (folder / f"rank-{rank}-step-{step}").touch()
        if step == 0 and behaviour == "start slowly":
            time.sleep(1.5)
        if step == 3 and behaviour == "leave":
            return
        if step == 3 and behaviour == "fail":
            raise ValueError("made to fail")
        if step == 3 and behaviour == "hang":
            if os.fork() == 0:  # a worker of the loader, which may outlive its rank for a while
                time.sleep(10)
                os._exit(0)
            time.sleep(600)  # as in a collective of NCCL: it ends by nobody's death
        if step < 3 or behaviour in ("train", "start slowly"):
            dist.all_reduce(torch.ones(5, 7), group=group)
        watchdog.first_step_done()
        time.sleep(0.05)


try:
    with watchdog, liveness:
        train(options["steps"])
except ValueError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
