"""How a report is shown."""

from __future__ import annotations

import pandas as pd

from scfm.genes import Vocabulary, align

IDS = [f"ENSG{i:011d}" for i in range(1, 5)]
VOCABULARY = Vocabulary.of_names(IDS, [])


def test_a_cell_of_a_notebook_shows_the_sentence_and_a_bar() -> None:
    report = align(pd.DataFrame({"<b>": [*IDS[:3], "<i>"]}), VOCABULARY, gene_key="<b>").report
    assert repr(report) == str(report)
    assert "3 of 4 genes" in repr(report)
    html = report._repr_html_()
    assert 'title="3 matched"' in html
    assert "width:75.00%" in html
    assert "width:25.00%" in html
    assert "not matched: &lt;i&gt;" in html
    assert "<b>" not in html
    assert "not shared" not in html
