"""Which usual mistake explains a wrong gradient."""
