"""`python -m lorakit` is the `lorakit` command."""

import sys

from lorakit.cli import main

if __name__ == "__main__":
    sys.exit(main())
