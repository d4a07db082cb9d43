"""What it costs to cut one sequence over several processes, and what it makes possible."""
