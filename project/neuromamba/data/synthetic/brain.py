"""Synthetic fMRI (the data set ``Dummy``): a brain, realistic noise and a planted class effect.

The anatomy is the MNI152 template that nilearn ships, deformed a little for each subject. A voxel's
time course is

    baseline + sd * (noise + a * w * s_class(t)) / sqrt(1 + (a * w)^2)

with ``baseline`` from the template's contrast, a subject gain and a smooth bias field; ``noise`` of
unit variance, spatially smooth and autocorrelated, with slow drift; ``w`` (0 to 1) the weight of a
fixed network of grey-matter regions; ``a`` the effect size. The planted oscillation ``s_class`` has
mean 0 and variance 1 in every run and is slow in class 0 and fast in class 1. The noise is made
orthogonal to both, so each voxel's temporal mean and variance are the same whatever the class and
whatever the effect size: only the dynamics distinguish the classes.

Two other effects test what a model can see. ``spatial``: no oscillation, but the network is
brighter in class 1 and darker in class 0, so that only the mean image tells. ``correlations``: both
classes oscillate slowly, and the default-mode network with the sensory regions in class 1, against
them in class 0: mean, variance and spectrum of every voxel are the same, only correlations tell.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from scipy import ndimage

from neuromamba.data.synthetic.spec import SyntheticSpec

# Centres of the planted network's regions in MNI mm: the default-mode, visual and sensorimotor
# cortices, large enough for any grid to resolve.
_NETWORK_MM = (
    (0, -54, 28),
    (0, 52, 4),
    (-46, -64, 32),
    (46, -64, 32),
    (0, -86, 4),
    (-40, -24, 54),
    (40, -24, 54),
)
_FIRST_SENSORY = 4  # of _NETWORK_MM; those before are the default-mode network
_BRIGHTER = 0.02  # of the baseline, for an effect size of 1
# Class 0 and class 1, in cycles per frame (at TR 2 s: 0.02-0.04 Hz and 0.175-0.21 Hz). Frames, not
# seconds: a model sees frames, and the fast class must alternate between them at any TR.
_BANDS = ((0.04, 0.08), (0.35, 0.42))
_BRAIN_CENTRE_MM = np.array([0.0, -17.0, 5.0])
_BASELINE = 5000.0  # scanner units, a typical EPI magnitude
_THERMAL = 0.3  # share of the noise variance that is white in space and time
_PHENOTYPE_STREAM = 1  # seed tags: these draws are separate from those of the images
_CLASS_STREAM = 2


def subject_name(index: int) -> str:
    """BIDS name of the subject with this index, counted from 1: ``sub-0001``."""
    return f"sub-{index + 1:04d}"


def subject_class(seed: int, index: int) -> int:
    """Class 0 or 1: of the subjects 2k and 2k + 1 one is in each, in random order.

    So the classes are balanced for any even number of subjects, and a subject's class does not
    depend on how many there are.
    """
    first = int(np.random.default_rng([seed, index // 2, _CLASS_STREAM]).integers(2))
    return first ^ (index % 2)


def subject_labels(seed: int, index: int, sex: int) -> dict[str, Any]:
    """The row of ``participants.csv``. Only ``sex`` is visible in the images (F slow, M fast)."""
    rng = np.random.default_rng([seed, index, _PHENOTYPE_STREAM])
    return {
        "subject": subject_name(index),
        "sex": "FM"[sex],
        "age": round(float(rng.uniform(20, 80)), 1),
        "intelligence": round(float(rng.normal(100, 15)), 1),
        "diagnosis": ("control", "patient")[int(rng.integers(2))],
    }


@functools.lru_cache(maxsize=2)
def _template(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Head, brain mask and grey matter of MNI152, float32 [3, X, Y, Z], and mm -> voxel, 4x4."""
    from nilearn import datasets  # takes seconds to import, and only this function needs it

    images = (
        datasets.load_mni152_template(resolution=resolution),
        datasets.load_mni152_brain_mask(resolution=resolution),
        datasets.load_mni152_gm_template(resolution=resolution),
    )
    maps = np.stack([np.asarray(image.dataobj, dtype=np.float32) for image in images])
    return maps, np.linalg.inv(images[0].affine)


def _smooth_field(rng: np.random.Generator, grid: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian random field of unit variance, float32 [X, Y, Z]; ``sigma`` in voxels."""
    white = rng.standard_normal(grid, dtype=np.float32)
    field = ndimage.gaussian_filter(white, sigma, mode="wrap") if sigma > 0 else white
    return (field - field.mean()) / field.std()


def _anatomy(
    spec: SyntheticSpec, rng: np.random.Generator, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A subject's brain: mask bool [X, Y, Z]; baseline and network weight, float32 [N].

    And, bool [N], which voxels are nearest to one of the sensory regions.
    """
    grid = spec.grid
    world = np.indices(grid, dtype=np.float32).reshape(3, -1).T * spec.voxel_mm + affine[:3, 3]
    # Head size and shape: a few per cent and degrees, and a smooth displacement of ~1.5 mm.
    small = np.clip(rng.normal(0, 0.02, (3, 3)), -0.04, 0.04)
    bend = np.stack(
        [_smooth_field(rng, grid, 20 / spec.voxel_mm).ravel() for _ in range(3)], axis=1
    )
    centred = world - _BRAIN_CENTRE_MM
    mni = _BRAIN_CENTRE_MM + centred @ (np.eye(3) + small).T + 1.5 * bend

    maps, to_voxel = _template(2 if spec.voxel_mm < 3 else 3)
    at = (mni @ to_voxel[:3, :3].T + to_voxel[:3, 3]).T.astype(np.float32)
    head, brain, grey = (ndimage.map_coordinates(m, at, order=1) for m in maps)
    inside = brain > 0.5

    gain = float(np.exp(np.clip(rng.normal(0, 0.15), -0.4, 0.4)))
    bias = np.exp(0.08 * _smooth_field(rng, grid, 40 / spec.voxel_mm).ravel()[inside])
    contrast = 0.4 + 0.6 * np.clip(head[inside], 0, 1)
    baseline = _BASELINE * gain * bias * contrast

    squares = np.stack([((mni - centre) ** 2).sum(axis=1) for centre in _NETWORK_MM])
    distance2, sensory = squares.min(axis=0), squares.argmin(axis=0) >= _FIRST_SENSORY
    # Flat in the middle of a region, gone within a voxel or two of its edge; nothing elsewhere.
    weight = np.exp(-((distance2 / spec.network_radius**2) ** 2)) * np.clip(grey / 0.6, 0, 1)
    weight[weight < 0.1] = 0
    return (
        inside.reshape(grid),
        baseline.astype(np.float32),
        weight[inside].astype(np.float32),
        sensory[inside],
    )


def _noise(spec: SyntheticSpec, rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Fluctuations as a fraction of the baseline, float32 [T, N], with a mean power of 1/tSNR^2."""
    sigma = spec.smoothness / math.sqrt(8 * math.log(2)) / spec.voxel_mm
    smooth = np.stack([_smooth_field(rng, spec.grid, sigma)[mask] for _ in range(spec.frames)])
    for t in range(1, spec.frames):
        smooth[t] = spec.ar1 * smooth[t - 1] + math.sqrt(1 - spec.ar1**2) * smooth[t]
    thermal = rng.standard_normal(smooth.shape, dtype=np.float32)
    noise = math.sqrt(1 - _THERMAL) * smooth + math.sqrt(_THERMAL) * thermal
    for cycles in (0.5, 1.0):  # scanner drift: slow cosines with smooth maps
        drift = np.cos(np.pi * cycles * (np.arange(spec.frames) + 0.5) / spec.frames)
        field = _smooth_field(rng, spec.grid, 30 / spec.voxel_mm)[mask]
        noise += 0.3 * drift.astype(np.float32)[:, None] * field
    noise -= noise.mean(axis=0)
    return noise / (noise.std() * spec.tsnr)


def _oscillations(rng: np.random.Generator, frames: int) -> np.ndarray:
    """The planted time courses of class 0 and 1, float64 [2, T]: mean 0 and variance 1 exactly."""
    time = np.arange(frames)
    courses = np.stack(
        [np.sin(2 * np.pi * (rng.uniform(*band) * time + rng.uniform())) for band in _BANDS]
    )
    courses -= courses.mean(axis=1, keepdims=True)
    return courses / courses.std(axis=1, keepdims=True)


def _affine(spec: SyntheticSpec) -> np.ndarray:
    """RAS affine [4, 4] whose grid is centred on the brain."""
    affine = np.diag([spec.voxel_mm] * 3 + [1.0])
    affine[:3, 3] = _BRAIN_CENTRE_MM - spec.voxel_mm * (np.array(spec.grid) - 1) / 2
    return affine


def planted_weight(spec: SyntheticSpec, index: int) -> np.ndarray:
    """Where the classes differ in a subject: the weight of the planted network.

    Args:
        spec, index: as of ``generate_subject``.

    Returns:
        float32 [X, Y, Z] in the order of its volume, 0 to 1; 0 where nothing is planted.
    """
    rng = np.random.default_rng([spec.seed, index])
    mask, _, weight, _ = _anatomy(spec, rng, _affine(spec))
    volume = np.zeros(spec.grid, dtype=np.float32)
    volume[mask] = weight
    return np.ascontiguousarray(volume[::-1]) if spec.orientation == "LAS" else volume


def generate_subject(
    spec: SyntheticSpec, index: int, sex: int | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """One run of one subject; the same for any number of subjects.

    Args:
        spec: what to generate.
        index: the subject, from 0.
        sex: class 0 (F) or 1 (M) instead of the subject's own. The random draws do not depend on
            it, so both versions share mask, mean image and variance image.

    Returns:
        volume: float32 [X, Y, Z, T], positive in the brain and exactly 0 outside.
        affine: 4x4, voxel -> mm.
        labels: the row of ``participants.csv``.
    """
    rng = np.random.default_rng([spec.seed, index])
    if sex is None:
        sex = subject_class(spec.seed, index)
    affine = _affine(spec)

    mask, baseline, weight, sensory = _anatomy(spec, rng, affine)
    noise = _noise(spec, rng, mask)
    courses = _oscillations(rng, spec.frames)
    # Without what both classes' time courses explain, adding either one gives the same variance.
    basis, _ = np.linalg.qr(np.vstack([np.ones(spec.frames), courses]).T)
    noise -= basis.astype(np.float32) @ (basis.astype(np.float32).T @ noise)
    amplitude = spec.effect_size * weight
    if spec.effect == "spatial":
        sign = 1.0 if sex else -1.0
        frames = baseline * (1 + noise + sign * _BRIGHTER * amplitude)
    else:
        course = courses[sex if spec.effect == "dynamics" else 0].astype(np.float32)[:, None]
        signed = amplitude
        if spec.effect == "correlations":
            signed = amplitude * np.where(sensory & (sex == 0), -1, 1).astype(np.float32)
        planted = course * (signed * noise.std(axis=0))
        frames = baseline * (1 + (noise + planted) / np.sqrt(1 + amplitude**2))

    volume = np.zeros((*spec.grid, spec.frames), dtype=np.float32)
    volume[mask] = frames.T
    if spec.orientation == "LAS":
        volume = np.ascontiguousarray(volume[::-1])
        affine[0] = -affine[0, 0], 0, 0, affine[0, 3] + affine[0, 0] * (spec.grid[0] - 1)
    return volume, affine, subject_labels(spec.seed, index, sex)
