"""The table of cases, a family of layers a file."""
