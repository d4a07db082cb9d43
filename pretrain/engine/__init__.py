"""DeepSpeed, started the one way this project uses it, and the numbers it holds."""
