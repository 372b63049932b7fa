"""A sound like speech, made of nothing: syllables of vowels with pauses, the same at every run."""

import numpy as np

# Formants of /a/, /i/ and /u/ in Hz (Peterson & Barney 1952, men), and their bandwidths.
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240))
BANDWIDTHS = (80, 90, 120)


def resonance(x, frequency, bandwidth, rate):
    """A resonator of second order (Klatt 1980)."""
    radius = np.exp(-np.pi * bandwidth / rate)
    b, c = 2 * radius * np.cos(2 * np.pi * frequency / rate), -radius * radius
    y = np.empty_like(x)
    one, two = 0.0, 0.0
    for t, now in enumerate((1 - b - c) * x):
        one, two = now + b * one + c * two, one
        y[t] = one
    return y


def syllable(rate, length, vowel, pitch, rng):
    """A vowel of a falling pitch, with a soft beginning and end."""
    t = np.arange(int(rate * length)) / rate
    phase = np.cumsum(pitch * (1 - 0.15 * t / length) * (1 + 0.01 * np.sin(2 * np.pi * 5 * t))) / rate
    source = np.diff(np.floor(phase), prepend=0.0) + 0.01 * rng.standard_normal(len(t))
    source = resonance(source, 0, 200, rate)  # the glottis: higher harmonics are weaker
    for frequency, bandwidth in zip(VOWELS[vowel], BANDWIDTHS, strict=True):
        source = resonance(source, frequency, bandwidth, rate)
    return source / np.abs(source).max() * np.minimum(1, np.minimum(t, length - t) / 0.03)


def speech(rate, seconds, noise=0.003, seed=0):
    """(samples (N,) float32, whether there is speech (N,) bool): words of three to five syllables, with pauses."""
    rng = np.random.default_rng(seed)
    n = int(rate * seconds)
    sound, there = np.zeros(n), np.zeros(n, bool)
    at = int(0.6 * rate)
    while at < n:
        for _ in range(rng.integers(3, 6)):
            length = rng.uniform(0.14, 0.24)
            part = 0.3 * syllable(rate, length, rng.integers(len(VOWELS)), rng.uniform(100, 140), rng)
            part = part[: max(0, n - at)]
            sound[at : at + len(part)] += part
            there[at : at + len(part)] = True
            at += len(part) + int(0.03 * rate)
        at += int(rng.uniform(0.6, 1.2) * rate)
    return (sound + noise * rng.standard_normal(n)).astype(np.float32), there
