"""Seeds: ``neuromamba/common/seeds.py``."""

from neuromamba.common.seeds import seed_run, stream

__all__ = ["seed_run", "stream"]
