"""Sphinx's configuration: ``make docs`` builds the site from the repository's own Markdown files.

The source folder is the repository, not ``docs/``, so that a relative link or picture means the
same on the site as where the files are read as they are; ``include_patterns`` names the pages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT / "project"), str(DOCS / "_extensions")]

from neuromamba import __version__  # noqa: E402

project = "NeuroMamba"
author = "the contributors of this repository"
copyright = "the contributors; Apache License 2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "command_pages",
    "repository_pages",
]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/reference/**",
    "docs/gallery/**",
    "paper/**.md",
    "benchmarks/**.md",
    "project/**.md",
    "sample_scripts/**.md",
]
# Folders that hold no pages: without them Sphinx would walk through environments and stores.
exclude_patterns = [
    ".*",
    "**/__pycache__",
    "*_env",
    "data",
    "docs/_build",
    "docs/_extensions",
    "docs/_extra",
    "docs/gallery/**.ipynb",
    "examples",
    "output",
    "project/neuromamba",
    "shared",
    "tests",
]

smartquotes = False  # they would turn --flag into an en dash

# --- Markdown -----------------------------------------------------------------------------------
myst_heading_anchors = 4  # as GitHub makes them
myst_links_external_new_tab = False

# --- the public face of the package -------------------------------------------------------------
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

# --- the gallery: scripts of examples/ are executed, in the order of their names ------------------
sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": str(DOCS / "gallery"),
    "filename_pattern": r"/[a-h]_\w+\.py$",
    "within_subsection_order": "FileNameSortKey",
    "first_notebook_cell": "%matplotlib inline",
    "plot_gallery": os.environ.get("NEUROMAMBA_GALLERY") != "0",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,  # its page would load scripts from another server
    "show_signature": False,
    "min_reported_time": 3600,  # the time of a build says more about the machine's other work
}

# --- look: no font, script or inventory comes from another server --------------------------------
html_theme = "furo"
html_title = f"NeuroMamba {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]  # index.html, which leads to docs/index.html
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
