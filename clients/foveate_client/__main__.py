"""`python -m foveate_client` is the `foveate` command."""

import sys

from foveate_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
