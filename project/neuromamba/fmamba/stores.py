"""The stores of a run: those given, or the synthetic one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.data.cohorts.labels import target_of
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.fmamba.run_config import RunConfig

DUMMY_FRAMES = 40


def check_cohorts_have_target(config: RunConfig) -> None:
    """Make sure that each cohort knows the target of the downstream task.

    Raises:
        UserInputError: names the cohort and the targets that it has.
    """
    if config.downstream is not None and not config.downstream.has_own_targets:
        for name in config.data.dataset_name:
            target_of(DATASETS[name], config.downstream.task)


def locate_data(config: RunConfig, *, make_dummy: bool) -> DataConfig:
    """Return the data configuration with its stores: those given, or a synthetic one for Dummy.

    Args:
        config: the run.
        make_dummy: write the synthetic store if it is not there yet.

    Raises:
        UserInputError: no store is given, or the synthetic one is not there and not to be made.
    """
    if config.flags["image_path"]:
        return config.data
    if config.data.dataset_name != ("Dummy",):
        raise UserInputError(
            "--image_path: not given; name the folder of the HDF5 store of each data set."
        )
    subjects, effect = config.flags["dummy_subjects"], config.flags["dummy_effect_size"]
    name = "x".join(str(n) for n in config.data.grid)
    frames = max(DUMMY_FRAMES, 2 * config.data.window_span)
    path = Path("output") / "dummy" / f"{name}_{frames}f_{subjects}s_effect{effect:g}"
    if make_dummy:
        # Imported here: the generator needs nilearn and scipy, which take seconds to load.
        from neuromamba.data.synthetic.runs import ensure_dummy_store

        ensure_dummy_store(
            path,
            subjects=subjects,
            frames=frames,
            grid=config.data.grid,
            effect_size=effect,
        )
    elif not path.exists():
        raise UserInputError(
            f"--image_path: not given; {subjects} synthetic subjects will be made in '{path}'."
        )
    return dataclasses.replace(config.data, image_path=(str(path),))
