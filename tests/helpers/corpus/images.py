"""Images, masks, sidecars and names as they go wrong in laboratories, each with what is to be said.

``write_corpus`` puts them all into one folder beside good runs. A ``BadInput`` is a function that
writes the file; the table at the end names the part of the message to expect and the remedy.
"""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from tests.helpers.scans import LAS, RAS, SHAPE, brain, save, save_mask, scan, write_json


@dataclass(frozen=True)
class BadInput:
    """A bad input.

    Attributes:
        file: name of the run in the folder.
        write: writes it, and what belongs to it; gets path and seed.
        found: part of the message that says what is wrong.
        remedy: part of the message that says what to do.
        converted: the run is usable; it is converted with the message as a note.
    """

    file: str
    write: Callable[[Path, int], object]
    found: str
    remedy: str
    converted: bool = False


GOOD = ("good1", "good2", "good3", "good4")


def write_good(folder: Path) -> None:
    """RAS and LAS, demeaned, with scl_slope."""
    save(folder / "good1_rest.nii.gz", scan(1))
    save(folder / "good2_rest.nii.gz", scan(2)[::-1], RAS)
    demeaned = scan(3).astype(np.float32) - 1000 * brain()[..., None]
    save(folder / "good3_rest.nii", demeaned)
    image = nibabel.Nifti1Image(scan(4), LAS)
    image.set_sform(LAS, 4)
    image.header.set_slope_inter(0.5, 0)
    image.header["pixdim"][4] = 2
    nibabel.save(image, folder / "good4_rest.nii.gz")


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


def _with_tr(tr: float) -> Callable[[Path, int], object]:
    return lambda path, seed: save(path, scan(seed), tr=tr)


def _with_sidecar(content: str) -> Callable[[Path, int], object]:
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


_AGAIN = "Copy or download the file again"
_HEADER = "give --tr SECONDS"
_MASK = "choose the mask with --mask"
_NATIVE = "--space native"
BAD_INPUTS = (
    BadInput("truncated.nii.gz", truncated, "truncated or corrupt", _AGAIN),
    BadInput("start_x.nii.gz", start_only, "truncated or corrupt", _AGAIN),
    BadInput("bit.nii.gz", flipped_bit, "truncated or corrupt", _AGAIN),
    BadInput("checksum.nii.gz", flipped_checksum, "truncated or corrupt", _AGAIN),
    BadInput("notpacked.nii.gz", not_packed, "not compressed, though", "Rename it"),
    BadInput("login.nii", text, "not a NIfTI image", _AGAIN),
    BadInput("html.nii.gz", text, "not compressed, though", _AGAIN),
    BadInput("nothing.nii", nothing, "not a NIfTI image", _AGAIN),
    BadInput("nothingz.nii.gz", nothing, "not a NIfTI image", _AGAIN),
    BadInput("cut.nii", cut_off, "truncated or corrupt", _AGAIN),
    BadInput("dimmore.nii.gz", more_frames_told, "24 of 48 frames are present", _AGAIN),
    BadInput(
        "dimless.nii.gz", fewer_frames_told, "bytes follow after the 12 frames", "origin again"
    ),
    BadInput("dimx.nii.gz", other_width_told, "header and data do not belong", "origin again"),
    BadInput("dim0.nii.gz", no_frames_told, "expected a 4D run", "Remove it"),
    BadInput("tail.nii.gz", some_more_bytes, "9 bytes after the last frame", "left alone", True),
    BadInput("three.nii.gz", three_dimensions, "3D image of 12 x 14 x 12", "merge the volumes"),
    BadInput("five.nii.gz", five_dimensions, "5D image", "expected a 4D run"),
    BadInput("one.nii.gz", one_frame, "1 frame(s), expected at least 10", "--min_frames"),
    BadInput("short.nii.gz", short, "7 frame(s), expected at least 10", "--min_frames"),
    BadInput("nan.nii.gz", nan, "3 NaN or infinite values in 3 of 24", "fslmaths IN -nan OUT"),
    BadInput("inf.nii.gz", infinite, "1 NaN or infinite values in 1 of 24", "Repair"),
    BadInput("slope.nii.gz", overflowing_slope, "NaN or infinite values", "Repair"),
    BadInput("zeros.nii.gz", zeros, "every voxel has the value 0", "origin again"),
    BadInput("onevalue.nii.gz", one_value, "all brain voxels have the value", "origin again"),
    BadInput("frozen.nii.gz", frozen, "brain voxels have one value each in every frame", "--mask"),
    BadInput("freezing.nii.gz", partly_frozen, "have one value in every frame", "check run", True),
    BadInput("complex.nii.gz", complex_values, "the values are complex64", "Convert the file"),
    BadInput("colours.nii.gz", colours, "expected real numbers", "Convert the file"),
    BadInput("flat.nii.gz", flat_affine, "not invertible", "fslorient"),
    BadInput("nanaffine.nii.gz", nan_affine, "not invertible", "fslorient"),
    BadInput("nospace.nii.gz", no_space, "neither qform nor sform is set", _NATIVE),
    BadInput("scanner.nii.gz", scanner_space, "not in MNI space by its header", _NATIVE),
    BadInput("metres.nii.gz", metres, "not in MNI space by its header", "docs/preprocessing.md"),
    BadInput("origin.nii.gz", lost_origin, "the header says MNI152, but", "Correct the header"),
    BadInput("sub-b1_space-T1w_bold.nii.gz", plain_run, "in native space", _NATIVE),
    BadInput("sub-b2_space-OASIS30ANTs_bold.nii.gz", plain_run, "in the space OASIS", "Normalise"),
    BadInput("tilted.nii.gz", oblique, "tilted by 7.0 degrees", "--resample MM"),
    BadInput("voxels.nii.gz", larger_voxels, "voxels of 19.2 x 18.7 x 19.2 mm", "--resample 16"),
    BadInput("trzero.nii.gz", _with_tr(0), "TR of the header is 0", _HEADER, True),
    BadInput("trms.nii.gz", _with_tr(2000), "2000 sec; taken as msec", "2 s", True),
    BadInput("trneg.nii.gz", _with_tr(-2), "TR of the header is -2", _HEADER, True),
    BadInput("trone.nii.gz", _with_tr(1), "often a placeholder", "check it", True),
    BadInput("json.nii.gz", _with_sidecar("{"), "json.json: not a JSON sidecar", "--tr SECONDS"),
    BadInput("jtext.nii.gz", _with_sidecar('{"RepetitionTime": "two"}'), "numeric", "--tr SECONDS"),
    BadInput("jms.nii.gz", _with_sidecar('{"RepetitionTime": 2e3}'), "is 2000 s", _HEADER, True),
    BadInput("sub-b3_bold.nii.gz", mask_of_another_shape, "is not on the grid", _MASK),
    BadInput("sub-b4_bold.nii.gz", mask_elsewhere, "has another affine", _MASK),
    BadInput("sub-b5_bold.nii.gz", empty_mask, "is empty", "--mask PATH"),
    BadInput("sub-b6_bold.nii.gz", broken_mask, "brain_mask.nii.gz: truncated", _AGAIN),
    BadInput("sub-b7_bold.nii.gz", mask_as_a_run, "a mask of 4 dimensions", "expected 3"),
    BadInput("packed.nii", compressed_under_another_name, "compressed, though", "Rename it"),
    BadInput("twice.nii.gz", compressed_twice, "compressed twice", "gunzip -c"),
    BadInput("after.nii.gz", bytes_after_the_stream, "35 bytes after the last", "alone", True),
    BadInput("inter.nii.gz", intercept_that_is_no_number, "is no number", "nifti_tool -mod_hdr"),
    BadInput("int32.nii.gz", large_integers, "single precision cannot hold", "Subtract a constant"),
    BadInput(
        "double.nii.gz",
        large_doubles,
        "single precision cannot hold",
        "fslmaths -dt double IN -sub",
    ),
    BadInput("turned.nii.gz", turned_qform, "an axis differs by 180 degrees", "fslorient"),
    BadInput("swapped.nii.gz", swapped_qform, "an axis differs by 90 degrees", "fslorient"),
    BadInput("sub-m1_bold.nii.gz", mask_of_all_ones, "more than a brain", "all ones", True),
    BadInput("sub-m2_bold.nii.gz", inverted_mask, "more than a brain", "inverted", True),
    BadInput("sub-m3_bold.nii.gz", mask_of_one_voxel, "holds 4 cm3, less than", "check it", True),
    BadInput("jlink.nii.gz", sidecar_not_fetched, "jlink.json: a link to", "git annex get"),
    BadInput("hcopy_x.nii.gz", copy_of_a_good_one, "the same file as good1_rest", "Remove one"),
    BadInput("link.nii.gz", missing_target, "which is not there", "datalad get"),
    BadInput("shut.nii.gz", unreadable, "cannot be read (Permission denied)", "chmod u+r"),
    BadInput("sub-b8_bold.nii.gz", plain_run, "by its name the run sub-b8", "Rename one"),
    BadInput(
        "again/sub-b8_bold.nii.gz", below_a_folder, "by its name the run sub-b8", "Rename one"
    ),
)


def write_corpus(folder: Path) -> None:
    """All bad inputs, and the good ones between them."""
    folder.mkdir(parents=True)
    write_good(folder)
    for seed, bad in enumerate(BAD_INPUTS, start=100):
        bad.write(folder / bad.file, seed)
    write_json(folder / "participants.json", {"unrelated": True})
    (folder / "sub-b9_events.tsv").write_text("onset\tduration\n0\t1\n")
