"""Recipes that take an exported checkpoint to a task: data in, scores and predictions out.

`recipe` says what a recipe has to tell, `run` trains any of them with several seeds.
"""
