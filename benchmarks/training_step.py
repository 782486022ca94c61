"""Seconds, memory and kept tokens of a pre-training step.

    python benchmarks/training_step.py [--config configs/neuromamba_base.yaml] [--image_path STORE]

Without a store the window is one synthetic subject of the model's grid. Prints a table and writes
JSON (``--json``). Absolute times drift by a quarter on shared machines: compare within one run.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from project.module.config import DataConfig, OptimConfig, PretrainConfig, UserInputError
from project.module.models.load_model import load_model_config
from project.module.pl_classifier import PretrainModule, build_optimizer
from project.module.utils.data_preprocess_and_load.datasets_hdf5 import (
    WindowDataset,
    collate_windows,
)
from project.module.utils.data_preprocess_and_load.hdf5_store import list_runs
from project.module.utils.data_preprocess_and_load.synthetic import ensure_dummy_store
from project.module.utils.seed_creation import seed_run, stream


def measure(config_path: str, image_path: str, steps: int) -> dict[str, object]:
    """Train a few steps on the first window of a store; the first step is not counted."""
    model = load_model_config(config_path)
    data = DataConfig(
        dataset_name=("Dummy",),
        image_path=(image_path,),
        img_size=model.img_size[:3],
        sequence_length=model.img_size[3],
    )
    window = WindowDataset(list_runs(image_path)[:1], data)[0]
    seed_run(0)
    module = PretrainModule(model, PretrainConfig(), OptimConfig(), total_steps=steps)
    optimizer = build_optimizer(module, module.optim)
    forward, backward, total, tokens = [], [], [], 0
    for _ in range(steps + 1):
        start = time.perf_counter()
        batch = module.on_before_batch_transfer(collate_windows([window]), 0)
        output, _, errors = module.predict_tokens(batch, stream(0))
        middle = time.perf_counter()
        errors.mean().backward()
        backward_end = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        tokens = len(output.tokens)
        forward.append(middle - start)
        backward.append(backward_end - middle)
        total.append(time.perf_counter() - start)
    return {
        "config": config_path,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "grid": list(model.img_size),
        "tokens_all": model.num_tokens,
        "tokens_kept": tokens,
        "forward_s": round(statistics.median(forward[1:]), 3),
        "backward_s": round(statistics.median(backward[1:]), 3),
        "step_s": round(statistics.median(total[1:]), 3),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--config", default="configs/neuromamba_base.yaml")
    parser.add_argument("--image_path", help="HDF5 store; default: one synthetic subject")
    parser.add_argument("--steps", type=int, default=3, help="steps counted")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = args.image_path
            if path is None:
                path = str(Path(scratch) / "store")
                model = load_model_config(args.config)
                ensure_dummy_store(
                    path,
                    subjects=1,
                    frames=max(model.img_size[3], 12),
                    grid=model.img_size[:3],
                    effect_size=0.0,
                )
            result = measure(args.config, path, args.steps)
    except UserInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    width = max(map(len, result))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in result.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
