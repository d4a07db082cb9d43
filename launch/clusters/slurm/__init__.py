"""A run as a job of Slurm: its description, its script, and what keeps it going inside the job."""
