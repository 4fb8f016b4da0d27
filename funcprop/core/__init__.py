"""What all else stands on."""
