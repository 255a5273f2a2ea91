"""Studies of arms x seeds: accuracy against wall-clock."""
