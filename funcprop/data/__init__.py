"""Tables, CSV files and the digits, read into arrays."""
