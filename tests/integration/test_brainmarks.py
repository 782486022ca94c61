"""The plug-in for the evaluation suite Brainmarks, against a stand-in of its interface.

The suite cannot be had here: ``registry.py`` and ``base.py`` below are written from its
description, so these tests say nothing about its own code.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.inference.contract import InputContract
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.suite_model import VOXELS, voxels_on_grid

REGISTRY = "MODELS = {}\ndef register_model(f):\n    MODELS[f.__name__] = f\n    return f\n"
BASE = (
    "from typing import Any, NamedTuple\n"
    "class Embeddings(NamedTuple):\n    cls: Any\n    reg: Any\n    patch: Any\n"
)


@pytest.fixture(scope="module")
def mask() -> Path:
    """The MNI152NLin6Asym 2 mm mask of NiMARE."""
    found = importlib.util.find_spec("nimare")
    if found is None or found.origin is None:
        pytest.skip("no MNI152NLin6Asym mask here (NiMARE brings one)")
    folder = Path(found.origin).parent / "resources" / "templates"
    return folder / "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz"


def model_of(affine: Any = None) -> LoadedModel:
    """An untrained model of the full grid with large patches."""
    from neuromamba.checkpoints.io import CheckpointContents
    from neuromamba.evaluation.target_scaling import UNSCALED, TargetScaling
    from neuromamba.fmamba.build import build_model

    config = ModelConfig(
        img_size=(96, 96, 96, 20), patch_size=(12, 12, 12, 10), embed_dim=16, depth=1
    )
    data = DataConfig(
        dataset_name=("Own",), image_path=("",), input_scaling_method="voxelnorm_zeroback"
    )
    torch.manual_seed(0)
    return LoadedModel(
        path=Path("model"),
        contents=CheckpointContents({}, {}),
        contract=InputContract(
            model=config,
            data=data,
            native=False,
            grid_affine=affine,
            tr=(2.0,),
            inputs={},
            contents=frozenset(),
            supervised=False,
        ),
        backbone=build_model(config, output_layer=False).eval(),
        head=None,
        task=None,
        target_scaling=TargetScaling(*UNSCALED),
        device=torch.device("cpu"),
    )


@pytest.fixture
def plugin(tmp_path: Path, mask: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The registered function, with the stand-in of the suite on the path."""
    folder = tmp_path / "brainmarks" / "models"
    folder.mkdir(parents=True)
    (folder / "registry.py").write_text(REGISTRY)
    (folder / "base.py").write_text(BASE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NEUROMAMBA_MNI_MASK", str(mask))
    for name in [name for name in sys.modules if name.startswith("brainmarks")]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("brainmarks.models.neuromamba")
    monkeypatch.setattr(module, "load", lambda *_: model_of())
    registry = importlib.import_module("brainmarks.models.registry")
    yield registry.MODELS["neuromamba"]
    for name in [name for name in sys.modules if name.startswith("brainmarks")]:
        del sys.modules[name]


def sample(frames: int, seed: int, tr: float = 2.0) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    bold = torch.randn(frames, VOXELS, generator=rng)
    bold = (bold - bold.mean(0)) / bold.std(0, unbiased=False)
    mean = 500 + 100 * torch.rand(1, VOXELS, generator=rng)
    return {"bold": bold, "mean": mean, "std": torch.full((1, VOXELS), 10.0), "tr": tr}


def test_interface_of_the_suite(plugin: Any) -> None:
    """Batches of two with 16 and 160 frames, bf16, FLOPs counted; deterministic."""
    transform, wrapper = plugin("run")
    assert isinstance(wrapper, torch.nn.Module) and wrapper.__space__ == "mni"
    wrapper.eval()
    batch = default_collate([transform(sample(16, 0)), transform(sample(160, 1))])
    assert batch["count"].tolist() == [1, 8]
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        found = wrapper(batch)
        again = wrapper(batch)
    assert flops.get_total_flops() > 0
    assert found.cls.shape == (2, 1, 16) and found.reg is None
    assert found.patch.shape == (2, wrapper.cell_count, 16) and wrapper.cell_count <= 6**3
    assert torch.equal(found.patch, again.patch) and found.patch.isfinite().all()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = wrapper(batch)
    assert torch.allclose(rough.cls.float(), found.cls, atol=0.1)


def test_all_tokens_on_request(plugin: Any) -> None:
    transform, wrapper = plugin("run", cells=0, windows=2)
    batch = default_collate([transform(sample(16, 0)), transform(sample(60, 1))])
    with torch.no_grad():
        found = wrapper(batch)
    tokens = found.patch.shape[1] // 2
    assert found.patch[0, tokens:].abs().max() == 0 and found.patch[1, tokens:].abs().max() > 0
    assert torch.allclose(found.cls[1, 0], found.patch[1].mean(0), atol=1e-6)


def test_adapters_of_peft_take_part(plugin: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is optional")
    transform, wrapper = plugin("run", windows=1)
    batch = default_collate([transform(sample(20, seed)) for seed in (0, 1)])
    with torch.no_grad():
        before = wrapper.eval()(batch).cls
    adapted = peft.get_peft_model(wrapper, peft.LoraConfig(target_modules="all-linear", r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    found = adapted(batch).cls
    assert not torch.allclose(found, before)
    found.sum().backward()
    grads = [p.grad for n, p in adapted.named_parameters() if "lora_" in n]
    assert grads and all(grad is not None and grad.isfinite().all() for grad in grads)


def test_values_and_places(plugin: Any, mask: Path) -> None:
    """The z-score is undone, so the input is the model's scaling; left is left."""
    transform, _ = plugin("run")
    one = sample(20, 3)
    made = transform(one)
    voxels, vox = voxels_on_grid(mask, model_of().contract)
    # voxelnorm of undone z-scores is the z-scores again, whatever mean and deviation were.
    np.testing.assert_allclose(made["bold"][0], one["bold"][:, voxels], atol=1e-4)
    image = nibabel.load(mask)
    order = np.argwhere(np.asarray(image.dataobj).transpose(2, 1, 0) > 0)[voxels][:, ::-1]
    x, y, z = np.unravel_index(vox, (96, 96, 96))
    assert np.array_equal(x, 90 - order[:, 0] + 2)  # LAS, centred: (96 - 91) // 2
    assert np.array_equal(z, order[:, 2] + 2) and np.array_equal(y, order[:, 1] - 7)
    affine = ((-2.0, 0.0, 0.0, 94.0), (0.0, 2.0, 0.0, -112.0), (0.0, 0.0, 2.0, -76.0), (0, 0, 0, 1))
    by_affine = voxels_on_grid(mask, model_of(affine).contract)
    assert np.array_equal(by_affine[1], vox) and np.array_equal(by_affine[0], voxels)
    assert transform(sample(40, 0, tr=1.0))["count"] == 1  # 20 frames of 2 s
    raw = plugin("run", coord_normalize=True)[0](one)
    np.testing.assert_allclose(raw["bold"][0], one["bold"][:, voxels], atol=1e-6)


def test_refusals(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserInputError, match="ckpt_path: not given"):
        plugin()
    other = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.eye(4)), other)
    with pytest.raises(UserInputError, match="expected 228483"):
        plugin("run", mask_path=other)
    monkeypatch.delenv("NEUROMAMBA_MNI_MASK")
    monkeypatch.setenv("FSLDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "templateflow", None)
    with pytest.raises(UserInputError, match="NEUROMAMBA_MNI_MASK"):
        plugin("run")
