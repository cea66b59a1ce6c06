"""Convolution of small images.

As `scipy.signal.fftconvolve` does it, whose package takes as long to import as NumPy: a worker would wait for it.
"""

import scipy.fft

from alertprod._typing import FloatArray


def convolve_full(first: FloatArray, second: FloatArray) -> FloatArray:
    """Convolve images, or stacks of them, of sides a and b: float64, ``(..., a + b - 1, a + b - 1)``; the stacks are broadcast."""
    sides = [a + b - 1 for a, b in zip(first.shape[-2:], second.shape[-2:], strict=True)]
    fast = [scipy.fft.next_fast_len(side, real=True) for side in sides]
    spectrum = scipy.fft.rfft2(first, s=fast) * scipy.fft.rfft2(second, s=fast)
    full: FloatArray = scipy.fft.irfft2(spectrum, s=fast)[..., : sides[0], : sides[1]]
    return full
