"""A training can be continued by as many processes and by the kind of strategy that saved it."""

from __future__ import annotations

from neuromamba.checkpoints.io import TrainingState
from neuromamba.common.errors import UserInputError
from neuromamba.training.strategies import Hardware


def check_same_strategy(state: TrainingState, path: str, hardware: Hardware) -> None:
    """Compare a checkpoint with the run that is to continue it.

    DeepSpeed's optimiser states are cut up for a number of ranks and a stage, and cannot be put
    together anew; of the other strategies another number of processes is another batch.

    Args:
        state: of the checkpoint.
        path: of the checkpoint.
        hardware: of this run.

    Raises:
        UserInputError: they differ; says with what to resume and how to start from the weights.
    """
    stage, ranks = state.zero_stage, state.ranks or hardware.ranks
    if stage == hardware.zero_stage and ranks == hardware.ranks:
        return
    kind = f"--strategy deepspeed_stage_{stage}" if stage else "a strategy other than DeepSpeed's"
    raise UserInputError(
        f"--resume_ckpt_path: '{path}' was saved by {_processes(ranks)} with {kind}, and this run "
        f"is {_processes(hardware.ranks)} with --strategy {hardware.strategy}; the state of the "
        f"optimiser cannot be carried over. Resume with the same strategy and as many processes "
        f"(--devices times --num_nodes), or start anew from its weights with --load_model_path."
    )


def _processes(ranks: int) -> str:
    return f"{ranks} process{'es' if ranks > 1 else ''}"
