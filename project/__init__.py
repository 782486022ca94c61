"""The source root of the package ``neuromamba``, and the paths that the reference promises.

With the repository on the path, ``import project.module...`` works as in the reference's layout.
"""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)
