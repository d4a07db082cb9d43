"""The recipe ``lra``: Long Range Arena's tasks with an encoder that starts from nothing."""
