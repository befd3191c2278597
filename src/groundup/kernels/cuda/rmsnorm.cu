// RMSNorm in CUDA C++: y = w * x / sqrt(mean(x^2) + eps), a row per block. A lesson in what Triton writes for us.
//
// Threads and warps. A block of up to 1024 threads runs on one multiprocessor. Its hardware unit is the warp, 32 threads
// that execute one instruction together. Here thread t takes the packs t, t + blockDim.x, ... of its block's row.
//
// Coalescing. Memory is read in sectors of 32 bytes. When the threads of a warp read neighbouring addresses, one request
// fetches them all and no byte is wasted; and the widest load, 128 bits per thread, asks for 512 bytes with one
// instruction. So a thread reads `Pack`s of 16 bytes: 8 numbers in 16 bits, or 4 floats.
//
// Shuffles and shared memory. The sum over a row needs all threads. Inside a warp, `__shfl_xor_sync` hands over
// registers: after 5 exchanges with the partner 16, 8, 4, 2 and 1 lanes away, every lane has the sum of 32. Warps meet
// in shared memory, a few KB on the multiprocessor that its block's threads all see, each writing one number there.
//
// Traffic. x comes from DRAM once. The second loop reads it again, but a row of 4096 numbers is 8 or 16 KB, which the
// first loop has just left in the L1 cache. Numbers are rounded to 16 bits once, at the end.
//
// Zhang & Sennrich 2019, eq. 4 (arXiv:1910.07467).

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;

template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// As many weights as a pack of x has numbers, in the weights' own type: 8 floats are two loads of 128 bits.
template <typename W, int kSize>
struct alignas(16) Weights {
  W values[kSize];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T rounded(float x);
template <>
__device__ inline float rounded<float>(float x) { return x; }
template <>
__device__ inline __half rounded<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 rounded<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

__device__ inline float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over all threads of the block, known to each of them. All threads must call it: it waits for them.
__device__ inline float block_sum(float value) {
  __shared__ float of_warp[kMostThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  // Every warp adds up the warps' sums for itself, so that nobody has to hand the result on.
  return warp_sum(lane < warps ? of_warp[lane] : 0.0f);
}

// inverse: 1 / sqrt(mean(x^2) + eps) of each row, kept for the backward pass.
template <typename T, typename W>
__global__ void forward(const T* x, const W* w, T* y, float* inverse, int d, float eps) {
  constexpr int kSize = Pack<T>::kSize;
  const int packs = d / kSize;
  const auto* row = reinterpret_cast<const Pack<T>*>(x + static_cast<int64_t>(blockIdx.x) * d);
  const auto* gain = reinterpret_cast<const Weights<W, kSize>*>(w);
  auto* out = reinterpret_cast<Pack<T>*>(y + static_cast<int64_t>(blockIdx.x) * d);

  float squares = 0.0f;
  for (int p = threadIdx.x; p < packs; p += blockDim.x) {
    const Pack<T> pack = row[p];
#pragma unroll
    for (int i = 0; i < kSize; ++i) squares += to_float(pack.values[i]) * to_float(pack.values[i]);
  }
  const float scale = rsqrtf(block_sum(squares) / d + eps);
  if (threadIdx.x == 0) inverse[blockIdx.x] = scale;

  for (int p = threadIdx.x; p < packs; p += blockDim.x) {
    Pack<T> pack = row[p];
    const Weights<W, kSize> weights = gain[p];
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      pack.values[i] = rounded<T>(to_float(pack.values[i]) * scale * to_float(weights.values[i]));
    out[p] = pack;
  }
}

// dx = r (g - n mean(g n)) with r the inverse, n = r x and g = w dy, since dr/dx_j = -r^2 n_j / d.
template <typename T, typename W>
__global__ void backward(const T* x, const W* w, const T* dy, const float* inverse, T* dx, int d) {
  constexpr int kSize = Pack<T>::kSize;
  const int packs = d / kSize;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * d;
  const auto* row = reinterpret_cast<const Pack<T>*>(x + start);
  const auto* upstream = reinterpret_cast<const Pack<T>*>(dy + start);
  const auto* gain = reinterpret_cast<const Weights<W, kSize>*>(w);
  auto* out = reinterpret_cast<Pack<T>*>(dx + start);
  const float scale = inverse[blockIdx.x];

  float products = 0.0f;
  for (int p = threadIdx.x; p < packs; p += blockDim.x) {
    const Pack<T> pack = row[p], up = upstream[p];
    const Weights<W, kSize> weights = gain[p];
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      products += to_float(weights.values[i]) * to_float(up.values[i]) * to_float(pack.values[i]) * scale;
  }
  const float mean = block_sum(products) / d;

  for (int p = threadIdx.x; p < packs; p += blockDim.x) {
    Pack<T> pack = row[p];
    const Pack<T> up = upstream[p];
    const Weights<W, kSize> weights = gain[p];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float g = to_float(weights.values[i]) * to_float(up.values[i]);
      pack.values[i] = rounded<T>(scale * (g - to_float(pack.values[i]) * scale * mean));
    }
    out[p] = pack;
  }
}

// One thread per pack, in whole warps: idle lanes would still have to take part in the shuffles.
static int threads_for(int packs) {
  const int whole = (packs + kWarp - 1) / kWarp * kWarp;
  return whole < kMostThreads ? whole : kMostThreads;
}

// What Python calls, one pair per type of x and w. Returns cudaError_t: 0 is success. Launching does not wait.
#define LAUNCHERS(name, T, W)                                                                                       \
  extern "C" int forward_##name(const void* x, const void* w, void* y, void* inverse, int64_t rows, int d, float eps, \
                                void* stream) {                                                                     \
    forward<T, W><<<rows, threads_for(d / Pack<T>::kSize), 0, static_cast<cudaStream_t>(stream)>>>(                 \
        static_cast<const T*>(x), static_cast<const W*>(w), static_cast<T*>(y), static_cast<float*>(inverse), d,    \
        eps);                                                                                                       \
    return cudaGetLastError();                                                                                      \
  }                                                                                                                 \
  extern "C" int backward_##name(const void* x, const void* w, const void* dy, const void* inverse, void* dx,       \
                                 int64_t rows, int d, void* stream) {                                               \
    backward<T, W><<<rows, threads_for(d / Pack<T>::kSize), 0, static_cast<cudaStream_t>(stream)>>>(                \
        static_cast<const T*>(x), static_cast<const W*>(w), static_cast<const T*>(dy),                              \
        static_cast<const float*>(inverse), static_cast<T*>(dx), d);                                                \
    return cudaGetLastError();                                                                                      \
  }

LAUNCHERS(float32_float32, float, float)
LAUNCHERS(bfloat16_float32, __nv_bfloat16, float)
LAUNCHERS(bfloat16_bfloat16, __nv_bfloat16, __nv_bfloat16)
LAUNCHERS(float16_float32, __half, float)
LAUNCHERS(float16_float16, __half, __half)
