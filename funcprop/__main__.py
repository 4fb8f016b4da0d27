"""``python -m funcprop``, the same as the command ``funcprop``."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
