"""Writers of images, masks and sidecars as they go wrong; each gets a run's path and a seed."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from tests.helpers.scans import LAS, SHAPE, brain, save, save_mask, scan


def _bytes_of(seed: int) -> bytes:
    image = nibabel.Nifti1Image(scan(seed), LAS)
    image.set_sform(LAS, 4)
    image.header["pixdim"][4] = 2
    return image.to_bytes()


def _packed(seed: int) -> bytearray:
    return bytearray(gzip.compress(_bytes_of(seed), compresslevel=1, mtime=0))


def truncated(path: Path, seed: int) -> None:
    packed = _packed(seed)
    path.write_bytes(packed[: len(packed) // 2])


def start_only(path: Path, seed: int) -> None:
    path.write_bytes(_packed(seed)[:100])


def flipped_bit(path: Path, seed: int) -> None:
    packed = _packed(seed)
    packed[len(packed) // 2] ^= 0x10
    path.write_bytes(packed)


def flipped_checksum(path: Path, seed: int) -> None:
    packed = _packed(seed)
    packed[-6] ^= 0x01
    path.write_bytes(packed)


def not_packed(path: Path, seed: int) -> None:
    path.write_bytes(_bytes_of(seed))


def text(path: Path, seed: int) -> None:
    path.write_text("<html>Login required</html>" * 50)


def nothing(path: Path, seed: int) -> None:
    path.write_bytes(b"")


def cut_off(path: Path, seed: int) -> None:
    path.write_bytes(_bytes_of(seed)[:-1000])


def _with_dim(path: Path, seed: int, axis: int, size: int) -> None:
    """The header's dim[axis] is another than the data's."""
    raw = bytearray(_bytes_of(seed))
    struct.pack_into("<h", raw, 40 + 2 * axis, size)
    path.write_bytes(gzip.compress(bytes(raw), compresslevel=1))


def more_frames_told(path: Path, seed: int) -> None:
    _with_dim(path, seed, 4, 48)


def fewer_frames_told(path: Path, seed: int) -> None:
    _with_dim(path, seed, 4, 12)


def other_width_told(path: Path, seed: int) -> None:
    _with_dim(path, seed, 1, SHAPE[0] - 2)


def no_frames_told(path: Path, seed: int) -> None:
    _with_dim(path, seed, 4, 0)


def some_more_bytes(path: Path, seed: int) -> None:
    path.write_bytes(gzip.compress(_bytes_of(seed) + b"extension"))


def three_dimensions(path: Path, seed: int) -> None:
    save(path, scan(seed)[..., 0])


def five_dimensions(path: Path, seed: int) -> None:
    save(path, np.stack([scan(seed)] * 2, axis=-1))


def one_frame(path: Path, seed: int) -> None:
    save(path, scan(seed, frames=1))


def short(path: Path, seed: int) -> None:
    save(path, scan(seed, frames=7))


def _floats(seed: int) -> np.ndarray:
    return scan(seed).astype(np.float32)


def nan(path: Path, seed: int) -> None:
    values = _floats(seed)
    values[6, 7, 6, 2:5] = np.nan
    save(path, values)


def infinite(path: Path, seed: int) -> None:
    values = _floats(seed)
    values[6, 7, 6, 3] = np.inf
    save(path, values)


def overflowing_slope(path: Path, seed: int) -> None:
    raw = bytearray(_bytes_of(seed))
    struct.pack_into("<f", raw, 112, 3e38)
    path.write_bytes(gzip.compress(bytes(raw)))


def zeros(path: Path, seed: int) -> None:
    save(path, 0 * scan(seed))


def one_value(path: Path, seed: int) -> None:
    save(path, np.repeat(brain()[..., None].astype(np.int16) * (100 + seed), 24, axis=3))


def frozen(path: Path, seed: int) -> None:
    values = scan(seed)
    values[: SHAPE[0] // 2 + 1] = values[: SHAPE[0] // 2 + 1, :, :, :1]
    save(path, values)


def partly_frozen(path: Path, seed: int) -> None:
    values = scan(seed)
    values[: SHAPE[0] // 3] = values[: SHAPE[0] // 3, :, :, :1]
    save(path, values)


def complex_values(path: Path, seed: int) -> None:
    save(path, scan(seed).astype(np.complex64))


def colours(path: Path, seed: int) -> None:
    rgb = np.zeros((*SHAPE, 24), [(colour, "u1") for colour in "RGB"])
    rgb["R"] = scan(seed) // 20
    save(path, rgb)


def _with_affine(path: Path, seed: int, affine: np.ndarray, code: int) -> None:
    """``save`` would not write a broken affine."""
    raw = bytearray(_bytes_of(seed))
    struct.pack_into("<2h", raw, 252, 0, code)
    struct.pack_into("<12f", raw, 280, *affine[:3].ravel())
    path.write_bytes(gzip.compress(bytes(raw)))


def flat_affine(path: Path, seed: int) -> None:
    _with_affine(path, seed, LAS * [[1], [1], [0], [1]], 4)


def nan_affine(path: Path, seed: int) -> None:
    _with_affine(path, seed, LAS * [[1], [np.nan], [1], [1]], 4)


def no_space(path: Path, seed: int) -> None:
    _with_affine(path, seed, LAS, 0)


def _moved(x: float, y: float, z: float) -> np.ndarray:
    affine = LAS.copy()
    affine[:3, 3] += x, y, z
    return affine


def scanner_space(path: Path, seed: int) -> None:
    save(path, scan(seed), _moved(9, 31, -22), code=1)


def metres(path: Path, seed: int) -> None:
    affine = LAS / 1000
    affine[3, 3] = 1
    save(path, scan(seed), affine, code=1)


def lost_origin(path: Path, seed: int) -> None:
    save(path, scan(seed), np.diag([-16.0, 16, 16, 1]))


def plain_run(path: Path, seed: int) -> None:
    save(path, scan(seed))


def oblique(path: Path, seed: int) -> None:
    angle = np.radians(7)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    save(path, scan(seed), turn @ LAS)


def larger_voxels(path: Path, seed: int) -> None:
    shape = (10, 12, 10)
    affine = np.array([[-19.2, 0, 0, 86.4], [0, 18.7, 0, -121], [0, 0, 19.2, -68], [0, 0, 0, 1]])
    save(path, scan(seed, shape=shape), affine)


def with_tr(tr: float) -> Callable[[Path, int], object]:
    return lambda path, seed: save(path, scan(seed), tr=tr)


def with_sidecar(content: str) -> Callable[[Path, int], object]:
    def write(path: Path, seed: int) -> None:
        save(path, scan(seed))
        path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(content)

    return write


def _mask_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix("_bold.nii.gz") + "_desc-brain_mask.nii.gz")


def mask_of_another_shape(path: Path, seed: int) -> None:
    save(path, scan(seed))
    save(_mask_of(path), brain()[:-1].astype(np.uint8))


def mask_elsewhere(path: Path, seed: int) -> None:
    save(path, scan(seed))
    save_mask(_mask_of(path), _moved(0, 16, 0))


def empty_mask(path: Path, seed: int) -> None:
    save(path, scan(seed))
    save(_mask_of(path), np.zeros(SHAPE, np.uint8))


def broken_mask(path: Path, seed: int) -> None:
    save(path, scan(seed))
    mask = save_mask(_mask_of(path))
    mask.write_bytes(mask.read_bytes()[:-20])


def mask_as_a_run(path: Path, seed: int) -> None:
    save(path, scan(seed))
    save(_mask_of(path), scan(seed))


def compressed_under_another_name(path: Path, seed: int) -> None:
    path.write_bytes(_packed(seed))


def compressed_twice(path: Path, seed: int) -> None:
    path.write_bytes(gzip.compress(bytes(_packed(seed))))


def bytes_after_the_stream(path: Path, seed: int) -> None:
    path.write_bytes(bytes(_packed(seed)) + b"garbage" * 5)


def intercept_that_is_no_number(path: Path, seed: int) -> None:
    raw = bytearray(_bytes_of(seed))
    struct.pack_into("<2f", raw, 112, 1.0, np.nan)
    path.write_bytes(gzip.compress(bytes(raw)))


def large_integers(path: Path, seed: int) -> None:
    """Around 2e8, where single precision counts in steps of 16."""
    noise = np.random.default_rng(seed).integers(-4, 5, (*SHAPE, 24))
    save(path, ((200_000_000 + noise) * brain()[..., None]).astype(np.int32))


def large_doubles(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 1, (*SHAPE, 24))
    save(path, (1e8 + noise) * brain()[..., None])


def turned_qform(path: Path, seed: int) -> None:
    """By 180 degrees about the vertical axis; not mirrored, so determinants agree."""
    _with_two_forms(path, seed, np.diag([-1.0, -1, 1, 1]) @ LAS)


def swapped_qform(path: Path, seed: int) -> None:
    """By 90 degrees: left and right are where front and back should be."""
    turn = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    _with_two_forms(path, seed, turn @ LAS)


def _with_two_forms(path: Path, seed: int, qform: np.ndarray) -> None:
    image = nibabel.Nifti1Image(scan(seed), LAS)
    image.set_sform(LAS, 4)
    image.set_qform(qform, 1)
    image.header["pixdim"][4] = 2
    nibabel.save(image, path)


def _noise(seed: int) -> np.ndarray:
    """Signal in the whole box, as before a mask is applied."""
    return np.random.default_rng(seed).normal(500, 20, (*SHAPE, 24)).astype(np.int16)


def _in_the_grid(mask: np.ndarray) -> np.ndarray:
    """Without the planes that the grid of 12 cuts off."""
    mask = mask.astype(np.uint8)
    mask[:, [0, -1]] = 0
    return mask


def mask_of_all_ones(path: Path, seed: int) -> None:
    save(path, _noise(seed))
    save(_mask_of(path), _in_the_grid(np.ones(SHAPE)))


def inverted_mask(path: Path, seed: int) -> None:
    save(path, _noise(seed))
    save(_mask_of(path), _in_the_grid(~brain()))


def mask_of_one_voxel(path: Path, seed: int) -> None:
    save(path, scan(seed))
    one = np.zeros(SHAPE, np.uint8)
    one[6, 7, 6] = 1
    save(_mask_of(path), one)


def sidecar_not_fetched(path: Path, seed: int) -> None:
    save(path, scan(seed))
    path.with_name(path.name.removesuffix(".nii.gz") + ".json").symlink_to("annex/object")


def copy_of_a_good_one(path: Path, seed: int) -> None:
    shutil.copy(path.with_name("good1_rest.nii.gz"), path)


def missing_target(path: Path, seed: int) -> None:
    path.symlink_to(path.with_name("annex-object-not-fetched"))


def unreadable(path: Path, seed: int) -> None:
    save(path, scan(seed)).chmod(0)


def below_a_folder(path: Path, seed: int) -> None:
    path.parent.mkdir()
    save(path, scan(seed))
