"""Speckle: the echo of dense scatterers through a scanner's beam, as envelope and as grey image.

Burckhardt 1978, "Speckle in ultrasound B-mode scans", IEEE Trans. Sonics Ultrason. 25(1): many
scatterers in a resolution cell sum to a complex Gaussian, so the envelope is Rayleigh and its mean
is 1.91 standard deviations, whatever the tissue.
Wagner, Smith, Sandrik, Lopez 1983, "Statistics of speckle in ultrasound B-scans", IEEE Trans.
Sonics Ultrason. 30(3): the grain is the point-spread function, wider across the beam than along it.
"""

import math

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.ndimage import gaussian_filter, gaussian_filter1d

Plane = npt.NDArray[np.float32]
Rng = np.random.Generator

AXIAL_PX = 0.8  # standard deviation of the pulse along the beam


def speckle_envelope(amplitude: Plane, rng: Rng) -> Plane:
    """Envelope of the echo of dense random scatterers: |PSF ∗ (amplitude · complex Gaussian)|.

    amplitude  (H, W) float32 > 0, linear echogenicity; the width wraps around
    returns    (H, W) float32 ≥ 0; Rayleigh with E[envelope²] = amplitude² where that is constant
    source     Burckhardt 1978; Wagner et al. 1983
    """
    height, width = amplitude.shape
    scatterers = rng.standard_normal((2, height, width), dtype=np.float32) * amplitude
    pulse = gaussian_filter1d(scatterers, AXIAL_PX, axis=1, mode="reflect")
    # The beam is focused at mid-depth and widens away from it: one Gaussian a row.
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    lateral_px = 0.9 + 1.6 * np.abs(depth - 0.45)
    frequency = scipy.fft.fftfreq(width).astype(np.float32)
    beam = np.exp(-2 * (math.pi * lateral_px * frequency) ** 2)
    echo = scipy.fft.ifft(scipy.fft.fft(pulse[0] + 1j * pulse[1], axis=1) * beam, axis=1)
    energy = 2 * gain(np.full((1, 1), AXIAL_PX, np.float32)) * gain(lateral_px)
    envelope: Plane = (np.abs(echo) / np.sqrt(energy)).astype(np.float32)
    return envelope


def gain(sigma_px: Plane) -> Plane:
    """Share of white noise's variance that Gaussian filters of these widths (n, 1) let through."""
    offset_px = np.arange(-24, 25, dtype=np.float32)
    kernel = np.exp(-0.5 * (offset_px / sigma_px) ** 2)
    share: Plane = (kernel**2).sum(1, keepdims=True) / kernel.sum(1, keepdims=True) ** 2
    return share


def compress(envelope: Plane, rng: Rng) -> npt.NDArray[np.uint8]:
    """Log compression of an envelope ≥ 0 to 0…255, smoothed a little as scanners smooth it."""
    range_db = rng.uniform(46, 60)
    top_db = rng.uniform(14, 24)
    noise_floor = 10 ** ((top_db - range_db + rng.uniform(-7, 0)) / 20)
    level_db = gaussian_filter(20 * np.log10(envelope + noise_floor), rng.uniform(0.45, 0.95))
    shade_01 = np.clip((level_db - top_db) / range_db + 1, 0, 1)
    return np.asarray(shade_01 * 255, dtype=np.uint8)
