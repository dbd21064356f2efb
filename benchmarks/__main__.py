"""``python -m benchmarks NAME``: run one benchmark, or ``all``, and print its tables as Markdown."""

from __future__ import annotations

import argparse
from importlib import import_module

NAMES = (
    "imports",
    "rank",
    "encoder",
    "transcriptformer",
    "readers",
    "door",
    "end_to_end",
    "memory",
    "data_path",
    "novel_types",
    "marker_genes",
    "perturb",
    "attention",
    "gene_tests",
    "inter_loss",
    "pretrain",
    "finetune",
    "finetune_memory",
    "quantize",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = parser.add_subparsers(dest="name", required=True)
    modules = {name: import_module(f"benchmarks.{name}") for name in NAMES}
    for name, module in modules.items():
        choice = choices.add_parser(name, help=module.__doc__, description=module.__doc__)
        if hasattr(module, "add_arguments"):
            module.add_arguments(choice)
    choices.add_parser("all", help="all that need no arguments, with their defaults")
    args = parser.parse_args()
    usual = [name for name, module in modules.items() if not hasattr(module, "NEEDS_ARGUMENTS")]
    for name in usual if args.name == "all" else [args.name]:
        module = modules[name]
        print(f"\n## {name}\n")
        if hasattr(module, "add_arguments"):
            module.run(parser.parse_args([name]) if args.name == "all" else args)
        else:
            module.main()


if __name__ == "__main__":
    main()
