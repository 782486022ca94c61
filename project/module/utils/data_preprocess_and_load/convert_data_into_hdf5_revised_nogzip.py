"""``neuromamba convert-reference --compression none``: contiguous, uncompressed data sets."""

import functools
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from neuromamba.commands import convert_reference

main = functools.partial(convert_reference.main, compression="none")

if __name__ == "__main__":
    sys.exit(main())
