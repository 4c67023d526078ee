"""What phases hand to each other: scores, positions, where they come from, and records of runs."""
