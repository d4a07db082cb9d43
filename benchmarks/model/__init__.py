"""The network beside its peers: speed, memory, kernel, share of the state space, length.

python -m benchmarks.model --help
"""

import os

# Threads that wait must not count as work: CPU time is compared. Read when torch is loaded, and by
# the processes that are started for single cells.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
