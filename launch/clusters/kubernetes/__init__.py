"""Kubernetes: a run as a TrainJob, a PyTorchJob, an MPIJob or a JobSet, handed to kubectl."""
