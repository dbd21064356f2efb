"""The data sets of transcriptformer 0.6.1 as a worker: ``python -m benchmarks.upstream_data_path CHECKPOINT``.

Run by :mod:`benchmarks.data_path` with the Python of another environment, as :mod:`benchmarks.upstream_transcriptformer`
is, whose set-up it takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from . import rss
from .upstream_transcriptformer import Upstream
from .worker import serve


class UpstreamData(Upstream):
    """From a file to the batches that the network is given, as ``run_inference`` makes them; no network."""

    def load(self) -> dict[str, Any]:
        """Read the vocabularies."""
        from transcriptformer.tokenizer.vocab import load_vocabs_and_embeddings  # type: ignore[import-not-found, unused-ignore]

        (self._genes, self._assays), _ = load_vocabs_and_embeddings(self._config)
        return {}

    def baseline(self) -> dict[str, Any]:
        return {"rss": rss.resident()}

    def memory(self, data: str, batch_size: int, threads: int) -> dict[str, Any]:
        """The data set that reads a file whole."""
        from transcriptformer.data.dataloader import AnnDataset  # type: ignore[import-not-found, unused-ignore]

        return self._batches(AnnDataset, data, batch_size, threads)

    def oom(self, data: str, batch_size: int, threads: int) -> dict[str, Any]:
        """The data set that ``use_oom_dataloader`` asks for: cell by cell from a backed AnnData."""
        from transcriptformer.data.dataloader import AnnDatasetOOM  # type: ignore[import-not-found, unused-ignore]

        return self._batches(AnnDatasetOOM, data, batch_size, threads)

    def _batches(self, kind: Any, data: str, batch_size: int, threads: int) -> dict[str, Any]:
        from torch.utils.data import DataLoader

        self._torch.set_num_threads(threads)
        model, padding, tokens = self._config.model, self._genes["[PAD]"], 0
        rss.reset_peak()
        start = perf_counter()
        dataset = kind(
            [data],
            self._genes,
            aux_vocab=self._assays,
            max_len=model.model_config.seq_len,
            clip_counts=model.data_config.clip_counts,
            obs_keys=["all"],
        )
        workers = model.data_config.n_data_workers
        for batch in DataLoader(dataset, batch_size, num_workers=workers, collate_fn=dataset.collate_fn):
            tokens += int((batch.gene_token_indices != padding).sum())
        return {"seconds": perf_counter() - start, "peak": rss.peak(), "tokens": tokens}


if __name__ == "__main__":
    serve(UpstreamData(Path(sys.argv[1])))
