// Kernel of cloudem.kernels.ctf. Blocks along x are images; x, y are spatial frequencies in 1/Å, terms (b, 6).

extern "C" __global__ void ctf_values(const double *__restrict__ x, const double *__restrict__ y,
                                      const double *__restrict__ terms, int count, float *__restrict__ out)
{
    const int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= count) return;
    const size_t i = blockIdx.x;
    const double *t = terms + 6 * i;
    const double xx = x[j] * x[j], yy = y[j] * y[j], k2 = xx + yy;
    // the phase reaches hundreds of radians: whole turns are taken off in double
    double half_turns = (t[0] * xx + 2.0 * t[1] * x[j] * y[j] + t[2] * yy + t[3] * k2 * k2 + t[4]) * (1.0 / PI);
    half_turns -= 2.0 * rint(0.5 * half_turns);
    out[i * count + j] = expf(float(-0.25 * t[5] * k2)) * sinpif(float(half_turns));
}
