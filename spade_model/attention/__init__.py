"""Attention: who may see whom, what distance means, and fast ways to compute it."""
