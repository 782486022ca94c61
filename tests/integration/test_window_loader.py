"""Batches of windows: order, any number of loading processes, resuming, memory, dead processes."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch.utils.data import ConcatDataset
from torch.utils.data._utils.pin_memory import pin_memory

from neuromamba.commands.train import main
from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.data.store.reader import list_runs
from neuromamba.data.windows.cache import WindowCache
from neuromamba.data.windows.dataset import WindowDataset, collate_windows
from neuromamba.data.windows.loader import (
    BatchReader,
    EpochSampler,
    WindowLoader,
    in_order,
    window_loader,
)
from neuromamba.data.windows.shared_memory import Slots
from neuromamba.fmamba import trainer as trainer_module
from tests.helpers.paths import PROJECT, ROOT
from tests.helpers.tiny import GRID, CommandLine, write_tiny_run

CONFIG = DataConfig(dataset_name=("Dummy",), image_path=("store",), grid=GRID, sequence_length=4)
LENGTHS = (13, 9, 12, 25)
TWO_CHANNELS = {
    "input_scaling_method": "voxelnorm_zeroback",
    "channels": ("anatomy", "dynamics"),
}
# More processes than cores are what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes")


def write_store(folder: Path, compression: str) -> Path:
    for number, frames in enumerate(LENGTHS):
        path = folder / f"sub-{number}.h5"
        write_tiny_run(path, f"sub-{number}", number, frames=frames, compression=compression)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("none"), "none")


@pytest.fixture(scope="module")
def stores(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"none": store, "lz4": write_store(tmp_path_factory.mktemp("lz4"), "lz4")}


def windows_in(store: Path, config: DataConfig = CONFIG) -> ConcatDataset[Any]:
    """Two data sets, as of two stores."""
    paths = list_runs(store)
    labels = {f"sub-{number}": number % 2 for number in range(len(LENGTHS))}
    return ConcatDataset(
        [
            WindowDataset(some, config, labels=labels, dataset=number)
            for number, some in enumerate((paths[:2], paths[2:]))
        ]
    )


def loader(store: Path, workers: int = 0, cache: WindowCache | None = None, **more: Any) -> Any:
    config = replace(CONFIG, num_workers=workers, **more)
    windows = windows_in(store, config)
    return window_loader(windows, EpochSampler(len(windows), 7), config, 3, cache)


def plain(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as lists, to compare; on one rank every window of it counts."""
    assert not any(batch.get("is_padding", ()))

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str(value.dtype), value.tolist()
        return [of(item) for item in value] if isinstance(value, list) else value

    return {key: of(value) for key, value in batch.items() if key != "is_padding"}


def taken(slots: Slots | None) -> int:
    assert slots is not None
    gc.collect()
    return int(slots._taken.sum())


# --- order --------------------------------------------------------------------------------------


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(50, 3)
    first = list(sampler)
    assert sorted(first) == list(range(50)) and first != sorted(first)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(EpochSampler(50, 4)) != first


def test_order_of_a_strategy() -> None:
    sampler = EpochSampler(4, 0, order=lambda epoch: np.array([3, 3, 1, epoch]))
    sampler.set_epoch(2)
    assert list(sampler) == [3, 3, 1, 2] and len(sampler) == 4
    assert list(EpochSampler(5, 0, order=in_order(5))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("size", "ranks"), [(10, 3), (9, 3), (2, 4), (1, 1), (7, 2)])
def test_ranks(size: int, ranks: int) -> None:
    """The fewest are repeated so that ranks have as many; what is repeated is padding."""
    whole = list(EpochSampler(size, 5))
    padded = [EpochSampler(size, 5, rank=rank, ranks=ranks) for rank in range(ranks)]
    each = [list(sampler) for sampler in padded]
    assert {len(part) for part in each} == {-(-size // ranks)} == {len(s) for s in padded}
    everything = sorted(index for part in each for index in part)
    assert set(everything) == set(range(size))
    assert len(everything) - size < ranks
    # Steps of all ranks together walk through the one order.
    assert [index for step in zip(*each, strict=True) for index in step][:size] == whole
    counted = [
        index
        for sampler, part in zip(padded, each, strict=True)
        for place, index in enumerate(part)
        if not sampler.is_padding(place)
    ]
    assert sorted(counted) == list(range(size))


@pytest.mark.parametrize("position", [0, 1, 19, 20])
def test_sampler_goes_on(position: int) -> None:
    sampler = EpochSampler(20, 1)
    sampler.set_epoch(4)
    whole = list(sampler)
    walk = iter(sampler)
    assert [next(walk) for _ in range(position)] == whole[:position]
    state = sampler.state_dict()
    assert state == {"epoch": 4, "position": position}
    other = EpochSampler(20, 1)
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.set_epoch(4)  # as Lightning does
    assert list(other) == whole[position:]
    assert list(other) == whole, "once only"
    other.load_state_dict(state)
    other.set_epoch(5)
    assert len(list(other)) == 20, "of another epoch"


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize(
    ("workers", "change"),
    [
        *((workers, {}) for workers in range(4)),
        *((workers, {"shuffle_time_sequence": True}) for workers in (0, 2)),
        *((workers, {"stride_within_seq": 2}) for workers in (0, 2)),
        *((workers, TWO_CHANNELS) for workers in (0, 2)),
    ],
)
def test_batches_for_any_number_of_workers(
    stores: dict[str, Path], compression: str, workers: int, change: dict[str, Any]
) -> None:
    config = replace(CONFIG, **change)
    store = stores[compression]
    windows = windows_in(stores["none"], config)
    found = loader(store, workers, **change)
    for epoch in range(2):
        found.sampler.set_epoch(epoch)
        order = np.random.default_rng([7, epoch]).permutation(len(windows)).tolist()
        expected = [
            plain(collate_windows([windows[i] for i in order[k : k + 3]]))
            for k in range(0, len(order), 3)
        ]
        assert [plain(batch) for batch in found] == expected
    assert len(found) == -(-len(windows) // 3)


@pytest.mark.parametrize(("workers", "persistent"), [(0, True), (2, True), (2, False)])
def test_slots_are_free_again(store: Path, workers: int, persistent: bool) -> None:
    """Also of batches that were read ahead and never asked for."""
    found = loader(store, workers, persistent_workers=persistent)
    for epoch in range(3):
        found.sampler.set_epoch(epoch)
        walk = iter(found)
        next(walk)
        del walk
    found.sampler.set_epoch(0)
    walk = iter(found)
    batches = list(walk)
    slots = found.dataset.slots
    assert taken(slots) == min(len(batches), slots.count), "each batch holds its own"
    kept = batches[0]["bold"][1][2:3]  # a view of a view
    value = kept.clone()
    del batches, walk
    assert taken(slots) == 1
    assert torch.equal(kept, value)
    del kept
    assert taken(slots) == 0


def test_more_batches_kept_than_there_are_slots(store: Path) -> None:
    one, other = (
        loader(store, 1, prefetch_factor=1, stride_between_seq=0.25),
        loader(store, 0, stride_between_seq=0.25),
    )
    batches = list(one)
    slots = one.dataset.slots
    assert slots is not None and len(batches) > slots.count == taken(slots)
    assert [plain(batch) for batch in batches] == [plain(batch) for batch in other]


def test_loading_ends_with_the_training_process(store: Path) -> None:
    """Killed, it leaves no process and no memory behind."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "if __name__ == '__main__':\n"  # loading processes import the script and need none of it
        "    from tests.integration.test_window_loader import loader\n"
        "    found = loader(Path(sys.argv[1]), 2)\n"
        "    walk = iter(found)\n"
        "    next(walk)\n"
        "    print(*(p.pid for p in walk._deliveries._workers), flush=True)\n"
        "    time.sleep(60)\n"
    )
    script = store / "train.py"
    script.write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(script), str(store)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{PROJECT}"},
    )
    assert process.stdout is not None
    with process.stdout:
        workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)
    shared = Path("/dev/shm")
    if shared.is_dir():
        names = [path.name for path in shared.iterdir()]
        assert not [n for n in names if any(str(pid) in n for pid in (process.pid, *workers))]


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# --- going on in the middle ---------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_loader_goes_on(store: Path, workers: int, done: int) -> None:
    """The state counts what was handed out, not what was read ahead."""
    found = loader(store, workers)
    found.sampler.set_epoch(2)
    whole = [plain(batch) for batch in found]
    found.sampler.set_epoch(1)
    found.sampler.set_epoch(2)
    walk = iter(found)
    for _ in range(done):
        next(walk)
    state = found.state_dict()
    assert state == {"epoch": 2, "batches": done, "windows": len(found.dataset)}
    other = loader(store, workers)
    other.load_state_dict(state)
    walk = iter(other)  # Lightning does this before it sets the epoch
    other.sampler.set_epoch(2)
    assert other.state_dict() == state
    assert [plain(batch) for batch in walk] == whole[done:]
    assert other.state_dict()["batches"] == len(whole) == len(other)
    other.sampler.set_epoch(3)
    assert other.state_dict()["batches"] == 0
    assert len(list(other)) == len(whole)


def test_skipping_reads_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = loader(store)
    read: list[int] = []
    get = WindowDataset.read_into
    monkeypatch.setattr(
        WindowDataset,
        "read_into",
        lambda self, item, *to: (read.append(item), get(self, item, *to)),
    )
    found.load_state_dict({"epoch": 0, "batches": 3, "windows": len(found.dataset)})
    next(iter(found))
    assert len(read) == 3


def test_another_number_of_windows_is_refused(store: Path) -> None:
    found = loader(store)
    with pytest.raises(UserInputError, match=r"--resume_ckpt_path: .* of 99 windows, and now"):
        found.load_state_dict({"epoch": 0, "batches": 3, "windows": 99})


# --- the cache ----------------------------------------------------------------------------------


def digest(batches: Any) -> str:
    """Of frames and voxels."""
    found = hashlib.sha256()
    for batch in batches:
        for bold, vox in zip(batch["bold"], batch["vox"], strict=True):
            found.update(bold.numpy().tobytes())
            found.update(vox.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("places", [1, 3, 100])
def test_cache_changes_no_batch(store: Path, workers: int, places: int) -> None:
    """Larger than the data, and far smaller, when windows displace each other all the time."""
    plain_loader = loader(store, 0, stride_between_seq=0.25)
    reader = plain_loader.dataset
    cache = WindowCache(len(reader), reader.largest(), places * 2 * reader.largest())
    cached = loader(store, workers, cache, stride_between_seq=0.25)
    for epoch in range(4):
        plain_loader.sampler.set_epoch(epoch)
        cached.sampler.set_epoch(epoch)
        assert digest(cached) == digest(plain_loader)
        assert len(cache) <= cache.n_slots <= len(reader)
    if places == 100:
        assert len(cache) == len(reader)


def test_cached_windows_are_not_read_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = BatchReader(windows_in(store))
    reader.cache = WindowCache(len(reader), reader.largest(), 10**6)
    reader.__getitems__(range(4))
    assert len(reader.cache) == 4
    monkeypatch.setattr(WindowDataset, "read_into", None)
    reader.__getitems__([2, 0])
    with pytest.raises(TypeError):
        reader.__getitems__([4])


def test_cache_drops_what_was_used_longest_ago() -> None:
    cache = WindowCache(10, 64, 3 * 64)
    out = np.zeros(64, np.uint8)
    for window in range(3):
        cache.put(window, np.full(64, window, np.uint8))
    assert cache.get(0, out) and out[0] == 0
    cache.put(7, np.full(64, 7, np.uint8))
    assert not cache.get(1, out)
    assert [w for w in range(10) if cache.get(w, out) and out[5] == w] == [0, 2, 7]


def test_cache_gives_nothing_half_written() -> None:
    """A place given away while it is copied from counts as absent."""
    cache = WindowCache(10, 64, 64)
    cache.put(1, np.full(64, 1, np.uint8))

    out = np.zeros(64, np.uint8)
    content = cache._content

    def interrupted(place: int, like: np.ndarray) -> np.ndarray:
        cache._content = content  # type: ignore[method-assign]
        cache.put(2, np.full(64, 2, np.uint8))
        return content(place, like)

    cache._content = interrupted  # type: ignore[method-assign]
    assert not cache.get(1, out)
    assert cache.get(2, out) and set(out.tolist()) == {2}


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_file_cut_short_during_training(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "sub-0.h5"
    write_tiny_run(path, "sub-0", 0, frames=200)
    config = replace(CONFIG, num_workers=workers)
    windows: ConcatDataset[Any] = ConcatDataset([WindowDataset([path], config)])
    found = window_loader(windows, EpochSampler(50, 0, order=in_order(50)), config, 2)
    walk = iter(found)
    next(walk)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserInputError) as caught:
        list(walk)
    # A process that opens it only now finds something else wrong with it.
    assert str(caught.value).startswith(f"{path}: ")
    if not workers:
        assert "cannot be read any more (it ends" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_converted_again_during_training(tmp_path: Path) -> None:
    """Opened again, it would be read with the scaling and at the places of before."""
    paths = [tmp_path / f"sub-{i}.h5" for i in range(2)]
    for i, path in enumerate(paths):
        write_tiny_run(path, path.stem, i)
    windows = WindowDataset(paths, CONFIG)
    first = windows[0]["bold"]
    windows._open_runs.popitem()[1].file.close()
    assert torch.equal(windows[0]["bold"], first)
    windows._open_runs.popitem()[1].file.close()
    write_tiny_run(paths[0], "sub-0", 5)
    with pytest.raises(UserInputError, match=r"sub-0\.h5: the file has changed since"):
        windows[0]
    paths[1].unlink()
    with pytest.raises(UserInputError, match=r"sub-1\.h5: no such file"):
        windows[4]


def test_a_loading_process_that_dies(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = loader(store, 2, stride_between_seq=0.25)
    walk = iter(found)
    next(walk)
    assert isinstance(found, WindowLoader) and found.dataset.slots is not None
    worker = walk._deliveries._workers[1]
    found.dataset.slots.reading[1] = 3  # as if it were reading this window
    path = found.dataset.path(3)
    os.kill(worker.pid, signal.SIGSTOP)
    found.dataset.slots.reading[1] = 3
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserInputError) as caught:
        list(walk)
    text = str(caught.value)
    assert text.startswith("--num_workers: a loading process ended") and "by SIGKILL" in text
    assert path in text


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_user_sees_of_a_damaged_file(
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    class Damage(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            for path in (cli.store / "hdf5").glob("*.h5"):
                os.truncate(path, 3000)

    build = trainer_module.build_callbacks
    monkeypatch.setattr(trainer_module, "build_callbacks", lambda *args: [*build(*args), Damage()])
    assert main(cli.argv(f"--num_workers {workers}")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {cli.store}/hdf5/sub-") and error.count("\n") == 1


def test_pinned_batches(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the DataLoader's thread does where there is a GPU: one copy for the whole batch."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    reader = BatchReader(windows_in(store))
    expected = plain(reader.__getitems__([4, 1]).batch())
    batch = pin_memory(reader.__getitems__([4, 1])).batch()
    assert plain(batch) == expected
    (copy,) = pinned
    for tensor in (*batch["bold"], *batch["vox"]):
        assert tensor.untyped_storage().data_ptr() == copy.untyped_storage().data_ptr()
