"""``python -m splitpoint`` is ``splitpoint``."""

import sys

from splitpoint.cli import main

if __name__ == "__main__":
    sys.exit(main())
