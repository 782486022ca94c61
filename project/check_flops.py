"""Parameters, tokens and FLOPs of a model: the same as ``neuromamba flops``."""

import sys

if __name__ == "__main__":
    from neuromamba.commands.flops import main

    sys.exit(main())
