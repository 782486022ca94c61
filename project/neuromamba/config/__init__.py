"""Names that a user can type, and frozen configurations; neither torch nor numpy."""
