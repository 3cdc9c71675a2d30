// Kernels of cloudem.kernels.polar.

const float LOWEST = -3.402823466e38f;

// Blocks along x are images; a thread turns its sample by every shift. shifts are in boxes, (b, t).
extern "C" __global__ void shift_samples(const float *__restrict__ real, const float *__restrict__ imaginary,
                                         const float *__restrict__ kx, const float *__restrict__ ky,
                                         const float2 *__restrict__ shifts, int tried, int count,
                                         float *__restrict__ out_real, float *__restrict__ out_imaginary)
{
    const int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= count) return;
    const size_t i = blockIdx.x;
    const float2 value = {real[i * count + j], imaginary[i * count + j]};
    const float u = kx[j], v = ky[j];
    for (int t = 0; t < tried; t++) {
        const float2 shift = shifts[i * tried + t];
        const float2 moved = turned(value, u * shift.x + v * shift.y);
        const size_t at = (i * tried + t) * count + j;
        out_real[at] = moved.x;
        out_imaginary[at] = moved.y;
    }
}

// The best of the four quadrants from a = cos of even and odd q, b = sin of both, p and n their differences:
// angle psi has a + b, -psi has a - b, pi + psi has p + n, pi - psi has p - n. Of equals the first is kept.
DEVICE void better(float ce, float co, float se, float so, int base, float &score, int &code)
{
    const float a = ce + co, b = se + so, p = ce - co, n = se - so;
    const float first = a + fabsf(b), second = p + fabsf(n);
    const int near = b >= 0.0f ? 0 : 1, far = n >= 0.0f ? 2 : 3;
    const float best = first >= second ? first : second;
    if (best > score) {
        score = best;
        code = base + (first >= second ? near : far);
    }
}

// Blocks along x are images, threads directions: neighbours read neighbours. Arrays are (angles, 2, rows, directions),
// rows are images × shifts; score and code are (images, 2, directions).
extern "C" __global__ void best_rotations(const float *__restrict__ cos_even, const float *__restrict__ sin_even,
                                          const float *__restrict__ cos_odd, const float *__restrict__ sin_odd,
                                          int angles, int rows, int directions, int tried, float *__restrict__ score,
                                          int *__restrict__ code)
{
    const int d = blockIdx.y * blockDim.x + threadIdx.x;
    if (d >= directions) return;
    const size_t i = blockIdx.x, part = (size_t)rows * directions;
    float best[2] = {LOWEST, LOWEST};
    int where[2] = {0, 0};
    for (int t = 0; t < tried; t++) {
        for (int j = 0; j < angles; j++) {
            const size_t at = 2 * j * part + (i * tried + t) * directions + d;
            const float c1 = cos_even[at], c2 = cos_even[at + part], c3 = cos_odd[at], c4 = cos_odd[at + part];
            const float s1 = sin_even[at], s2 = sin_even[at + part], s3 = sin_odd[at], s4 = sin_odd[at + part];
            const int base = (t * angles + j) * 4;
            better(c1 + c2, c3 + c4, s1 - s2, s3 - s4, base, best[0], where[0]);
            // the opposite direction conjugates the slice's harmonics and changes the sign of the odd ones
            better(c1 - c2, c4 - c3, s1 + s2, -s3 - s4, base, best[1], where[1]);
        }
    }
    for (int side = 0; side < 2; side++) {
        score[(2 * i + side) * directions + d] = best[side];
        code[(2 * i + side) * directions + d] = where[side];
    }
}
