// Kernels of cloudem.kernels.packed_sphere. A warp takes a row of voxels along kx, its lanes neighbours; blocks along x are kz.
// permutations are (p, 3, 3), the identity first; starts says how many voxels of the line lie before each row.

const unsigned ALL = 0xffffffffu;

struct Point {
    int x, y, z;
};

DEVICE Point permuted(const int *p, Point at)
{
    return {p[0] * at.x + p[1] * at.y + p[2] * at.z, p[3] * at.x + p[4] * at.y + p[5] * at.z,
            p[6] * at.x + p[7] * at.y + p[8] * at.z};
}

DEVICE Point opposite(Point at)
{
    return {-at.x, -at.y, -at.z};
}

// Of a point and its Friedel mate the one with kx > 0, or else ky > 0, or else kz >= 0 is kept: this is the other.
DEVICE bool is_lower(Point at)
{
    return at.x < 0 || (at.x == 0 && (at.y < 0 || (at.y == 0 && at.z < 0)));
}

DEVICE bool comes_first(const int *permutations, int operators, Point at)
{
    if (is_lower(at)) return false;
    for (int i = 1; i < operators; i++) {
        Point q = permuted(permutations + 9 * i, at);
        if (is_lower(q)) q = opposite(q);
        if (q.z < at.z || (q.z == at.z && (q.y < at.y || (q.y == at.y && q.x < at.x)))) return false;
    }
    return true;
}

DEVICE bool is_kept(const int *permutations, int operators, int m, int squared_radius, Point at)
{
    if (at.x > m || at.y > m || at.x * at.x + at.y * at.y + at.z * at.z > squared_radius) return false;
    return comes_first(permutations, operators, at);
}

// The first voxel of this thread; the next ones are 32 further on.
DEVICE Point first_voxel(int m)
{
    const int thread = blockIdx.y * blockDim.x + threadIdx.x;
    return {thread % 32, thread / 32 - m, int(blockIdx.x) - m};
}

DEVICE size_t row_of(Point at, int m)
{
    return (size_t)(at.z + m) * (2 * m + 1) + (at.y + m);
}

DEVICE size_t voxel_of(Point at, int m)
{
    return row_of(at, m) * (m + 2) + (at.x + 1);
}

// Of the lanes of this warp, how many before this one are among these.
DEVICE int before(unsigned lanes)
{
    return __popc(lanes & ((1u << (threadIdx.x % 32)) - 1));
}

extern "C" __global__ void count_rows(const int *__restrict__ permutations, int operators, int m, int squared_radius,
                                      long long *__restrict__ counts)
{
    Point at = first_voxel(m);
    const int lane = at.x;
    int count = 0;
    for (; at.x - lane <= m; at.x += 32)  // all lanes take part, whether or not their voxel is one
        count += __popc(__ballot_sync(ALL, is_kept(permutations, operators, m, squared_radius, at)));
    if (lane == 0 && at.y <= m) counts[row_of(at, m)] = count;
}

// Permutations are added in their order, as on the host. weight is read, and weights written, if weighed.
extern "C" __global__ void fold(const float2 *__restrict__ data, const float *__restrict__ weight, int weighed,
                                const int *__restrict__ permutations, int operators, int m, int squared_radius,
                                const long long *__restrict__ starts, float2 *__restrict__ values,
                                float *__restrict__ weights)
{
    Point at = first_voxel(m);
    const int lane = at.x;
    size_t start = at.y <= m ? starts[row_of(at, m)] : 0;
    for (; at.x - lane <= m; at.x += 32) {
        const bool kept = is_kept(permutations, operators, m, squared_radius, at);
        const unsigned lanes = __ballot_sync(ALL, kept);
        if (kept) {
            const size_t own = voxel_of(at, m);
            float2 total = data[own];
            float norm = weighed ? weight[own] : 0.0f;
            for (int i = 1; i < operators; i++) {
                Point q = permuted(permutations + 9 * i, at);
                const bool mate = q.x < 0;
                if (mate) q = opposite(q);
                const size_t other = voxel_of(q, m);
                const float2 value = data[other];
                total.x += value.x;
                total.y += mate ? -value.y : value.y;
                if (weighed) norm += weight[other];
            }
            values[start + before(lanes)] = total;
            if (weighed) weights[start + before(lanes)] = norm;
        }
        start += __popc(lanes);
    }
}

// A voxel that is its own mate is written twice by the same thread, in the same order as on the host.
extern "C" __global__ void unfold(const float2 *__restrict__ values, const float *__restrict__ weights, int weighed,
                                  const int *__restrict__ permutations, int operators, int m, int squared_radius,
                                  const long long *__restrict__ starts, float2 *data, float *weight)
{
    Point at = first_voxel(m);
    const int lane = at.x;
    size_t start = at.y <= m ? starts[row_of(at, m)] : 0;
    for (; at.x - lane <= m; at.x += 32) {
        const bool kept = is_kept(permutations, operators, m, squared_radius, at);
        const unsigned lanes = __ballot_sync(ALL, kept);
        if (kept) {
            const float2 value = values[start + before(lanes)];
            const float norm = weighed ? weights[start + before(lanes)] : 0.0f;
            for (int i = 0; i < operators; i++) {
                const Point q = permuted(permutations + 9 * i, at);
                if (q.x >= -1) {
                    data[voxel_of(q, m)] = value;
                    if (weighed) weight[voxel_of(q, m)] = norm;
                }
                if (q.x <= 1) {
                    data[voxel_of(opposite(q), m)] = {value.x, -value.y};
                    if (weighed) weight[voxel_of(opposite(q), m)] = norm;
                }
            }
        }
        start += __popc(lanes);
    }
}
