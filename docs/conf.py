"""How `make site` builds the site: from the repository's own pages and its executed notebooks, without a network."""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

project = "splitpoint"
author = "the splitpoint developers"
root_doc = "docs/contents"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "data/README.md",
    "docs/*.md",
    "docs/api/*.rst",
    "notebooks/*.ipynb",
    "notebooks/solutions/*.ipynb",
    "notebooks/assignments/README.md",
]
extensions = [
    "myst_nb",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_execution_mode = "off"  # the notebooks are committed as they were executed
nb_merge_streams = True
nb_ipywidgets_js = {}  # a slider without a kernel does nothing: its text stands there, and nothing is fetched for it
nb_mime_priority_overrides = [("*", "application/vnd.jupyter.widget-view+json", None)]

apidoc_modules = [
    {
        "path": str(ROOT / "src" / "splitpoint"),
        "destination": "docs/api",
        "max_depth": 2,
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "ignore-module-all"},  # what a room passes on stands in the module it is from
    }
]
exclude_patterns = ["docs/api/modules.rst"]
suppress_warnings = ["ref.python"]  # a field's name that several classes have is no link
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "splitpoint"
html_theme_options = {
    "source_repository": "",
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def first_page(app, error) -> None:
    """The README is also the site's first page."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def only_ours(app, what, name, obj, skip, options) -> bool | None:
    """Leave out what a module took from elsewhere: from a library, or from another room."""
    here, home = app.env.current_document.autodoc_module, getattr(obj, "__module__", None)
    return True if isinstance(home, str) and what == "module" and here and home != here else None


def setup(app) -> None:
    app.connect("autodoc-skip-member", only_ours)
    app.connect("build-finished", first_page)
