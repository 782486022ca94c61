"""One file a command of ``neuromamba``: flags, a call, an exit status."""
