"""Pages about runs, the papers' tables, the quality page of a store."""
