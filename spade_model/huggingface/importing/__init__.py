"""Weights of others as folders that `transformers` loads with our classes, one module a source."""
