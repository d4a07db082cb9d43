"""The spade command and everything that starts processes."""
