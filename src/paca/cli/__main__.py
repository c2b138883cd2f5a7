"""Makes `python -m paca.cli` the same as `paca`."""

import sys

from paca.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
