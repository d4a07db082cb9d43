"""Several hosts and a Slurm over them, on one machine: what the tests of launchers run on."""
