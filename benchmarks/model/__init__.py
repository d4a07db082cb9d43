"""The network beside its peers: speed, memory, kernel, share of the state space, length.

python -m benchmarks.model --help
"""
