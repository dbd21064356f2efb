"""The published package transcriptformer 0.6.1 as a worker: ``python -m benchmarks.upstream_transcriptformer CHECKPOINT``.

Run by :mod:`benchmarks.transcriptformer` with the Python of another environment, so this file needs nothing but the
package and what it brings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from .worker import Stopwatch, peak_rss, serve


class Upstream:
    """The published package, set up as its command line does for a CPU in float32."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        import transcriptformer
        from omegaconf import OmegaConf
        from transcriptformer.model import inference

        self._inference, self._torch = inference, torch
        preset = OmegaConf.load(Path(transcriptformer.__file__).parent / "cli/conf/inference_config.yaml")
        self._config: Any = OmegaConf.merge(
            OmegaConf.create(json.loads((checkpoint / "config.json").read_text())), preset
        )
        model, vocabs = self._config.model, str(checkpoint / "vocabs")
        model.model_config.compile_block_mask = False
        model.data_config.merge_with({"aux_vocab_path": vocabs, "esm2_mappings_path": vocabs, "use_raw": None})
        run = {"load_checkpoint": str(checkpoint / "model_weights.pt"), "device": "cpu", "precision": "32"}
        model.inference_config.merge_with(run)

    def about(self) -> dict[str, Any]:
        return {"torch": self._torch.__version__, "rss": peak_rss()}

    def load(self) -> dict[str, Any]:
        """Read vocabularies and weights."""
        from transcriptformer.model.model import Transcriptformer
        from transcriptformer.tokenizer.vocab import load_vocabs_and_embeddings

        (self._genes, self._assays), table = load_vocabs_and_embeddings(self._config)
        configs = {name: self._config.model[name] for name in ("data_config", "model_config", "loss_config")}
        self._model = Transcriptformer(
            **configs,
            inference_config=self._config.model.inference_config,
            gene_vocab_dict=self._genes,
            aux_vocab_dict=self._assays,
            emb_matrix=table,
        ).eval()
        path = self._config.model.inference_config.load_checkpoint
        self._model.load_state_dict(self._torch.load(path, weights_only=True, map_location="cpu"))
        layers = self._model.transformer_encoder.encoder_layers
        self._layers = Stopwatch(layers[0], layers[-1])
        self._data: dict[str, Any] = {}
        return {}

    def preprocess(self, data: str, out: str) -> dict[str, Any]:
        """Counts to the tensors of all cells on one thread; writes tokens and counts without padding."""
        import numpy as np

        adata = self._read(data)
        self._torch.set_num_threads(1)
        start = perf_counter()
        tensors = self._dataset(adata).data
        seconds = perf_counter() - start
        kept = tensors.gene_token_indices != self._genes["[PAD]"]
        np.savez(out, tokens=tensors.gene_token_indices[kept].numpy(), counts=tensors.gene_counts[kept].numpy())
        return {"seconds": seconds}

    def embed(self, data: str, out: str, threads: int, batch_size: int) -> dict[str, Any]:
        """Counts to embeddings: the data set, then the loop over its batches."""
        import numpy as np
        import pytorch_lightning
        from torch.utils.data import DataLoader

        adata = self._read(data)
        self._torch.set_num_threads(threads)
        # a batch that is not full is computed as if it were
        self._config.model.inference_config.batch_size = batch_size = min(batch_size, adata.n_obs)
        self._layers.seconds = 0.0
        start, cpu = perf_counter(), process_time()
        dataset = self._dataset(adata)
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=dataset.collate_fn)
        trainer = pytorch_lightning.Trainer(
            accelerator="cpu", devices=1, precision="32", logger=False, enable_progress_bar=False
        )
        batches = trainer.predict(self._model, dataloaders=loader)
        embedding = self._torch.cat([batch["embeddings"] for batch in batches]).numpy()
        seconds, cpu = perf_counter() - start, process_time() - cpu
        np.save(out, embedding)
        return {"seconds": seconds, "cpu": cpu, "layers": self._layers.seconds}

    def whole(self, data: str, batch_size: int) -> dict[str, Any]:
        """Everything that a user runs, for its peak memory."""
        import anndata

        self._config.model.inference_config.batch_size = batch_size
        self._inference.run_inference(self._config, data_files=[anndata.read_h5ad(data)])
        return {"rss": peak_rss()}

    def _read(self, path: str) -> Any:
        import anndata

        if path not in self._data:
            self._data[path] = anndata.read_h5ad(path)
        return self._data[path]

    def _dataset(self, adata: Any) -> Any:
        from transcriptformer.data.dataloader import AnnDataset

        return AnnDataset(
            [adata],
            self._genes,
            aux_vocab=self._assays,
            max_len=self._config.model.model_config.seq_len,
            clip_counts=self._config.model.data_config.clip_counts,
            obs_keys=["all"],
        )


if __name__ == "__main__":
    serve(Upstream(Path(sys.argv[1])))
