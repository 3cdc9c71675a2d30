// Kernels of cloudem.kernels.slices. Blocks along x are poses: neighbouring threads are neighbouring pixels of a slice,
// whose windows overlap. axes are the rotations (3, 3) times the padding; frequencies are cycles per box.

const int WARPS = BLOCK / 32;

extern "C" __global__ void extract(const float2 *__restrict__ volume, int m, const double *__restrict__ axes,
                                   const double *__restrict__ kx, const double *__restrict__ ky, int count,
                                   float2 *__restrict__ out)
{
    const int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= count) return;
    const size_t i = blockIdx.x;
    const Place p = place(axes + 9 * i, kx[j], ky[j], m);
    const float2 value = gather(volume, m, p).value;
    out[i * count + j] = {value.x, p.sign * value.y};
}

// shifts are in boxes, so that k.t counts turns
extern "C" __global__ void insert(float2 *sums, float *sum_weights, int m, const int *__restrict__ images,
                                  const double *__restrict__ axes, const float2 *__restrict__ shifts,
                                  const float *__restrict__ pose_weights, const float2 *__restrict__ numerators,
                                  const float *__restrict__ denominators, const double *__restrict__ kx,
                                  const double *__restrict__ ky, int count)
{
    const int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= count) return;
    const size_t i = blockIdx.x, pixel = (size_t)images[i] * count + j;
    const float gamma = pose_weights[i];
    const Place p = place(axes + 9 * i, kx[j], ky[j], m);
    const float2 value = turned(numerators[pixel], shifts[i].x * float(kx[j]) + shifts[i].y * float(ky[j]));
    scatter(sums, sum_weights, m, p, {gamma * value.x, p.sign * gamma * value.y}, gamma * denominators[pixel]);
}

// One block to a pose: each thread sums its pixels, warps sum by shuffles, and the block's sums leave as double.
// turning are the axes along which gradients are taken (turning_axes of the reference); axes without magnification.
extern "C" __global__ void __launch_bounds__(BLOCK)
    score_derivatives(const float2 *__restrict__ volume, int m, const int *__restrict__ images,
                      const double *__restrict__ axes, const double *__restrict__ turning,
                      const float2 *__restrict__ shifts, const float2 *__restrict__ numerators,
                      const float *__restrict__ denominators, const double *__restrict__ kx,
                      const double *__restrict__ ky, int count, float beta,
                      double *__restrict__ out)
{
    const size_t i = blockIdx.x, image = (size_t)images[i] * count;
    const double *rotation = axes + 9 * i, *along = turning + 9 * i;
    const float2 shift = shifts[i];
    float rows[9], sums[TERMS];
#pragma unroll
    for (int a = 0; a < 9; a++) rows[a] = float(along[a]);
#pragma unroll
    for (int a = 0; a < TERMS; a++) sums[a] = 0.0f;
    for (int j = threadIdx.x; j < count; j += BLOCK) {
        const float u = float(kx[j]), v = float(ky[j]);
        const Place p = place(rotation, kx[j], ky[j], m);
        const Sample g = gather(volume, m, p);
        const float2 y = turned(numerators[image + j], shift.x * u + shift.y * v);
        add_terms(sums, g, rows, p.sign, u, v, y, denominators[image + j], beta);
    }
    __shared__ float partial[WARPS][TERMS];
#pragma unroll
    for (int a = 0; a < TERMS; a++) {
        float sum = sums[a];
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32][a] = sum;
    }
    __syncthreads();
    if (threadIdx.x < TERMS) {
        double total = 0.0;
        for (int w = 0; w < WARPS; w++) total += partial[w][threadIdx.x];
        out[i * TERMS + threadIdx.x] = total;
    }
}
