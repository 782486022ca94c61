"""Time and memory of a training step: the same as ``neuromamba profile``."""

import sys

if __name__ == "__main__":
    from neuromamba.commands.profile import main

    sys.exit(main())
