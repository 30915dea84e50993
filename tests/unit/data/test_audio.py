import cmath
import math

import numpy as np
import pytest

from recurra.data.audio import FrontEnd, dct, hertz, mel, mel_triangles
from recurra.errors import ConfigError, DataError

RATE = 8000


def tone(hz: float, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)


def test_the_mel_scale_by_hand():
    """HTK's formula: 1000 Hz are 1000 mels (to a hundredth), 0 are 0, and back."""
    assert float(mel(1000.0)) == pytest.approx(999.99, abs=0.01)
    assert float(mel(0.0)) == 0.0
    assert float(hertz(mel(3210.0))) == pytest.approx(3210.0)


def test_triangles_overlap_to_one():
    """Between the first and the last middle the filters share each frequency out, as they are drawn in every textbook."""
    weights = mel_triangles(10, 512, RATE, (100.0, 4000.0))
    middles = hertz(np.linspace(mel(100.0), mel(4000.0), 12))[1:-1]
    bins = np.arange(257) * RATE / 512
    inner = (bins >= middles[0]) & (bins <= middles[-1])
    np.testing.assert_allclose(weights[:, inner].sum(0), 1.0)
    assert weights[:, bins < 100].sum() == 0
    assert weights.max() <= 1.0


def test_a_tone_is_loudest_in_its_own_filter():
    """500 Hz are 607.4 mels; the filter whose middle is nearest."""
    front = FrontEnd(rate=RATE, filters=20)
    middles = np.linspace(mel(60.0), mel(4000.0), 22)[1:-1]
    for hz in (500.0, 2000.0):
        loudest = front.features(tone(hz)).mean(0).argmax()
        assert abs(middles[loudest] - mel(hz)) <= middles[1] - middles[0]


def test_a_frame_by_hand():
    """One frame of eight samples, each number by the definition: pre-emphasis, Hamming window, Fourier sum, triangle, log."""
    front = FrontEnd(rate=8, filters=2, window_s=1.0, step_s=1.0, low_hz=0.0)
    samples = np.array([0.1, -0.2, 0.3, 0.0, 0.5, -0.4, 0.2, 0.1])
    shaped = []
    for n in range(8):
        before = samples[n - 1] if n else samples[0]
        shaped.append((samples[n] - 0.97 * before) * (0.54 - 0.46 * math.cos(2 * math.pi * n / 7)))
    powers = [
        abs(sum(value * cmath.exp(-2j * math.pi * k * n / 8) for n, value in enumerate(shaped))) ** 2 for k in range(5)
    ]
    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(0, 2595 * math.log10(1 + 4 / 700), 4)]
    expected = []
    for m in range(2):
        low, middle, high = edges[m : m + 3]
        weights = [max(0.0, min((k - low) / (middle - low), (high - k) / (high - middle))) for k in range(5)]
        expected.append(math.log(sum(w * p for w, p in zip(weights, powers, strict=True))))
    np.testing.assert_allclose(front.features(samples)[0], expected, rtol=1e-5)


def test_the_cosine_transform_is_orthonormal():
    """A flat spectrum has a zeroth cepstrum alone, sqrt(M) times its level."""
    rows = dct(12, 12)
    np.testing.assert_allclose(rows @ rows.T, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(dct(16, 3) @ np.full(16, 2.0), [8.0, 0, 0], atol=1e-12)


def test_cepstra_are_the_transform_of_the_log_mel_energies():
    """Fewer numbers of the same frames."""
    samples = np.random.default_rng(0).normal(size=2000) * 0.1
    energies = FrontEnd(rate=RATE, filters=26).features(samples)
    cepstra = FrontEnd(rate=RATE, filters=26, kind="mfcc", cepstra=13).features(samples)
    np.testing.assert_allclose(cepstra, energies @ dct(26, 13).T.astype(np.float32), rtol=1e-4, atol=1e-4)
    assert cepstra.shape == (1 + (2000 - 200) // 80, 13)


def test_silence_is_finite():
    """The logarithm of nothing would end a training run."""
    assert np.isfinite(FrontEnd(rate=RATE).features(np.zeros(400))).all()


def test_a_front_end_comes_back_from_json():
    """The manifest keeps it, so that the endpoint computes the same."""
    front = FrontEnd(rate=16000, kind="mfcc", filters=40, low_hz=130.0, high_hz=6800.0)
    assert FrontEnd.from_json(front.to_json()) == front
    assert front.width == 13


def test_what_cannot_work_is_refused():
    """A band beyond half of the rate, more cepstra than filters, less than a frame."""
    with pytest.raises(ConfigError, match="low_hz < high_hz <= 4000"):
        FrontEnd(rate=RATE, high_hz=5000.0)
    with pytest.raises(ConfigError, match="Keep 1 to 10"):
        FrontEnd(rate=RATE, kind="mfcc", filters=10)
    with pytest.raises(DataError, match="a frame needs 200 samples of one channel"):
        FrontEnd(rate=RATE).features(np.zeros(100))
