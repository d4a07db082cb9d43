"""Whether the machines of a cluster can run one training together, and what to mend."""
