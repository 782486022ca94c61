"""GPUs that runs are planned for: memory, peak rates, and where the numbers are from.

Rates are dense (without structured sparsity), in FLOP/s of matrix products: bf16 with fp32 sums in
the matrix units, fp32 outside them (torch does not use TF32 unless it is told to). They are what
the makers state, not what a training reaches.
"""

from __future__ import annotations

from typing import NamedTuple

from neuromamba.common.errors import look_up


class Gpu(NamedTuple):
    """A device for one rank.

    Attributes:
        memory: bytes.
        bf16, fp32: FLOP/s.
        per_node: ranks of a usual node.
        source: of the numbers.
        accelerator: what torch calls its kind.
        ranks: on one GPU as schedulers count them.
    """

    memory: float
    bf16: float
    fp32: float
    per_node: int
    source: str
    accelerator: str = "cuda"
    ranks: int = 1


def _nvidia(gib: float, bf16: float, fp32: float, per_node: int, source: str) -> Gpu:
    return Gpu(gib * 2**30, bf16 * 1e12, fp32 * 1e12, per_node, source)


GPUS: dict[str, Gpu] = {
    "A5000": _nvidia(24, 111.1, 27.8, 4, "NVIDIA RTX A5000 datasheet; half of its sparse rate"),
    "A6000": _nvidia(48, 154.8, 38.7, 4, "NVIDIA RTX A6000 datasheet; half of its sparse rate"),
    "RTX3090": _nvidia(24, 71.0, 35.6, 2, "NVIDIA Ampere GA102 whitepaper"),
    "RTX4090": _nvidia(24, 165.2, 82.6, 2, "NVIDIA Ada whitepaper"),
    "L4": _nvidia(24, 121.0, 30.3, 4, "NVIDIA L4 datasheet; half of its sparse rate"),
    "L40S": _nvidia(48, 362.05, 91.6, 4, "NVIDIA L40S datasheet"),
    "A100-40GB": _nvidia(40, 312.0, 19.5, 4, "NVIDIA A100 datasheet"),
    "A100-80GB": _nvidia(80, 312.0, 19.5, 4, "NVIDIA A100 datasheet"),
    "H100-PCIe": _nvidia(80, 756.5, 51.0, 4, "NVIDIA H100 datasheet; half of its sparse rate"),
    "H100": _nvidia(80, 989.5, 67.0, 8, "NVIDIA H100 datasheet (SXM); half of its sparse rate"),
    "H200": _nvidia(141e9 / 2**30, 989.5, 67.0, 8, "NVIDIA H200 datasheet; half its sparse rate"),
    # On Aurora a rank has one of the two tiles of a GPU.
    "Max1550-tile": Gpu(
        64 * 2**30,
        419.5e12,
        26.2e12,
        12,
        "Intel Data Center GPU Max 1550 product page, half of the product",
        "xpu",
        ranks=2,
    ),
}


def find_gpu(name: str) -> Gpu:
    """Find a GPU by its name, ignoring case.

    Raises:
        UserInputError: an unknown one, with the nearest.
    """
    known = {key.lower(): key for key in GPUS}
    return GPUS[known[name.lower()] if name.lower() in known else look_up(name, GPUS, "--gpu")]
