"""Starting a run on many machines: what a cluster is, and a launcher for each kind of it."""
