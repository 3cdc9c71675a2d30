"""Axes, handedness, signs, units and Euler angles: the only place that states them.

They are those of RELION, so that a STAR file means the same on both sides (Scheres 2012, 10.1016/j.jsb.2012.09.006;
Heymann, Chagoyen & Belnap 2005, 10.1016/j.jsb.2005.06.001).

Arrays
    Volumes are indexed ``[z, y, x]``, images ``[y, x]``, x fastest. Boxes are even; the origin is the voxel ``n // 2``.
Fourier transform
    ``F(k) = sum_r f(r) exp(-2 pi i k.r / n)`` with r relative to the origin voxel, unnormalised. ``k`` is an integer
    frequency (cycles per box); the spatial frequency is ``k / (n * pixel_size)`` in 1/Å. Shell s holds the k with
    ``round(|k|) == s``. Only ``kx >= 0`` is stored, since real data give ``F(-k) = conj(F(k))``.
Pose
    The rotation matrix ``A(rot, tilt, psi) = Rz(psi) Ry(tilt) Rz(rot)`` (intrinsic ZYZ in the sense below) takes map
    coordinates to image coordinates: ``x_image = A x_map``. The Fourier slice is ``P(k) = V(A^T (kx, ky, 0))``.
    The view direction in map coordinates is the third row of A.
    With ``Rz(a) = [[cos a, sin a, 0], [-sin a, cos a, 0], [0, 0, 1]]`` and
    ``Ry(a) = [[cos a, 0, -sin a], [0, 1, 0], [sin a, 0, cos a]]``.
Shift
    ``t = (x, y)`` in Å is the position of the particle relative to the box origin:
    ``X(k) = exp(-2 pi i k.t) C(k) P(k)``. RELION's ``rlnOriginXAngst`` is ``-t_x``.
CTF
    ``C(k) = s exp(-B k^2 / 4) sin(pi lambda D(theta) k^2 - pi/2 Cs lambda^3 k^4 + phase_shift + asin(w))`` with k in
    1/Å, defocus D positive for underfocus, ``D(theta) = (U + V)/2 + (U - V)/2 cos 2(theta - defocus_angle)``,
    theta = atan2(ky, kx); w is the amplitude contrast. Protein is bright (positive) in images and maps.
Aberrations
    ``X(k) = exp(-2 pi i k.t) exp(+i odd(M k)) E(M k) sin(chi(M k) - even(M k)) V(A^T (M k, 0))``, k in 1/Å, with the
    phase chi and the envelope E of the CTF. Zernike polynomials are not normalised, on the circle of radius 1/Å; a beam
    tilt τ in mrad adds ``-2 pi 10^-3 Cs lambda^2 k^2 (k.τ)`` to the odd phase. All as in RELION 3.1.
Noise
    ``sigma2`` is the variance of the real (and of the imaginary) part of a Fourier coefficient of the unnormalised
    transform: ``E|N(k)|^2 = 2 sigma2``.
Half-sets
    are numbered 1 and 2; 0 means not yet assigned.
Units
    Å, 1/Å, radians, kV inside; what a user types or reads carries its unit in its name (``diameter_A``,
    ``angle_deg``, ``cs_mm``).
"""

FSC_THRESHOLD = 0.143
"""Gold-standard FSC criterion for the resolution (Rosenthal & Henderson 2003)."""

FSC_HALF = 0.5
"""FSC criterion of a map against a known truth."""

LEAST_EVIDENCE = 3.5
"""Standard deviations by which images have to know a map on shells that had no part in their poses
(`cloudem.algorithms.evidence`): of noise, one test in 4,300 has more."""
