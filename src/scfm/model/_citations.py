"""What to cite, as BibTeX, by DOI."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["SCFM", "cite"]

SCFM = """@software{scfm,
  author = {{scfm developers}},
  title  = {scfm: single-cell foundation models on AnnData},
  url    = {https://github.com/scfm-dev/scfm},
}"""

BIBLIOGRAPHY = Path(__file__).parents[1] / "references.bib"
"""All papers that scfm cites, in the documentation as well."""


def cite(doi: str) -> str:
    """BibTeX of scfm and of the paper with this DOI; ``""`` stands for no paper."""
    if not doi:
        return SCFM
    entries = re.split(r"\n(?=@)", BIBLIOGRAPHY.read_text(encoding="utf-8"))
    found = [entry.strip() for entry in entries if re.search(rf"\bdoi\s*=\s*{{{re.escape(doi)}}}", entry)]
    return "\n\n".join([SCFM, *(found or [f"@misc{{{doi.replace('/', '_')},\n  doi = {{{doi}}},\n}}"])])
