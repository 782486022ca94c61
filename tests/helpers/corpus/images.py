"""Images, masks, sidecars and names as they go wrong in laboratories, each with what is to be said.

``write_corpus`` puts them all into one folder beside good runs. A ``BadInput`` is a function that
writes the file; the table names the part of the message to expect and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from tests.helpers.corpus import image_writers as w
from tests.helpers.scans import LAS, RAS, brain, save, scan, write_json


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


_AGAIN = "Copy or download the file again"
_HEADER = "give --tr SECONDS"
_MASK = "choose the mask with --mask"
_NATIVE = "--space native"
BAD_INPUTS = (
    BadInput("truncated.nii.gz", w.truncated, "truncated or corrupt", _AGAIN),
    BadInput("start_x.nii.gz", w.start_only, "truncated or corrupt", _AGAIN),
    BadInput("bit.nii.gz", w.flipped_bit, "truncated or corrupt", _AGAIN),
    BadInput("checksum.nii.gz", w.flipped_checksum, "truncated or corrupt", _AGAIN),
    BadInput("notpacked.nii.gz", w.not_packed, "not compressed, though", "Rename it"),
    BadInput("login.nii", w.text, "not a NIfTI image", _AGAIN),
    BadInput("html.nii.gz", w.text, "not compressed, though", _AGAIN),
    BadInput("nothing.nii", w.nothing, "not a NIfTI image", _AGAIN),
    BadInput("nothingz.nii.gz", w.nothing, "not a NIfTI image", _AGAIN),
    BadInput("cut.nii", w.cut_off, "truncated or corrupt", _AGAIN),
    BadInput("dimmore.nii.gz", w.more_frames_told, "24 of 48 frames are present", _AGAIN),
    BadInput(
        "dimless.nii.gz",
        w.fewer_frames_told,
        "bytes follow after the 12 frames",
        "origin again",
    ),
    BadInput("dimx.nii.gz", w.other_width_told, "header and data do not belong", "origin again"),
    BadInput("dim0.nii.gz", w.no_frames_told, "expected a 4D run", "Remove it"),
    BadInput("tail.nii.gz", w.some_more_bytes, "9 bytes after the last frame", "left alone", True),
    BadInput("three.nii.gz", w.three_dimensions, "3D image of 12 x 14 x 12", "merge the volumes"),
    BadInput("five.nii.gz", w.five_dimensions, "5D image", "expected a 4D run"),
    BadInput("one.nii.gz", w.one_frame, "1 frame(s), expected at least 10", "--min_frames"),
    BadInput("short.nii.gz", w.short, "7 frame(s), expected at least 10", "--min_frames"),
    BadInput("nan.nii.gz", w.nan, "3 NaN or infinite values in 3 of 24", "fslmaths IN -nan OUT"),
    BadInput("inf.nii.gz", w.infinite, "1 NaN or infinite values in 1 of 24", "Repair"),
    BadInput("slope.nii.gz", w.overflowing_slope, "NaN or infinite values", "Repair"),
    BadInput("zeros.nii.gz", w.zeros, "every voxel has the value 0", "origin again"),
    BadInput("onevalue.nii.gz", w.one_value, "all brain voxels have the value", "origin again"),
    BadInput(
        "frozen.nii.gz", w.frozen, "brain voxels have one value each in every frame", "--mask"
    ),
    BadInput(
        "freezing.nii.gz", w.partly_frozen, "have one value in every frame", "check run", True
    ),
    BadInput("complex.nii.gz", w.complex_values, "the values are complex64", "Convert the file"),
    BadInput("colours.nii.gz", w.colours, "expected real numbers", "Convert the file"),
    BadInput("flat.nii.gz", w.flat_affine, "not invertible", "fslorient"),
    BadInput("nanaffine.nii.gz", w.nan_affine, "not invertible", "fslorient"),
    BadInput("nospace.nii.gz", w.no_space, "neither qform nor sform is set", _NATIVE),
    BadInput("scanner.nii.gz", w.scanner_space, "not in MNI space by its header", _NATIVE),
    BadInput("metres.nii.gz", w.metres, "not in MNI space by its header", "docs/preprocessing.md"),
    BadInput("origin.nii.gz", w.lost_origin, "the header says MNI152, but", "Correct the header"),
    BadInput("sub-b1_space-T1w_bold.nii.gz", w.plain_run, "in native space", _NATIVE),
    BadInput(
        "sub-b2_space-OASIS30ANTs_bold.nii.gz", w.plain_run, "in the space OASIS", "Normalise"
    ),
    BadInput("tilted.nii.gz", w.oblique, "tilted by 7.0 degrees", "--resample MM"),
    BadInput("voxels.nii.gz", w.larger_voxels, "voxels of 19.2 x 18.7 x 19.2 mm", "--resample 16"),
    BadInput("trzero.nii.gz", w.with_tr(0), "TR of the header is 0", _HEADER, True),
    BadInput("trms.nii.gz", w.with_tr(2000), "2000 sec; taken as msec", "2 s", True),
    BadInput("trneg.nii.gz", w.with_tr(-2), "TR of the header is -2", _HEADER, True),
    BadInput("trone.nii.gz", w.with_tr(1), "often a placeholder", "check it", True),
    BadInput("json.nii.gz", w.with_sidecar("{"), "json.json: not a JSON sidecar", "--tr SECONDS"),
    BadInput(
        "jtext.nii.gz", w.with_sidecar('{"RepetitionTime": "two"}'), "numeric", "--tr SECONDS"
    ),
    BadInput("jms.nii.gz", w.with_sidecar('{"RepetitionTime": 2e3}'), "is 2000 s", _HEADER, True),
    BadInput("sub-b3_bold.nii.gz", w.mask_of_another_shape, "is not on the grid", _MASK),
    BadInput("sub-b4_bold.nii.gz", w.mask_elsewhere, "has another affine", _MASK),
    BadInput("sub-b5_bold.nii.gz", w.empty_mask, "is empty", "--mask PATH"),
    BadInput("sub-b6_bold.nii.gz", w.broken_mask, "brain_mask.nii.gz: truncated", _AGAIN),
    BadInput("sub-b7_bold.nii.gz", w.mask_as_a_run, "a mask of 4 dimensions", "expected 3"),
    BadInput("packed.nii", w.compressed_under_another_name, "compressed, though", "Rename it"),
    BadInput("twice.nii.gz", w.compressed_twice, "compressed twice", "gunzip -c"),
    BadInput("after.nii.gz", w.bytes_after_the_stream, "35 bytes after the last", "alone", True),
    BadInput("inter.nii.gz", w.intercept_that_is_no_number, "is no number", "nifti_tool -mod_hdr"),
    BadInput(
        "int32.nii.gz", w.large_integers, "single precision cannot hold", "Subtract a constant"
    ),
    BadInput(
        "double.nii.gz",
        w.large_doubles,
        "single precision cannot hold",
        "fslmaths -dt double IN -sub",
    ),
    BadInput("turned.nii.gz", w.turned_qform, "an axis differs by 180 degrees", "fslorient"),
    BadInput("swapped.nii.gz", w.swapped_qform, "an axis differs by 90 degrees", "fslorient"),
    BadInput("sub-m1_bold.nii.gz", w.mask_of_all_ones, "more than a brain", "all ones", True),
    BadInput("sub-m2_bold.nii.gz", w.inverted_mask, "more than a brain", "inverted", True),
    BadInput("sub-m3_bold.nii.gz", w.mask_of_one_voxel, "holds 4 cm3, less than", "check it", True),
    BadInput("jlink.nii.gz", w.sidecar_not_fetched, "jlink.json: a link to", "git annex get"),
    BadInput("hcopy_x.nii.gz", w.copy_of_a_good_one, "the same file as good1_rest", "Remove one"),
    BadInput("link.nii.gz", w.missing_target, "which is not there", "datalad get"),
    BadInput("shut.nii.gz", w.unreadable, "cannot be read (Permission denied)", "chmod u+r"),
    BadInput("sub-b8_bold.nii.gz", w.plain_run, "by its name the run sub-b8", "Rename one"),
    BadInput(
        "again/sub-b8_bold.nii.gz", w.below_a_folder, "by its name the run sub-b8", "Rename one"
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
