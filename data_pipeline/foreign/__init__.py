"""Tars that others made: indexing them, and reading their texts as ids."""
