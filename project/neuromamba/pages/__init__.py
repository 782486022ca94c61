"""HTML pages, tables and figures that know nothing of models."""
