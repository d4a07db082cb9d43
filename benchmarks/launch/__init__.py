"""How long the launchers take: to the first step, and back to training after a rank's death.

python -m benchmarks.launch
"""
