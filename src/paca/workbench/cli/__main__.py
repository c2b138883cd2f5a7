"""Makes `python -m paca.workbench.cli` the same as `paca`."""

import sys

from paca.workbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
