"""What several benchmarks need: tables and how they are shown, and what the machine is."""
