"""The training engine: configuration, loop, checkpoints, metrics, evaluation, export."""
