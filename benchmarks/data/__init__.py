"""The data path beside its peers: reading, resuming, ordering, objectives, preparing.

python -m benchmarks.data --help
"""
