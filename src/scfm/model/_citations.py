"""What to cite, as BibTeX, by DOI."""

from __future__ import annotations

__all__ = ["SCFM", "cite"]

SCFM = """@software{scfm,
  author = {{scfm developers}},
  title  = {scfm: single-cell foundation models on AnnData},
  url    = {https://github.com/scfm-dev/scfm},
}"""

_PAPERS = {
    "10.1038/s41586-023-06139-9": (
        "Theodoris2023",
        "Theodoris, Christina V. and others",
        "Transfer learning enables predictions in network biology",
        "Nature",
        2023,
    ),
    "10.1101/2024.08.16.608180": (
        "Chen2024",
        "Chen, Han and others",
        "Quantized multi-task learning for context-specific representations of gene network dynamics",
        "bioRxiv",
        2024,
    ),
    "10.48550/arXiv.2408.12373": (
        "Yuan2024",
        "Yuan, Xinyu and others",
        "Cell ontology guided transcriptome foundation model",
        "Advances in Neural Information Processing Systems",
        2024,
    ),
    "10.1101/2025.04.25.650731": (
        "Pearce2025",
        "Pearce, James D. and others",
        "A Cross-Species Generative Cell Atlas Across 1.5 Billion Years of Evolution: "
        "The {TranscriptFormer} Single-cell Model",
        "bioRxiv",
        2025,
    ),
}


def cite(doi: str) -> str:
    """BibTeX of scfm and of the paper with this DOI; ``""`` stands for no paper."""
    if not doi:
        return SCFM
    if doi not in _PAPERS:
        return f"{SCFM}\n\n@misc{{{doi.replace('/', '_')},\n  doi = {{{doi}}},\n}}"
    key, author, title, journal, year = _PAPERS[doi]
    fields = {"author": author, "title": title, "journal": journal, "year": year, "doi": doi}
    lines = [f"  {name:<7} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([SCFM, "", f"@article{{{key},", *lines, "}"])
