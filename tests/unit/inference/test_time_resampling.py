"""Resampling in time: its frequency response, as documented, and its ends."""

from __future__ import annotations

import numpy as np
import pytest

from neuromamba.inference.time_resampling import resample_time, resampled_count, weights


def gain(tr: float, new_tr: float, frequency: float) -> float:
    """Gain at a frequency (1: the lower Nyquist frequency), in the middle half of a run."""
    frames = int(600 / tr)
    radians = 2 * np.pi * frequency * 0.5 / max(tr, new_tr)
    wave = np.exp(1j * radians * np.arange(frames) * tr)
    new = resample_time(np.stack([wave.real, wave.imag], axis=1), tr, new_tr)
    expected = np.exp(1j * radians * np.arange(len(new)) * new_tr)
    middle = slice(len(new) // 4, 3 * len(new) // 4)
    ratio = (new[middle, 0] + 1j * new[middle, 1]) / expected[middle]
    return float(ratio.real.mean())


@pytest.mark.parametrize(("tr", "new_tr"), [(1.0, 2.0), (2.0, 0.72), (0.72, 0.8), (3.0, 2.0)])
def test_frequency_response_is_as_documented(tr: float, new_tr: float) -> None:
    for frequency in (0.05, 0.3, 0.5, 0.7):
        assert gain(tr, new_tr, frequency) == pytest.approx(1, abs=0.005)
    assert gain(tr, new_tr, 0.9) == pytest.approx(0.5, abs=0.01)
    assert gain(tr, new_tr, 1.0) == pytest.approx(0.13, abs=0.01)
    for frequency in (1.1, 1.3):
        assert abs(gain(tr, new_tr, frequency)) < 0.01


def test_a_constant_stays_and_frames_keep_their_times() -> None:
    frames = np.full((30, 3), 7.0)
    new = resample_time(frames, 2.0, 0.8)
    assert np.allclose(new, 7.0)
    assert len(new) == resampled_count(30, 2.0, 0.8) == 73  # 58 s in steps of 0.8 s, from 0
    assert resampled_count(10, 2.0, 2.0) == 10
    assert np.allclose(weights(20, 1.0, 1.7).sum(axis=1), 1)
