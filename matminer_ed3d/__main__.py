"""``python -m matminer_ed3d``: the command ``ed3d``."""

import sys

from matminer_ed3d.cli import main

if __name__ == "__main__":
    sys.exit(main())
