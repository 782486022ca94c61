"""Reading a 4D NIfTI run: its header, and its frames as a stream.

Nothing here holds a whole run: a file is decompressed frame by frame, and a frame is a flat vector
in the order of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel import orientations

from neuromamba.common.errors import UserInputError, see
from neuromamba.config.names import ORIENTATION
from neuromamba.data.ingest.gzip_stream import START as _GZIP_START
from neuromamba.data.ingest.gzip_stream import GzipStream
from neuromamba.data.ingest.gzip_stream import errors as gzip_errors
from neuromamba.data.ingest.single_precision import SignalPrecision
from neuromamba.data.store.header import Triple

# What reading a damaged file raises; BadGzipFile is an OSError.
_MOST_PACKED = 1100  # times; deflate packs zeros 1032 times
READ_ERRORS: tuple[type[Exception], ...] = (*gzip_errors, EOFError, OSError)


# Of an image of labels; counting voxels takes memory for each number up to the highest.
HIGHEST_LABEL = 1_000_000
_LABEL_ROUNDING = 1e-3  # of labels that were saved as scaled integers
# First byte of the values in a file of one piece, by the size of its header.
_SMALLEST_OFFSET = {348: 352, 540: 544}
# Degrees between the same voxel axis by qform and by sform: normalisation turns a head by less.
_CONTRADICTING = 60.0
_AGAIN = "Copy or download the file again, or leave it out."


class _HashingReader(io.RawIOBase):
    """A file that feeds what is read from it to a hash."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        done = self.raw.readinto(buffer)  # type: ignore[attr-defined]
        self.sha256.update(memoryview(buffer)[:done])
        return int(done)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as it lies on disk, as hexadecimal digits."""
    try:
        with open(path, "rb") as raw:
            reader = _HashingReader(raw)
            while reader.read(1 << 20):
                pass
    except OSError as error:
        raise damaged(path, error) from None
    return reader.sha256.hexdigest()


class NiftiRun:
    """A 4D NIfTI-1 or NIfTI-2 file.

    Args:
        path: ``.nii`` or ``.nii.gz``; only the header is read.

    Attributes:
        shape: X, Y, Z in the order of the file.
        n_frames: T.
        affine: [4, 4], voxel indices of the file -> mm.
        to_las: nibabel orientation transform of a volume of the file to LAS.
        space_code: NIfTI's code of the affine's space; 0 if neither qform nor sform is set, so
            that the affine is a guess; 1 scanner, 2 aligned, 3 Talairach, 4 MNI152.
        sha256: of the file, after ``frames`` ran to its end.
        trailing_bytes: what followed after the last frame, likewise.

    Raises:
        UserInputError: not a NIfTI file, not 4D, complex values, an unusable affine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        image = load_image(path)
        # X Y Z 1 T and X Y Z T 1 are runs: their values lie in the file as those of X Y Z T do.
        several = [size for size in image.shape[3:] if size != 1]
        shape = image.shape
        if len(shape) > 4 and len(several) < 2:
            shape = (*shape[:3], *(several or [1]))
        if len(shape) != 4 or min(shape) < 1:
            raise UserInputError(
                f"{path}: {len(shape)}D image of {' x '.join(map(str, shape))}, expected a 4D run "
                f"(X, Y, Z, T). Remove it from the input folder, or merge the volumes of the run "
                f"into one 4D file."
            )
        self.shape: Triple = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.n_frames = int(shape[3])
        proxy: Any = image.dataobj
        self._dtype: np.dtype[Any] = proxy.dtype
        if self._dtype.kind not in "iuf":
            raise UserInputError(
                f"{path}: the values are {self._dtype}, expected real numbers. Convert the file "
                f"to float32 or int16."
            )
        self._slope, self._inter = proxy.slope, proxy.inter
        # Some programs write 0 and mean "right after the header" (NIfTI-1 standard, vox_offset).
        self._start = max(int(proxy.offset), _SMALLEST_OFFSET[int(image.header["sizeof_hdr"])])
        self._is_unscaled = self._slope == 1 and self._inter == 0
        self._check_size()
        header: Any = image.header
        self.header_tr = float(header["pixdim"][4])
        self.time_unit: str = header.get_xyzt_units()[1]
        self.space_code = int(header["sform_code"] or header["qform_code"])
        self._compare_forms(header)
        self.affine = np.asarray(image.affine, dtype=np.float64)
        self.to_las = las_transform(self.affine, path)
        self.sha256 = ""
        self.trailing_bytes = 0

    def _compare_forms(self, header: Any) -> None:
        """The two affines of a header may differ, but not in what is left and right."""
        try:
            forms = [header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]]
        except ValueError as error:
            raise UserInputError(
                f"{self.path}: its qform is no rotation ({error}). Copy the sform over it if that "
                f"is right (fslorient -copysform2qform), or write the file again."
            ) from None
        if any(form is None for form in forms):
            return
        q, s = (form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in forms)
        mirrors = np.linalg.det(q) * np.linalg.det(s) < 0
        angle = np.degrees(np.arccos(np.clip((q * s).sum(axis=0), -1, 1))).max()
        if not mirrors and not angle > _CONTRADICTING:
            return
        what = "one mirrors the other" if mirrors else f"an axis differs by {angle:.0f} degrees"
        raise UserInputError(
            f"{self.path}: qform and sform contradict each other: {what}, so the orientation is "
            f"unknown. Find out which is right and copy it (fslorient -copysform2qform or "
            f"-copyqform2sform). {see('qform-sform')}"
        )

    def _check_size(self) -> None:
        """A file must have, or be able to unpack to, the size that its header implies."""
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise damaged(self.path, error) from None
        if self.path.name.endswith(".gz"):
            size *= _MOST_PACKED  # before memory is taken for a frame that cannot be there
        expected = self._start + math.prod(self.shape) * self.n_frames * self._dtype.itemsize
        if size < expected:
            raise damaged(
                self.path, EOFError(f"{size} of the {expected} bytes of its header are present")
            )

    @property
    def las_shape(self) -> Triple:
        """X, Y, Z after the reorientation."""
        x, y, z = np.argsort(self.to_las[:, 0])
        return self.shape[x], self.shape[y], self.shape[z]

    @property
    def las_affine(self) -> np.ndarray:
        """[4, 4], indices of the reoriented volume -> mm."""
        return np.asarray(self.affine @ orientations.inv_ornt_aff(self.to_las, self.shape))

    def reorient(self, volume: np.ndarray) -> np.ndarray:
        """A volume [X, Y, Z] of the file in LAS order; a view."""
        return np.asarray(orientations.apply_orientation(volume, self.to_las))

    def unflatten(self, frame: np.ndarray) -> np.ndarray:
        """A flat frame as a LAS volume [X, Y, Z]; a view."""
        return self.reorient(frame.reshape(self.shape, order="F"))

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        """Frames from ``first`` on: float32 [X * Y * Z] in the order of the file, scaled.

        A frame may be a view of the buffer that the next one is read into: copy what is to stay.

        Raises:
            UserInputError: a truncated or corrupt file, at the point where it shows; NaN or
                infinite values, with their number, after the last frame.
        """
        size = math.prod(self.shape)
        buffer = bytearray(size * self._dtype.itemsize)
        bad_values = bad_frames = 0
        precision = SignalPrecision(self._dtype)
        try:
            with self._stream() as (stream, reader):
                if _read(stream, self._start) < self._start:
                    raise EOFError("the header is incomplete")
                for t in range(self.n_frames):
                    if _read_into(stream, buffer) < len(buffer):
                        raise EOFError(f"{t} of {self.n_frames} frames are present")
                    if t < first:
                        continue
                    raw = np.frombuffer(buffer, self._dtype)
                    frame = self._scaled(raw)
                    precision.add(raw)
                    bad = size - int(np.count_nonzero(np.isfinite(frame)))
                    bad_values, bad_frames = bad_values + bad, bad_frames + (bad > 0)
                    yield frame
                self._read_to_the_end(stream, len(buffer))  # the checksum is there
                while reader.read(1 << 20):
                    pass
                self.sha256 = reader.sha256.hexdigest()
        except READ_ERRORS as error:
            raise damaged(self.path, error) from None
        if bad_values:
            raise UserInputError(
                f"{self.path}: {bad_values} NaN or infinite values in {bad_frames} of "
                f"{self.n_frames - first} frames, expected finite numbers. Repair the "
                f"preprocessing, or set them to 0 (fslmaths IN -nan OUT). {see('nan-values')}"
            )
        precision.check(self.path)

    def _read_to_the_end(self, stream: Any, frame_size: int) -> None:
        """Count what follows after the last frame; as much as another frame is refused."""
        self.trailing_bytes = 0
        while chunk := stream.read(1 << 20):
            self.trailing_bytes += len(chunk)
        if self.trailing_bytes >= frame_size:
            raise UserInputError(
                f"{self.path}: {self.trailing_bytes} bytes follow after the {self.n_frames} frames "
                f"of {' x '.join(map(str, self.shape))} that the header gives: header and data "
                f"do not belong together. Take the file from its origin again."
            )
        self.trailing_bytes += getattr(stream, "trailing_bytes", 0)

    def _scaled(self, raw: np.ndarray) -> np.ndarray:
        if raw.dtype == np.float32 and raw.dtype.isnative and self._is_unscaled:
            return raw
        if self._is_unscaled:
            with np.errstate(over="ignore"):  # an overflow becomes inf, which is reported
                return raw.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return (raw * np.float64(self._slope) + np.float64(self._inter)).astype(np.float32)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[tuple[Any, _HashingReader]]:
        with open(self.path, "rb") as raw:
            reader = _HashingReader(raw)
            if self.path.name.endswith(".gz"):
                yield GzipStream(reader), reader
            else:
                yield reader, reader


def _packed_twice(path: Path) -> bool:
    with open(path, "rb") as raw:
        return GzipStream(raw).read(2) == _GZIP_START


def _read(stream: Any, size: int) -> int:
    return _read_into(stream, bytearray(size))


def _read_into(stream: Any, buffer: bytearray) -> int:
    """Fill the buffer; the number of bytes read is smaller only at the end of the file."""
    view, done = memoryview(buffer), 0
    while done < len(buffer):
        count = stream.readinto(view[done:])
        if not count:
            break
        done += count
    return done


def damaged(path: Path, error: BaseException) -> UserInputError:
    """The error to raise for a file that cannot be read to its end."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return UserInputError(
            f"{path}: a link to '{os.readlink(path)}', which is not there. Fetch the file (datalad "
            f"get, git annex get) or remove the link. {see('not-fetched')}"
        )
    if isinstance(error, PermissionError):
        return UserInputError(
            f"{path}: cannot be read ({error.strerror}). Have the permissions changed (chmod u+r)."
        )
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return UserInputError(f"{path}: cannot be read ({error.strerror}).")
    return UserInputError(
        f"{path}: truncated or corrupt ({error}). Copy or download the file again "
        f"(gzip -t tests a .gz file). {see('truncated')}"
    )


def load_image(path: Path) -> Any:
    """nibabel image with its header read; the values stay on disk.

    Raises:
        UserInputError: a damaged file, or one that is not NIfTI.
    """
    try:
        with open(path, "rb") as raw:  # nibabel would not say why a file cannot be opened
            start = raw.read(2)
        if not path.name.endswith(".gz") and start == _GZIP_START:
            raise UserInputError(
                f"{path}: compressed, though its name does not end in .gz. Rename it to "
                f"{path.name}.gz."
            )
        if path.name.endswith(".gz") and start == _GZIP_START and _packed_twice(path):
            raise UserInputError(
                f"{path}: compressed twice. Unpack it once (gunzip -c '{path.name}' > OUT.nii.gz) "
                f"and give OUT.nii.gz."
            )
        if path.name.endswith(".gz") and start not in (_GZIP_START, b""):
            raise UserInputError(
                f"{path}: not compressed, though its name ends in .gz. Rename it if it is a .nii "
                f"file. {_AGAIN}"
            )
        image = nibabel.load(path)
    except UserInputError:
        raise
    except READ_ERRORS as error:
        raise damaged(path, error) from None
    except (ValueError, OverflowError) as error:  # numbers that no header has
        raise damaged(path, error) from None
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        if "intercept" in str(error) or "slope" in str(error):
            raise UserInputError(
                f"{path}: the scaling of its header is no number ({error}). Correct it: nifti_tool "
                f"-mod_hdr -mod_field scl_inter 0 -prefix OUT.nii.gz -infiles '{path.name}', or "
                f"write the file again."
            ) from None
        raise UserInputError(f"{path}: not a NIfTI image ({error}). {_AGAIN}") from None
    if not isinstance(image, nibabel.Nifti1Pair):  # NIfTI-2 is a subclass
        raise UserInputError(f"{path}: a {type(image).__name__}, expected NIfTI-1 or NIfTI-2.")
    return image


def read_labels(path: Path, flag: str) -> Any:
    """An image of labels: one volume [X, Y, Z] of int32, 0 outside the regions.

    Args:
        path: of it.
        flag: that named it.

    Raises:
        UserInputError: it cannot be read, or holds something else.
    """
    try:
        image = load_image(path)
        las_transform(image.affine, path)  # refuses an affine that is none
        data = np.asanyarray(image.dataobj)
    except READ_ERRORS as error:
        raise UserInputError(f"{flag}: {damaged(path, error)}") from None
    except UserInputError as error:
        raise UserInputError(f"{flag}: {error}") from None
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if (
        data.ndim != 3
        or not np.allclose(data, np.rint(data), atol=_LABEL_ROUNDING, rtol=0)
        or not 0 <= data.min() <= data.max() <= HIGHEST_LABEL
    ):
        raise UserInputError(
            f"{flag}: '{path}' is {data.shape} of {data.dtype}, expected one volume of whole "
            f"numbers up to {HIGHEST_LABEL}, 0 outside the regions."
        )
    if not data.any():
        raise UserInputError(f"{flag}: '{path}' has no region: all its voxels are 0.")
    return nibabel.Nifti1Image(np.rint(data).astype(np.int32), image.affine)


def las_transform(affine: np.ndarray, path: Path) -> np.ndarray:
    """nibabel orientation transform [3, 2] of a volume with this affine to LAS.

    Raises:
        UserInputError: the affine is singular or not finite.
    """
    if np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3:
        found = orientations.io_orientation(affine)
        wanted = orientations.axcodes2ornt(tuple(ORIENTATION))
        if np.isfinite(found).all():
            return np.asarray(orientations.ornt_transform(found, wanted))
    raise UserInputError(
        f"{path}: the affine of the header is not invertible, so left and right are unknown. "
        f"Set qform or sform (fslorient), or take the file from its origin again."
    )
