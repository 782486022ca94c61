"""Tables about a model, its data and its results, from run folders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuromamba.config.data import DataConfig
from neuromamba.config.names import VOXEL_SCALINGS
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.windows.run_data import RunData
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.pages.page import Table
from neuromamba.reports.brain_figures import kept_shares


def data_card(run: RunFolder, data: RunData) -> Table:
    """What the run saw: subjects, windows, scaling, orientation, kept tokens, split."""
    config, model = data.config, run.model_config
    parts = {"train": "training", "val": "validation", "test": "test"}
    kept = 100 * kept_shares([p for store in data.stores for p in store.paths], model)
    headers = [header for store in data.stores for header in store.headers]
    voxel = np.linalg.norm(np.array(headers[0].affine)[:3, :3], axis=0)
    rows = [
        ("Data", "; ".join(DATASETS[store.dataset].description for store in data.stores)),
        *(
            (f"Subjects, {label}", f"{_subjects(data, part)}; {data.windows_in(part)} windows")
            for part, label in parts.items()
        ),
        ("Window", f"{config.sequence_length} frames, TR {_range([h.tr for h in headers])} s"),
        ("Grid", f"{' × '.join(map(str, config.grid))} voxels of {_sizes(voxel)} mm"),
        ("Orientation", f"{run.contents.metadata['orientation']} (voxel order of the store)"),
        ("Brain mask", ", ".join(sorted({h.mask_source.split(":")[0] for h in headers}))),
        ("Scaling", _scaling(config)),
        (
            "Kept tokens",
            f"{kept.mean():.1f} % on average ({kept.min():.1f} to {kept.max():.1f} % in a run)",
        ),
        *(
            (f"Split of {name}", f"number {record['split_num']}, hash {record['hash']}")
            for name, record in run.split_records().items()
        ),
    ]
    return Table(rows, title="Data")


def _scaling(config: DataConfig) -> str:
    method = config.input_scaling_method
    if method not in VOXEL_SCALINGS:
        return method
    more = "; with the mean image as a second channel" if config.anatomy else ""
    return f"{method}, statistics of the {config.scaling_statistics}{more}"


def _subjects(data: RunData, part: str) -> str:
    names = [name for store in data.subjects[part] for name in store]
    if data.task is None or data.task.task_type != "classification":
        return str(len(names))
    classes = data.task.class_names
    counts = np.bincount([int(t) for t in data.targets_of_samples(part)], minlength=len(classes))
    shown = ", ".join(f"{n} {c}" for n, c in zip(counts, classes, strict=True))
    return f"{len(names)} ({shown})"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _sizes(voxel: np.ndarray) -> str:
    shown = voxel[:1] if np.allclose(voxel, voxel[0]) else voxel
    return " × ".join(f"{v:.3g}" for v in shown)


def model_card(pretrained: RunFolder, finetuned: RunFolder) -> Table:
    """Architecture, numbers of parameters and how both runs were trained."""
    model = finetuned.model_config
    head = finetuned.contents.metadata["head"]["name"]
    grid = " × ".join(map(str, model.token_grid))
    rows = [
        ("Backbone", model.description),
        ("State size, heads", f"{model.d_state}, {model.nheads} of width {model.headdim}"),
        ("Patch", f"{' × '.join(map(str, model.patch_size))} (x, y, z, t)"),
        ("Tokens of a window", f"{model.num_tokens:,} ({grid}) of {model.token_dim} values"),
        ("Positional encoding", model.mamba_pe_method),
        ("Parameters, pre-training", f"{pretrained.metrics['model/parameters']:,.0f}"),
        (f"Parameters with {head} head", f"{finetuned.metrics['model/parameters']:,.0f}"),
        *(
            (
                label,
                f"{run.config['optimizer']}, learning rate {run.config['learning_rate']:g}, weight "
                f"decay {run.config['weight_decay']:g}, batch {run.config['batch_size']}, "
                f"{run.metrics['train/steps']:,.0f} steps, seed {run.config['seed']}",
            )
            for label, run in (("Pre-training", pretrained), ("Fine-tuning", finetuned))
        ),
    ]
    return Table(rows, title="Model")
