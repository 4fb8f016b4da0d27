"""Times and memory, as ratios to what others do; see README.md here.  Never part of the tests."""
