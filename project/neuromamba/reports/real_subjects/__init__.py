"""Tables of results on real, public subjects: ``neuromamba reproduce --table``."""
