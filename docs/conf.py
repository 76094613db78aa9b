"""Sphinx settings. `make docs` builds offline and takes every warning as an error."""

from __future__ import annotations

import importlib.metadata
import re

from docutils import nodes
from sphinx import addnodes
from sphinx.ext import autosummary

project = "petomo"
author = "The petomo developers"
copyright = "The petomo developers"
release = importlib.metadata.version("petomo")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
root_doc = "index"
default_role = "py:obj"  # `name` in a docstring is a link where it can be one

myst_enable_extensions = ["deflist", "colon_fence", "fieldlist"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.",)  # a summary does not end at "Eq. 5"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "exclude-members": "model_config",
    "ignore-module-all": True,
}
autodoc_typehints = "none"  # numpydoc says type, shape and unit; the signature stays short
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "petomo"
html_static_path = ["_static"]
html_css_files = ["petomo.css"]
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}


def link_functions(_app, doctree: nodes.document) -> None:
    """Make `petomo.module.function` in a page's text a link to the API, shown without the package's name."""
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        linked = isinstance(literal.parent, (addnodes.pending_xref, nodes.reference, nodes.title))
        if linked or not re.fullmatch(r"petomo(\.\w+)+", name):
            continue
        target = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=name, refexplicit=True)
        literal.replace_self(target)
        head, *rest = name.split(".")[1:] if name.count(".") > 1 else [name]
        literal[:] = [nodes.Text(head)]
        for part in rest:  # a long name may break before a dot
            literal += [nodes.raw("", "<wbr>", format="html"), nodes.Text(f".{part}")]
        target += literal


def setup(app) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", link_functions, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
