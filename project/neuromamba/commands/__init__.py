"""One file per command of ``neuromamba``: flags, a call, an exit status."""
