"""python -m vldm_mini COMMAND: see `cli`."""
import sys

from vldm_mini.cli import main

if __name__ == "__main__":
    sys.exit(main())
