"""FSC of a map against a model, after turning and shifting the model onto the map.

Usage: python benchmarks/compare_maps.py MAP.mrc MODEL.mrc [--radius-A 80] [--low-pass-A 12]

The six parameters are found by maximising the real-space correlation of the low-passed volumes inside a soft sphere,
starting from the identity (Powell's method, no random numbers).
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import low_pass, resolution_at
from cloudem.io.formats.mrc import read_volume
from cloudem.kernels.shells import fourier_shell_correlation


def moved(volume: NDArray[np.float32], parameters: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turn (degrees, rotation vector) and shift (pixels) a volume about its centre."""
    matrix = Rotation.from_rotvec(parameters[:3], degrees=True).as_matrix()
    centre = np.full(3, volume.shape[0] // 2)
    offset = centre - matrix @ (centre + parameters[3:])
    return np.asarray(ndimage.affine_transform(volume, matrix, offset, order=3), np.float32)


def align(
    model: NDArray[np.float32], target: NDArray[np.float32], pixel_size: float, radius: float, low_pass_A: float
) -> NDArray[np.float32]:
    """Return the model moved onto the target."""
    sphere = soft_sphere(target.shape[0], radius / pixel_size, 3.0)
    goal = low_pass(target, pixel_size, low_pass_A) * sphere
    smooth = low_pass(model, pixel_size, low_pass_A)

    def loss(parameters: NDArray[np.float64]) -> float:
        candidate = moved(smooth, parameters) * sphere
        return -float(np.sum(candidate * goal) / np.sqrt(np.sum(candidate**2) * np.sum(goal**2)))

    start = min(([0.0, y, 0.0, 0, 0, 0] for y in (0.0, 6.0, -6.0)), key=lambda p: loss(np.array(p)))
    found = optimize.minimize(loss, start, method="Powell", options={"xtol": 1e-3, "ftol": 1e-6, "maxiter": 20})
    print(
        "turned by", np.round(found.x[:3], 2), "deg, shifted by", np.round(found.x[3:], 2), f"px, CC {-found.fun:.4f}"
    )
    return moved(model, found.x)


def main() -> None:
    """Print the FSC by shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map")
    parser.add_argument("model")
    parser.add_argument("--radius-A", type=float, default=80.0)
    parser.add_argument("--low-pass-A", type=float, default=12.0)
    options = parser.parse_args()
    target, model = read_volume(options.map), read_volume(options.model)
    pixel_size, box = target.pixel_size, target.data.shape[0]
    placed = align(model.data, target.data, pixel_size, options.radius_A, options.low_pass_A)
    sphere = soft_sphere(box, options.radius_A / pixel_size, 3.0)
    curve = fourier_shell_correlation(target.data * sphere, placed * sphere)
    resolution = box * pixel_size / np.arange(1, box // 2)
    print(" ".join(f"{r:.1f}:{f:.3f}" for r, f in zip(resolution, curve[1:], strict=False)))
    within = [f for r, f in zip(resolution, curve[1:], strict=False) if 12 <= r <= 25]
    print(f"FSC 0.5 at {resolution_at(curve, box, pixel_size, 0.5):.2f} Å; mean over 25 to 12 Å {np.mean(within):.3f}")


if __name__ == "__main__":
    main()
