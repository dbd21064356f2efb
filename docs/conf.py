from __future__ import annotations

import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

from sphinx.deprecation import RemovedInSphinx10Warning
from sphinx.ext.napoleon import NumpyDocstring

from scfm import __version__
from scfm._package import pip_install

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# a hundred lines of each build that only the authors of sphinx_autodoc_typehints can do something about
warnings.filterwarnings("ignore", category=RemovedInSphinx10Warning, module="sphinx_autodoc_typehints")

project = "scfm"
author = "scfm developers"
copyright = f"2026, {author}"
release = version = __version__
repository = "https://github.com/scfm-dev/scfm"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "repository_url": repository,
    "path_to_docs": "docs",
    "use_repository_button": True,
    "show_toc_level": 2,
}

autosummary_generate = True
autodoc_member_order = "bysource"
autoclass_content = "class"
bibtex_bibfiles = ["../src/scfm/references.bib"]  # package data: model.cite() reads it, too
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_substitutions = {
    "install": f"```bash\n{pip_install()}\n```",
    "install_two_extras": f"`{pip_install('fast', 'remote')}`",
}
myst_heading_anchors = 3
napoleon_google_docstring = False
napoleon_use_rtype = True
nb_execution_mode = "off"  # notebooks are stored with their outputs; CI executes them apart from the documentation
typehints_defaults = "braces"
always_use_bars_union = True

nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"scfm\.(\w+\.)*_\w+\.\w+"),  # types of private modules, named in signatures of public ones
    ("py:class", r"scfm\.(nn\.attention\.AttentionTile|tasks\.perturbations\.Genes)"),  # of a recipe's optional methods
    ("py:class", r"scfm\.train\.supervised\.(network|predictions)\.\w+"),  # of methods that verbs call
    ("py:class", r"(lightning|scvi)\..*"),  # inventories that have other names for what is imported
]

# Links into other documentations need their inventories, and -W must also work without a network. Unless all
# inventories are within reach, only references into scfm itself are checked.
inventories = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "mudata": "https://mudata.readthedocs.io/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def reachable(url: str) -> bool:
    """Whether the inventory of a documentation can be had."""
    try:
        with urlopen(Request(f"{url}objects.inv", method="HEAD"), timeout=5):
            return True
    except OSError:
        return False


if not os.environ.get("DOCS_OFFLINE"):
    with ThreadPoolExecutor(len(inventories)) as pool:
        found = dict(zip(inventories, pool.map(reachable, inventories.values()), strict=True))
    intersphinx_mapping = {name: (url, None) for name, url in inventories.items() if found[name]}
else:
    intersphinx_mapping = {}
if len(intersphinx_mapping) < len(inventories):
    nitpick_ignore_regex.append(("py:.*", r"(?!scfm\b).*"))

# The tutorials live beside the package, where they are run; Sphinx sees only what is below its own folder.
here = Path(__file__).parent
(here / "tutorials").mkdir(exist_ok=True)
for notebook in (here.parent / "tutorials").glob("*.ipynb"):
    shutil.copy2(notebook, here / "tutorials")  # keeps the time stamp, so an unchanged one is not built again


def returns_as_text(self: NumpyDocstring, section: str) -> list[str]:
    """Take a Returns section as prose: types stand in signatures, so its first line is not one."""
    return self._format_block(":returns: ", self._dedent(self._consume_to_next_section())) + [""]


def attribute_as_text(self: NumpyDocstring) -> list[str]:
    """Take the docstring of an attribute as prose, for the same reason: what precedes a colon is not a type."""
    return self._dedent(self._consume_to_end())


NumpyDocstring._parse_returns_section = returns_as_text
NumpyDocstring._parse_attribute_docstring = attribute_as_text


def short_signature(app: Sphinx, what: str, name: str, *args: object) -> tuple[str, None] | None:
    """Leave out the many private parameters that pydantic gives every class of settings."""
    return ("", None) if name == "scfm._settings.Settings" else None


def setup(app: Sphinx) -> None:
    # before the handler of sphinx_autodoc_typehints: the first answer counts
    app.connect("autodoc-process-signature", short_signature, priority=400)
