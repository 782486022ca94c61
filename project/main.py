"""Pre-train, fine-tune and test FMamba: the same as ``neuromamba train``."""

import sys

if __name__ == "__main__":
    from neuromamba.commands.train import main

    sys.exit(main())
