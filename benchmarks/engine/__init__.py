"""What the engine costs, and what it survives.

python -m benchmarks.engine
"""
