"""Learning rules: how to get a gradient-like tree, one rule a file."""
