// The interpolation window on the device: weights, gather, scatter, and the terms of a score's derivatives.
//
// Plain C++ but for the names of the device: the tests compile it with the host's compiler too. WINDOW, DEGREE and
// COEFFICIENTS are generated from cloudem.kernels.slices, which has the same in NumPy.

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#else
#define DEVICE inline
#endif

const int TERMS = 22;

// A window's first voxel, the fractions within its middle cell, and -1 where Friedel's law mirrored the position.
struct Place {
    long long corner;
    float fx, fy, fz, sign;
};

// Value and gradient of an interpolated volume.
struct Sample {
    float2 value, dx, dy, dz;
};

// Positions reach hundreds of voxels, of which a float would keep too few digits of the fraction: hence double.
DEVICE Place place(const double *axes, double kx, double ky, int m)
{
    double x = axes[0] * kx + axes[3] * ky;
    double y = axes[1] * kx + axes[4] * ky;
    double z = axes[2] * kx + axes[5] * ky;
    Place p;
    p.sign = 1.0f;
    if (x < 0.0) {
        x = -x, y = -y, z = -z;
        p.sign = -1.0f;
    }
    double ix = floor(x), iy = floor(y), iz = floor(z);
    p.fx = float(x - ix), p.fy = float(y - iy), p.fz = float(z - iz);
    p.corner = ((long long)(int(iz) + m - 1) * (2 * m + 1) + (int(iy) + m - 1)) * (m + 2) + int(ix);
    return p;
}

DEVICE void weights(float f, float *w)
{
    constexpr float table[WINDOW][DEGREE + 1] = COEFFICIENTS;
#pragma unroll
    for (int j = 0; j < WINDOW; j++) {
        w[j] = table[j][DEGREE];
#pragma unroll
        for (int d = DEGREE - 1; d >= 0; d--) w[j] = w[j] * f + table[j][d];
    }
}

DEVICE void slopes(float f, float *w)
{
    constexpr float table[WINDOW][DEGREE + 1] = COEFFICIENTS;
#pragma unroll
    for (int j = 0; j < WINDOW; j++) {
        w[j] = DEGREE * table[j][DEGREE];
#pragma unroll
        for (int d = DEGREE - 1; d >= 1; d--) w[j] = w[j] * f + d * table[j][d];
    }
}

DEVICE void accumulate(float2 &sum, float weight, float2 value)
{
    sum.x += weight * value.x;
    sum.y += weight * value.y;
}

// What the caller does not read of the sample, the compiler leaves out.
DEVICE Sample gather(const float2 *volume, int m, const Place &p)
{
    float wx[WINDOW], wy[WINDOW], wz[WINDOW], sx[WINDOW], sy[WINDOW], sz[WINDOW];
    weights(p.fx, wx), weights(p.fy, wy), weights(p.fz, wz);
    slopes(p.fx, sx), slopes(p.fy, sy), slopes(p.fz, sz);
    const float2 *corner = volume + p.corner;
    const int row = m + 2, plane = (m + 2) * (2 * m + 1);
    Sample s = {{0, 0}, {0, 0}, {0, 0}, {0, 0}};
#pragma unroll
    for (int k = 0; k < WINDOW; k++) {
#pragma unroll
        for (int j = 0; j < WINDOW; j++) {
            const float2 *line = corner + k * plane + j * row;
            float2 value = {0, 0}, slope = {0, 0};
#pragma unroll
            for (int i = 0; i < WINDOW; i++) {
                float2 voxel = line[i];
                accumulate(value, wx[i], voxel);
                accumulate(slope, sx[i], voxel);
            }
            accumulate(s.value, wy[j] * wz[k], value);
            accumulate(s.dx, wy[j] * wz[k], slope);
            accumulate(s.dy, sy[j] * wz[k], value);
            accumulate(s.dz, wy[j] * sz[k], value);
        }
    }
    return s;
}

DEVICE void add(float2 *at, float re, float im)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    atomicAdd(at, make_float2(re, im));
#else
    atomicAdd(&at->x, re);
    atomicAdd(&at->y, im);
#endif
}

// The adjoint of gather; value as it belongs to the stored half.
DEVICE void scatter(float2 *sums, float *sum_weights, int m, const Place &p, float2 value, float weight)
{
    float wx[WINDOW], wy[WINDOW], wz[WINDOW];
    weights(p.fx, wx), weights(p.fy, wy), weights(p.fz, wz);
    const int row = m + 2, plane = (m + 2) * (2 * m + 1);
#pragma unroll
    for (int k = 0; k < WINDOW; k++) {
#pragma unroll
        for (int j = 0; j < WINDOW; j++) {
            const long long line = p.corner + k * plane + j * row;
#pragma unroll
            for (int i = 0; i < WINDOW; i++) {
                float tap = wx[i] * (wy[j] * wz[k]);
                add(sums + line + i, tap * value.x, tap * value.y);
                atomicAdd(sum_weights + line + i, tap * weight);
            }
        }
    }
}

// value times exp(2 pi i turns)
DEVICE float2 turned(float2 value, float turns)
{
    float s, c;
    sincospif(2.0f * turns, &s, &c);
    return {value.x * c - value.y * s, value.x * s + value.y * c};
}

DEVICE float dot(float2 a, float2 b)
{
    return a.x * b.x + a.y * b.y;
}

// Add one pixel to the sums of cloudem.kernels.slices.score_derivatives; y is C X / sigma² times the phase of the
// shift, w is C² / sigma², beta is 2 pi / n.
DEVICE void add_terms(float *sums, const Sample &g, const float *axes, float sign, float kx, float ky, float2 y,
                      float w, float beta)
{
    // Friedel: value and gradient are conjugated, and the gradient changes sign with the position
    float2 v = {g.value.x, sign * g.value.y}, h[3], r[3];
#pragma unroll
    for (int a = 0; a < 3; a++) {
        const float *row = axes + 3 * a;
        h[a].x = sign * (row[0] * g.dx.x + row[1] * g.dy.x + row[2] * g.dz.x);
        h[a].y = row[0] * g.dx.y + row[1] * g.dy.y + row[2] * g.dz.y;
    }
    r[0] = {ky * h[2].x, ky * h[2].y};
    r[1] = {-kx * h[2].x, -kx * h[2].y};
    r[2] = {kx * h[1].x - ky * h[0].x, kx * h[1].y - ky * h[0].y};
    const float shift[2] = {beta * kx, beta * ky};
    const float power = dot(v, v), sine = y.x * v.y - y.y * v.x;  // Re(i y S*)
    const float2 rest = {y.x - w * v.x, y.y - w * v.y}, quarter = {w * v.y, -w * v.x};  // the latter is -i w S
    int n = 0;
    sums[n++] += dot(y, v);
    sums[n++] += w * power;
#pragma unroll
    for (int a = 0; a < 3; a++) sums[n++] += dot(rest, r[a]);
#pragma unroll
    for (int a = 0; a < 2; a++) sums[n++] += shift[a] * sine;
#pragma unroll
    for (int a = 0; a < 3; a++) {
#pragma unroll
        for (int b = a; b < 3; b++) sums[n++] += w * dot(r[a], r[b]);
        const float mixed = dot(quarter, r[a]);
#pragma unroll
        for (int b = 0; b < 2; b++) sums[n++] += shift[b] * mixed;
    }
    sums[n++] += w * power * shift[0] * shift[0];
    sums[n++] += w * power * shift[0] * shift[1];
    sums[n++] += w * power * shift[1] * shift[1];
}
