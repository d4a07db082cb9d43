"""Optimizers, parameter groups, and everything that moves with the step."""
