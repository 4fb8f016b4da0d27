"""The layers, one family a file, forward and backward adjacent."""
