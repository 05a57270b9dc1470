"""The documentation site: `sphinx-build -W -n docs docs/_build`, which needs no network."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import milkshake_mbp  # noqa: E402

project = "milkshake_mbp"
author = copyright = "The milkshake_mbp authors"
version = release = milkshake_mbp.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
templates_path = ["_templates"]
# A build leaves the notebooks that it ran in jupyter_execute.
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints"]

# Furo reads well on a phone and in the dark, and its pages load nothing from elsewhere.
html_theme = "furo"
html_title = f"milkshake_mbp {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sphinx = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"
# The names of all functions in the sidebar of every page would be most of the time that a build takes.
toc_object_entries = False

# Names of other libraries, whose inventories would have to be fetched; aliases and type variables, which have no page.
nitpick_ignore_regex = [
    ("py:.*", r"(?!milkshake_mbp).*"),
    ("py:class", r"milkshake_mbp\..*\.(_\w+|T|Numbers|PositiveMargins)"),
    ("py:class", r"milkshake_mbp\.codec\.(coder|limits)\..*"),
]


def plain_signs(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Show |w| and * as they stand: in a docstring they are absolute values and products, not markup."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`.*?`|(?<!\w)\*\w[\w ]*\w\*(?!\w))", line)
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Sphinx) -> None:
    """Signs before napoleon, which makes markup of its own; attributes are called that, not variables."""
    app.connect("autodoc-process-docstring", plain_signs, priority=400)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
