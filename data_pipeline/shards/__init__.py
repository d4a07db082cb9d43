"""The format: tars of ids, the index beside each, and the manifest of a data set."""
