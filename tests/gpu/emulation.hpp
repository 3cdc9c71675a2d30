// CUDA's names on the host. The threads of a block are fibers that take turns at barriers, so that kernels with shared
// memory and shuffles run as they stand, in one thread and always in the same order.
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <functional>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

struct float2 {
    float x, y;
};

struct Index {
    int x, y;
};

static Index blockIdx, blockDim, threadIdx;

namespace emulation
{
const std::size_t STACK = 1 << 16;

struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::vector<char> stack;
    bool started, done;
};

// Contexts give a fiber its stack; after that jumps switch, which need no call of the system.
static ucontext_t scheduler;
static jmp_buf scheduler_place;
static std::vector<Fiber> fibers;
static std::function<void()> body;
static float slots[1024];

static void enter()
{
    body();
    fibers[threadIdx.x].done = true;
    _longjmp(scheduler_place, 1);
}

static void yield()
{
    if (!_setjmp(fibers[threadIdx.x].place)) _longjmp(scheduler_place, 1);
}

static void resume(Fiber &fiber)
{
    if (_setjmp(scheduler_place)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    swapcontext(&scheduler, &fiber.context);
}

// Returns whether all threads of the block met at the same number of barriers.
static bool run_block(int threads)
{
    fibers.resize(threads);
    for (Fiber &fiber : fibers) {
        fiber.stack.resize(STACK);
        fiber.started = fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    for (;;) {
        int finished = 0;
        for (int i = 0; i < threads; i++) {
            threadIdx.x = i;
            resume(fibers[i]);
            finished += fibers[i].done;
        }
        if (finished) return finished == threads;
    }
}

template <class T> char letter()
{
    if (std::is_same<T, const float2 *>() || std::is_same<T, float2 *>()) return 'C';
    if (std::is_same<T, const float *>() || std::is_same<T, float *>()) return 'F';
    if (std::is_same<T, const double *>() || std::is_same<T, double *>()) return 'D';
    if (std::is_same<T, const int *>() || std::is_same<T, int *>()) return 'I';
    if (std::is_same<T, const long long *>() || std::is_same<T, long long *>()) return 'L';
    return std::is_same<T, int>() ? 'i' : std::is_same<T, float>() ? 'f' : '?';
}

template <class... A> void signature(void (*)(A...), char *out)
{
    for (char c : {letter<A>()...}) *out++ = c;
    *out = 0;
}

template <class... A, std::size_t... I>
void set_body(void (*kernel)(A...), void **arguments, std::index_sequence<I...>)
{
    body = [=] { kernel(*static_cast<A *>(arguments[I])...); };
}

template <class... A> int launch(void (*kernel)(A...), int columns, int rows, int threads, void **arguments)
{
    set_body(kernel, arguments, std::index_sequence_for<A...>());
    blockDim = {threads, 1};
    bool met = true;
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x++) {
            blockIdx = {x, y};
            met = run_block(threads) && met;
        }
    return met;
}
}  // namespace emulation

inline void __syncthreads()
{
    emulation::yield();
}

inline float __shfl_down_sync(unsigned, float value, int distance)
{
    const int i = threadIdx.x;
    emulation::slots[i] = value;
    emulation::yield();
    const float other = i % 32 + distance < 32 ? emulation::slots[i + distance] : value;
    emulation::yield();
    return other;
}

inline unsigned __ballot_sync(unsigned, bool vote)
{
    const int i = threadIdx.x, first = i - i % 32;
    emulation::slots[i] = vote;
    emulation::yield();
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++) votes |= unsigned(emulation::slots[first + lane]) << lane;
    emulation::yield();
    return votes;
}

inline int __popc(unsigned bits)
{
    return __builtin_popcount(bits);
}

inline float atomicAdd(float *at, float value)
{
    const float before = *at;
    *at += value;
    return before;
}

inline float sinpif(float x)
{
    return float(std::sin(M_PI * double(x)));
}

inline void sincospif(float x, float *sine, float *cosine)
{
    *sine = sinpif(x);
    *cosine = float(std::cos(M_PI * double(x)));
}

// What the tests call: the kernel's parameters as letters, and the launch.
#define EXPORT(kernel)                                                                                   \
    extern "C" void signature_##kernel(char *out) { emulation::signature(kernel, out); }                 \
    extern "C" int launch_##kernel(int columns, int rows, int threads, void **arguments)                 \
    {                                                                                                    \
        return emulation::launch(kernel, columns, rows, threads, arguments);                             \
    }
