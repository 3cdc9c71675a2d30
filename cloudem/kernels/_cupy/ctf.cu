// Kernel of cloudem.kernels.ctf. Blocks along x are images; x, y are spatial frequencies in 1/Å, terms (b, 12).

extern "C" __global__ void ctf_values(const double *__restrict__ x, const double *__restrict__ y,
                                      const double *__restrict__ terms, int count, float *__restrict__ out)
{
    const int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= count) return;
    const size_t i = blockIdx.x;
    const double *t = terms + 12 * i;
    const double xx = x[j] * x[j], xy = x[j] * y[j], yy = y[j] * y[j];
    // the phase reaches hundreds of radians: whole turns are taken off in double
    double half_turns = (t[0] + xx * (t[1] + t[4] * xx + t[5] * xy + t[6] * yy) + xy * (t[2] + t[7] * yy) +
                         yy * (t[3] + t[8] * yy)) *
                        (1.0 / PI);
    half_turns -= 2.0 * rint(0.5 * half_turns);
    out[i * count + j] = expf(float(-0.25 * (t[9] * xx + t[10] * xy + t[11] * yy))) * sinpif(float(half_turns));
}
