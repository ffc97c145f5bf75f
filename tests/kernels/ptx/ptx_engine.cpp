// Executes decoded PTX: 32 lanes at a time, warps from barrier to barrier, every access checked.
// Built once; `ptx_program.py` decodes a kernel for it, `ptx_run.py` launches.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <sys/mman.h>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
typedef int64_t s64;
typedef u32 V32 __attribute__((vector_size(128), aligned(32)));
typedef s32 S32 __attribute__((vector_size(128), aligned(32)));
typedef float F32 __attribute__((vector_size(128), aligned(32)));
typedef u64 V64 __attribute__((vector_size(256), aligned(32)));
typedef s64 S64 __attribute__((vector_size(256), aligned(32)));
#define TO(x, type) __builtin_convertvector(x, type)
#define INLINE static inline __attribute__((always_inline))

// -- what Python passes ------------------------------------------------------------------------

struct Ins {
  u32 op, at, n, written;  // operands: `n` slots from `at` on, the `written` first are results
  s32 guard;               // slot of a predicate, ~slot for its opposite, 0 for none
  u32 p, q;                // of the instruction: sizes, counts
  s64 x;                   // offset of an address, target of a branch
};
struct Constant { u32 slot, wide; u64 value; };
struct Program {
  const Ins* code;
  const u32* operands;
  const Constant* constants;
  u32 length, slots, literals, warps, tracked;  // tracked: registers of wgmma are watched
};
struct Byte { u32 writer, reader, write_at, read_at; };  // program + 1; epoch and warp
struct Range { u64 low, high; const u8* inside; Byte* seen; };  // inside: the tensors' bytes, or null for all
struct Fault { u32 kind, at, program, warp, lane, size; u64 address, other; };
enum { INSTRUCTIONS, LOADED, LOAD_SECTORS, STORED, STORE_SECTORS, SHARED, WAVEFRONTS, MATRIX,
       BARRIERS, PROGRAMS, NUM_COUNTS };
struct Launch {
  const Program* program;
  const u8* params;
  Range* ranges;
  Fault* faults;
  u64* reached;  // [instructions], how often each was executed
  u32 grid[3], num_ranges, shared, seed, check, count, max_faults, num_faults;
  u64 counts[NUM_COUNTS];
};
enum Kind { OUTSIDE_GLOBAL, ODD_GLOBAL, RACE_OF_PROGRAMS, RACE_OF_WARPS, OUTSIDE_SHARED, ODD_SHARED,
            READ_AFTER_WRITE, WRITE_AFTER_READ, WRITE_AFTER_WRITE, UNWRITTEN, COPY_UNDER_WAY,
            LANES_MISSING, BARRIER_LEFT, NO_PROXY_FENCE, NO_REGISTER_FENCE, NOT_WAITED_FOR,
            OPERAND_OVERWRITTEN, UNKNOWN_LAYOUT };

// -- the machine -------------------------------------------------------------------------------

const u32 MANY = ~0u, ALL = 0xff;
struct SharedByte { u32 write_at, read_at, time; u8 writer, reader, copying; };  // epochs; warps
struct Copy { u32 to, at; u64 from; u32 size, real; };
struct Product {  // a wgmma under way
  u32 at, epoch, columns, kind, transposed;
  bool from_registers, add;
  u64 a, b;
  V32 rows[4];
  const u32* results;
};
struct Block;
struct Warp {
  Block* block;
  u32 number, state;
  u32 fenced, fenced_at;  // the last fence.proxy.async: time and epoch
  u32 pc[32];
  V32* r;
  const u32* o;  // operands of the running instruction
  V32 m;         // active lanes
  bool all;
  u32 time, register_fence;  // instructions so far; at the last wgmma.fence
  std::vector<u32> written_at;  // per slot, where tracked
  std::vector<u8> in_flight;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> copies;
  std::vector<Product> started;
  std::deque<std::vector<Product>> products;
};
struct Block {
  Launch* l;
  u32 id, epoch, first_epoch, range;  // an epoch ends at a barrier; the range hit last
  Warp* warps;
  u8* shared;
  std::vector<SharedByte> bytes;
};

static void fault(Warp& w, Kind kind, u32 at, u32 lane, u64 address, u32 size, u64 other = 0) {
  Launch* l = w.block->l;
  for (u32 i = 0; i < l->num_faults; i++)
    if (l->faults[i].kind == kind && l->faults[i].at == at) return;
  if (l->num_faults < l->max_faults)
    l->faults[l->num_faults++] = {kind, at, w.block->id, w.number, lane, size, address, other};
}

INLINE V32 all32(u32 x) { return V32{} + x; }
INLINE V64 all64(u64 x) { return V64{} + x; }
INLINE F32 f(V32 x) { return (F32)x; }
INLINE V32 u(F32 x) { return (V32)x; }
INLINE V32 pick(V32 m, V32 a, V32 b) { return (a & m) | (b & ~m); }
INLINE V64 wide(V32 m) { return (V64)TO((S32)m, S64); }
INLINE V32 narrow(S64 m) { return (V32)TO(m, S32); }
INLINE V32& R(Warp& w, u32 k) { return w.r[w.o[k]]; }
INLINE V64& R64(Warp& w, u32 k) { return *(V64*)&w.r[w.o[k]]; }
INLINE void put(Warp& w, V32 v, u32 k = 0) { V32& d = R(w, k); d = w.all ? v : pick(w.m, v, d); }
INLINE void put(Warp& w, V64 v, u32 k = 0) {
  V64& d = R64(w, k), m = wide(w.m);
  d = w.all ? v : (v & m) | (d & ~m);
}
#define LANES(e) for (int l = 0; l < 32; l++) { e; }
#define EACH(e) ({ V32 r_; LANES(r_[l] = (e)) r_; })

static V32 smaller(V32 a, V32 b, bool larger) {  // PTX: a NaN loses, -0 < +0
  F32 x = f(a), y = f(b);
  V32 r = pick((V32)(larger ? x > y : x < y), a, b);
  r = pick((V32)(x == y), larger ? a & b : a | b, r);
  V32 both = (V32)(x != x) & (V32)(y != y);
  return pick(both, all32(0x7fffffff), pick((V32)(x != x), b, pick((V32)(y != y), a, r)));
}
static float as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
static u32 as_bits(float x) { u32 y; memcpy(&y, &x, 4); return y; }
static u32 to_bf16(float x) {
  u32 b = as_bits(x);
  return x != x ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
static u32 to_f16(float x) { _Float16 h = (_Float16)x; u16 b; memcpy(&b, &h, 2); return x != x ? 0x7fff : b; }
static float of_f16(u16 b) { _Float16 h; memcpy(&h, &b, 2); return (float)h; }
static u32 subnormal_is_0(u32 x) { return x & 0x7f800000 ? x : x & 0x80000000; }
static u32 field(u32 a, u32 at, u32 bits, bool sign) {
  at &= 255, bits &= 255;
  if (!bits) return 0;
  s64 x = (sign ? (s64)(s32)a : (s64)a) >> std::min(at, 32u);
  return bits >= 32 ? (u32)x : sign ? (u32)((s32)((u32)x << (32 - bits)) >> (32 - bits)) : (u32)x & ((1u << bits) - 1);
}

// -- memory ------------------------------------------------------------------------------------

static bool global(Warp& w, u32 lane, u64 a, u32 n, const Ins& i, const u8* stored, bool atomic = false) {
  Block* b = w.block;
  Launch* l = b->l;
  u32 at = &i - l->program->code, k = b->range;
  if (a & (n - 1)) return fault(w, ODD_GLOBAL, at, lane, a, n), false;
  auto holds = [&](u32 k) { return a >= l->ranges[k].low && a + n <= l->ranges[k].high; };
  if (k >= l->num_ranges || !holds(k)) {
    for (k = 0; k < l->num_ranges && !holds(k); k++) {}
    if (k == l->num_ranges) return fault(w, OUTSIDE_GLOBAL, at, lane, a, n), false;
    b->range = k;
  }
  const Range& r = l->ranges[k];
  u64 first = a - r.low;
  if (r.inside)
    for (u32 j = 0; j < n; j++)
      if (!r.inside[first + j]) return fault(w, OUTSIDE_GLOBAL, at, lane, a, n), false;
  if (!r.seen) return true;
  u32 me = b->id + 1, now = b->epoch << 6 | w.number;
  for (u32 j = 0; j < n; j++) {
    Byte& s = r.seen[first + j];
    auto elsewhere = [&](u32 who) { return who && who != me; };
    if (elsewhere(s.writer) && !(atomic && s.writer == MANY)) return fault(w, RACE_OF_PROGRAMS, at, lane, a, n, s.writer), true;
    if (stored && elsewhere(s.reader)) return fault(w, RACE_OF_PROGRAMS, at, lane, a, n, s.reader), true;
    auto beside = [&](u32 then) { return then >> 6 == b->epoch && (then & 63) != w.number; };
    if (!atomic && s.writer == me && beside(s.write_at) && !(stored && stored[j] == *(u8*)(a + j)))
      return fault(w, RACE_OF_WARPS, at, lane, a, n, s.write_at & 63), true;
    if (!atomic && stored && s.reader == me && beside(s.read_at))
      return fault(w, RACE_OF_WARPS, at, lane, a, n, s.read_at & 63), true;
    if (stored) s.writer = atomic ? MANY : me, s.write_at = now;
    else s.reader = s.reader && s.reader != me ? MANY : me, s.read_at = now;
  }
  return true;
}

static void shared_read(Warp& w, u32 lane, u32 a, u32 n, u32 at) {
  Block* b = w.block;
  for (u32 j = a; j < a + n; j++) {
    SharedByte& s = b->bytes[j];
    if (s.copying) return fault(w, COPY_UNDER_WAY, at, lane, a, n);
    if (s.write_at < b->first_epoch) return fault(w, UNWRITTEN, at, lane, a, n);
    if (s.write_at == b->epoch && s.writer != w.number) return fault(w, READ_AFTER_WRITE, at, lane, a, n, s.writer);
    s.reader = s.read_at == b->epoch && s.reader != w.number ? ALL : w.number;
    s.read_at = b->epoch;
  }
}

static void shared_write(Warp& w, u32 lane, u32 a, u32 n, u32 at, const u8* stored) {
  Block* b = w.block;
  for (u32 j = a; j < a + n; j++) {
    SharedByte& s = b->bytes[j];
    if (s.copying) return fault(w, COPY_UNDER_WAY, at, lane, a, n);
    bool same = stored && stored[j - a] == b->shared[j];
    if (s.write_at == b->epoch && s.writer != w.number && !same) return fault(w, WRITE_AFTER_WRITE, at, lane, a, n, s.writer);
    if (s.read_at == b->epoch && s.reader != w.number) return fault(w, WRITE_AFTER_READ, at, lane, a, n, s.reader);
    s.write_at = b->epoch, s.writer = w.number, s.time = w.time;
  }
}

static bool shared(Warp& w, u32 lane, u32 a, u32 n, const Ins& i, const u8* stored, bool write) {
  Launch* l = w.block->l;
  u32 at = &i - l->program->code;
  if (a & (n - 1)) return fault(w, ODD_SHARED, at, lane, a, n), false;
  if ((u64)a + n > l->shared) return fault(w, OUTSIDE_SHARED, at, lane, a, n), false;
  if (l->check) write ? shared_write(w, lane, a, n, at, stored) : shared_read(w, lane, a, n, at);
  return true;
}

// Sectors of 32 bytes that an access of a warp touches, and bytes asked for.
static void count_global(Warp& w, V64 a, V32 m, u32 n, u32 bytes) {
  u64 sectors[128], *counts = w.block->l->counts, k = 0, lanes = 0;
  LANES(if (m[l]) { lanes++; for (u64 s = a[l] >> 5; s <= (a[l] + n - 1) >> 5; s++) sectors[k++] = s; })
  std::sort(sectors, sectors + k);
  counts[bytes] += lanes * n;
  counts[bytes + 1] += std::unique(sectors, sectors + k) - sectors;
}

// Wavefronts of an access to shared memory: the most words of one bank, for each group of lanes
// that moves 128 bytes. They are set against the fewest possible.
static void count_shared(Warp& w, V32 a, V32 m, u32 n) {
  u32 group = n <= 4 ? 32 : 128 / n;
  for (u32 g = 0; g < 32; g += group) {
    u32 words[128], k = 0, most = 0, banks[32] = {};
    for (u32 l = g; l < g + group; l++)
      if (m[l]) for (u32 x = a[l] >> 2; x <= (a[l] + n - 1) >> 2; x++) words[k++] = x;
    std::sort(words, words + k);
    u32 distinct = std::unique(words, words + k) - words;
    for (u32 j = 0; j < distinct; j++) most = std::max(most, ++banks[words[j] & 31]);
    if (k) w.block->l->counts[WAVEFRONTS] += most, w.block->l->counts[SHARED]++;
  }
}

// Loads and stores. p: bytes of a register, q: 1 sign-extended, 2 to 64 bits.
template <bool GLOBAL> static void load(Warp& w, const Ins& i) {
  u32 k = i.written, n = i.p * k;
  V64 a = (GLOBAL ? R64(w, k) : TO(R(w, k), V64)) + (u64)i.x;
  if (w.block->l->count) GLOBAL ? count_global(w, a, w.m, n, LOADED) : count_shared(w, TO(a, V32), w.m, n);
  for (u32 l = 0; l < 32; l++) {
    if (!w.m[l]) continue;
    u8 data[16];
    if (GLOBAL ? global(w, l, a[l], n, i, nullptr) : shared(w, l, a[l], n, i, nullptr, false))
      memcpy(data, GLOBAL ? (u8*)a[l] : w.block->shared + a[l], n);
    else memset(data, 0x5a, 16);
    for (u32 j = 0; j < k; j++) {
      u64 x = 0;
      memcpy(&x, data + j * i.p, i.p);
      if (i.q & 1) x = (s64)(x << (64 - 8 * i.p)) >> (64 - 8 * i.p);
      if (i.q & 2) R64(w, j)[l] = x;
      else R(w, j)[l] = x;
    }
  }
}
template <bool GLOBAL> static void store(Warp& w, const Ins& i) {
  u32 k = i.n - 1, n = i.p * k;
  V64 a = (GLOBAL ? R64(w, k) : TO(R(w, k), V64)) + (u64)i.x;
  if (w.block->l->count) GLOBAL ? count_global(w, a, w.m, n, STORED) : count_shared(w, TO(a, V32), w.m, n);
  for (u32 l = 0; l < 32; l++) {
    if (!w.m[l]) continue;
    u8 data[16];
    for (u32 j = 0; j < k; j++) {
      u64 x = i.q & 2 ? R64(w, j)[l] : R(w, j)[l];
      memcpy(data + j * i.p, &x, i.p);
    }
    if (GLOBAL ? global(w, l, a[l], n, i, data) : shared(w, l, a[l], n, i, data, true))
      memcpy(GLOBAL ? (u8*)a[l] : w.block->shared + a[l], data, n);
  }
}
static void atomic_min(Warp& w, const Ins& i) {
  for (u32 l = 0; l < 32; l++) {
    if (!w.m[l]) continue;
    u64 a = R64(w, 1)[l] + i.x;
    u32 value = R(w, 2)[l];
    if (!global(w, l, a, 4, i, (u8*)&value, true)) continue;
    R(w, 0)[l] = *(u32*)a;
    *(s32*)a = std::min(*(s32*)a, (s32)value);
  }
}

// Asynchronous copies land as late as they may; until then the target holds ones.
static void copy_async(Warp& w, const Ins& i) {
  V64 from = R64(w, 1) + (u64)i.x;
  V32 to = R(w, 0) + i.q, real = R(w, 2);
  Launch* l = w.block->l;
  u32 at = &i - l->program->code;
  if (l->count) count_global(w, from, w.m & (V32)(real != 0), i.p, LOADED), count_shared(w, to, w.m, i.p);
  for (u32 k = 0; k < 32; k++) {
    if (!w.m[k]) continue;
    u32 bytes = std::min(real[k], i.p);
    if (bytes && !global(w, k, from[k], i.p, i, nullptr)) bytes = 0;
    if (!shared(w, k, to[k], i.p, i, nullptr, true)) continue;
    for (u32 j = 0; l->check && j < i.p; j++) w.block->bytes[to[k] + j].copying = 1;
    memset(w.block->shared + to[k], 0xff, i.p);
    w.open.push_back({to[k], at, from[k], i.p, bytes});
  }
}
static void commit_copies(Warp& w, const Ins&) { w.copies.push_back(std::move(w.open)); w.open.clear(); }
static void wait_for_copies(Warp& w, const Ins& i) {
  for (; w.copies.size() > i.p; w.copies.pop_front())
    for (Copy& c : w.copies.front()) {
      u8 data[16] = {};
      memcpy(data, (u8*)c.from, c.real);
      if (w.block->l->check) {
        for (u32 j = 0; j < c.size; j++) w.block->bytes[c.to + j].copying = 0;
        shared_write(w, 0, c.to, c.size, c.at, nullptr);
      }
      memcpy(w.block->shared + c.to, data, c.size);
    }
}

// -- between the lanes of a warp -----------------------------------------------------------------

static void whole(Warp& w, const Ins& i, const V32& named = ~V32{}) {
  bool all = w.all;
  LANES(all &= named[l] == ~0u)
  if (!all) fault(w, LANES_MISSING, &i - w.block->l->program->code, 0, 0, 0);
}
enum { UP, BUTTERFLY, INDEX };
template <int HOW> static void shuffle(Warp& w, const Ins& i) {
  whole(w, i, R(w, 4));
  V32 v = R(w, 1), by = R(w, 2), c = R(w, 3);
  put(w, EACH(({
    u32 segment = c[l] >> 8 & 31, low = l & segment, high = low | (c[l] & 31 & ~segment);
    s32 j = HOW == UP ? l - (s32)by[l] : HOW == BUTTERFLY ? l ^ by[l] : low | (by[l] & 31 & ~segment);
    v[(HOW == UP ? j >= (s32)high : j <= (s32)high) ? j & 31 : l]; })));
}
template <class T, class F> static void reduce(Warp& w, const Ins& i, F f) {
  whole(w, i, R(w, 2));
  V32 v = R(w, 1);
  T x = v[0];
  for (int l = 1; l < 32; l++) x = f(x, (T)v[l]);
  put(w, all32(x));
}

// -- matrices ------------------------------------------------------------------------------------

enum { BF16, F16, TF32 };
INLINE float element(u32 x, int kind) { return kind == BF16 ? as_float(x << 16) : kind == F16 ? of_f16(x) : as_float(x & ~0x1fffu); }

// c [16, n] += a [16, k] b [k, n]
static void multiply(float* __restrict c, const float* a, const float* __restrict b, u32 n, u32 k) {
  for (u32 i = 0; i < 16; i++)
    for (u32 j = 0; j < k; j++) {
      float x = a[16 * i + j];
      for (u32 l = 0; l < n; l++) c[i * n + l] += x * b[j * n + l];
    }
}
static void rows_of_registers(float* a, const V32* r, int kind) {
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) {
      float* row = a + 16 * (l / 4 + 8 * (i & 1));
      if (kind == TF32) row[l % 4 + 4 * (i >> 1)] = element(r[i][l], kind);
      else for (int h = 0; h < 2; h++) row[l % 4 * 2 + h + 8 * (i >> 1)] = element(r[i][l] >> 16 * h & 0xffff, kind);
    }
}
static void mma(Warp& w, const Ins& i) {  // p: kind; d 4, a 4, b 2, c 4 registers
  whole(w, i);
  w.block->l->counts[MATRIX]++;
  int kind = i.p, k = kind == TF32 ? 8 : 16;
  float a[16 * 16], b[16 * 8], c[16 * 8] = {};
  V32 rows[4] = {R(w, 4), R(w, 5), R(w, 6), R(w, 7)};
  rows_of_registers(a, rows, kind);
  for (int l = 0; l < 32; l++)
    for (int j = 0; j < 2; j++) {
      u32 x = R(w, 8 + j)[l];
      if (kind == TF32) b[(l % 4 + 4 * j) * 8 + l / 4] = element(x, kind);
      else for (int h = 0; h < 2; h++) b[(l % 4 * 2 + h + 8 * j) * 8 + l / 4] = element(x >> 16 * h & 0xffff, kind);
    }
  multiply(c, a, b, 8, k);
  V32 d[4];
  for (int j = 0; j < 4; j++) d[j] = EACH(as_bits(as_float(R(w, 10 + j)[l]) + c[(l / 4 + 8 * (j >> 1)) * 8 + l % 4 * 2 + (j & 1)]));
  for (int j = 0; j < 4; j++) put(w, d[j], j);
}
// p: matrices, q: 1 transposed. Eight lanes give the rows of each matrix.
template <bool LOAD> static void matrices(Warp& w, const Ins& i) {
  whole(w, i);
  V32 a = R(w, i.p) + (u32)i.x, out[4];
  for (u32 k = 0; k < i.p; k++) {
    u16 t[8][8] = {};
    auto cell = [&](int row, int column) -> u16& { return i.q ? t[column][row] : t[row][column]; };
    V32 m{};
    for (u32 l = 8 * k; l < 8 * k + 8; l++) m[l] = ~0u;
    if (w.block->l->count) count_shared(w, a, m, 16);
    if (!LOAD) LANES(u32 x = R(w, k)[l]; cell(l / 4, l % 4 * 2) = x; cell(l / 4, l % 4 * 2 + 1) = x >> 16)
    for (u32 j = 0; j < 8; j++) {
      u32 x = a[8 * k + j];
      if (!shared(w, 8 * k + j, x, 16, i, (u8*)t[j], !LOAD)) continue;
      if (LOAD) memcpy(t[j], w.block->shared + x, 16);
      else memcpy(w.block->shared + x, t[j], 16);
    }
    out[k] = EACH((u32)cell(l / 4, l % 4 * 2) | (u32)cell(l / 4, l % 4 * 2 + 1) << 16);
  }
  for (u32 k = 0; LOAD && k < i.p; k++) put(w, out[k], k);
}

// wgmma reads 16 bytes at a time where its descriptor says: `line` counts along M or N, `k` along
// K. A swizzle exchanges bits of the address.
static u32 place(u64 d, u32 line, u32 k, bool along_lines, u32 size) {
  u32 start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
  u32 mode = d >> 62, width = mode ? 256u >> mode : 16;
  u32 byte = (along_lines ? line : k) * size, other = along_lines ? k : line;
  u32 across = along_lines ? byte / width * leading : mode ? 0 : byte / 16 * leading;
  u32 within = along_lines ? byte % width : mode ? byte : byte % 16;
  u32 a = start + other / 8 * stride + other % 8 * width + across + within;
  return a ^ (a >> 3 & (mode ? width - 16 : 0));
}
// Visit the operand's pieces of 16 bytes: f(address, line, k).
template <class F> static void pieces(u64 d, u32 first, u32 lines, bool along_lines, int kind, F f) {
  u32 size = kind == TF32 ? 4 : 2, depth = kind == TF32 ? 8 : 16, step = 16 / size;
  for (u32 line = 0; line < lines; line += along_lines ? step : 1)
    for (u32 k = 0; k < depth; k += along_lines ? 1 : step) f(place(d, first + line, k, along_lines, size), line, k);
}
template <class F> static void operands(Warp& w, const Product& p, F f) {
  if (!p.from_registers) pieces(p.a, 16 * (w.number & 3), 16, p.transposed & 1, p.kind, [&](u32 x, u32 line, u32 k) { f(x, line, k, true); });
  pieces(p.b, 0, p.columns, p.transposed & 2, p.kind, [&](u32 x, u32 line, u32 k) { f(x, line, k, false); });
}
static bool readable(Warp& w, u32 x, const Product& p) {
  Block* b = w.block;
  if ((u64)x + 16 > b->l->shared) return fault(w, OUTSIDE_SHARED, p.at, 0, x, 16), false;
  if (p.transposed & 1 && !(p.a >> 62) || p.transposed & 2 && !(p.b >> 62)) fault(w, UNKNOWN_LAYOUT, p.at, 0, x, 16);
  if (!b->l->check) return true;
  shared_read(w, 0, x, 16, p.at);
  for (u32 j = x; j < x + 16; j++) {
    const SharedByte& s = b->bytes[j];
    if (s.time >= b->warps[s.writer].fenced && s.write_at >= w.fenced_at) return fault(w, NO_PROXY_FENCE, p.at, 0, x, 16, s.writer), true;
    if (s.write_at > p.epoch) return fault(w, OPERAND_OVERWRITTEN, p.at, 0, x, 16, s.writer), true;
  }
  return true;
}
// p: columns, q: kind, x: 1 A in registers, 2 A transposed, 4 B transposed
static void start_product(Warp& w, const Ins& i) {
  whole(w, i);
  w.block->l->counts[MATRIX]++;
  Product p{(u32)(&i - w.block->l->program->code), w.block->epoch, i.p, i.q, (u32)i.x >> 1, bool(i.x & 1)};
  u32 k = i.written;
  if (p.from_registers) for (int j = 0; j < 4; j++) p.rows[j] = R(w, k + j);
  else p.a = R64(w, k)[0];
  k += p.from_registers ? 4 : 1;
  p.b = R64(w, k)[0], p.add = R(w, k + 1)[0], p.results = w.o;
  for (u32 j = 0; j < i.written + 4 * p.from_registers; j++) {
    u32 slot = w.o[j];
    if (w.written_at[slot] > w.register_fence) fault(w, NO_REGISTER_FENCE, p.at, 0, slot, 4);
    if (j < i.written) w.in_flight[slot] = 1;
  }
  operands(w, p, [&](u32 x, u32, u32, bool) { readable(w, x, p); });
  w.started.push_back(p);
}
static void commit_products(Warp& w, const Ins&) { w.products.push_back(std::move(w.started)); w.started.clear(); }
static void finish(Warp& w, const Product& p) {
  float a[16 * 16] = {}, b[16 * 256], c[16 * 256];
  u32 n = p.columns, size = p.kind == TF32 ? 4 : 2;
  if (p.from_registers) rows_of_registers(a, p.rows, p.kind);
  operands(w, p, [&](u32 x, u32 line, u32 k, bool is_a) {
    bool along = p.transposed & (is_a ? 1 : 2), ok = readable(w, x, p);
    for (u32 j = 0; j < 16 / size; j++) {
      u32 bits = 0;
      if (ok) memcpy(&bits, w.block->shared + x + j * size, size);
      u32 at_line = line + j * along, at_k = k + j * !along;
      (is_a ? a[16 * at_line + at_k] : b[n * at_k + at_line]) = element(bits, p.kind);
    }
  });
  auto cell = [&](u32 j, int l) -> float& { return c[(l / 4 + 8 * (j % 4 >> 1)) * n + j / 4 * 8 + l % 4 * 2 + (j & 1)]; };
  for (u32 j = 0; j < n / 2; j++) LANES(cell(j, l) = p.add ? as_float(w.r[p.results[j]][l]) : 0)
  multiply(c, a, b, n, p.kind == TF32 ? 8 : 16);
  for (u32 j = 0; j < n / 2; j++) LANES(w.r[p.results[j]][l] = as_bits(cell(j, l)))
}
static void wait_for_products(Warp& w, const Ins& i) {
  for (; w.products.size() > i.p; w.products.pop_front())
    for (Product& p : w.products.front()) finish(w, p);
  std::fill(w.in_flight.begin(), w.in_flight.end(), 0);
  for (auto& group : w.products) for (Product& p : group) for (u32 j = 0; j < p.columns / 2; j++) w.in_flight[p.results[j]] = 1;
}
static void fence_proxy(Warp& w, const Ins&) { w.fenced = w.time, w.fenced_at = w.block->epoch; }
static void fence_registers(Warp& w, const Ins&) { w.register_fence = w.time; }

// -- the instructions ----------------------------------------------------------------------------

// e is computed from the operands a, b, c in 32 bits (x, y, z as floats), or in 64.
#define OP32(name, e) {name, [](Warp& w, const Ins& i) { V32 a = R(w, 1), b = R(w, 2), c = R(w, 3); F32 x = f(a), y = f(b), z = f(c); (void)x; (void)y; (void)z; put(w, (V32)(e)); }}
#define OP64(name, e) {name, [](Warp& w, const Ins& i) { V64 a = R64(w, 1), b = R64(w, 2), c = R64(w, 3); (void)b; (void)c; put(w, (V64)(e)); }}
#define WIDEN(name, e) {name, [](Warp& w, const Ins& i) { V32 a = R(w, 1), b = R(w, 2); V64 c = R64(w, 3); (void)b; (void)c; put(w, (V64)(e)); }}
#define NARROW(name, e) {name, [](Warp& w, const Ins& i) { V64 a = R64(w, 1), b = R64(w, 2); (void)b; put(w, (V32)(e)); }}
#define COMPARE(how, op) OP32("setp." how ".u32", a op b), OP32("setp." how ".s32", (S32)a op (S32)b), OP32("setp." how ".f32", x op y), NARROW("setp." how ".u64", narrow(a op b)), NARROW("setp." how ".s64", narrow((S64)a op (S64)b))
#define S(v) TO((S32)(v), S64)
typedef void (*Run)(Warp&, const Ins&);
static const struct { const char* name; Run run; } OPS[] = {
    {"bra", nullptr}, {"ret", nullptr}, {"bar.sync", nullptr},
    OP32("mov.32", a), OP64("mov.64", a), OP32("pack.32", a | b << 16), WIDEN("pack.64", TO(a, V64) | TO(b, V64) << 32),
    {"unpack.32", [](Warp& w, const Ins&) { V32 a = R(w, 2); put(w, a & 0xffff), put(w, a >> 16, 1); }},
    {"unpack.64", [](Warp& w, const Ins&) { V64 a = R64(w, 2); put(w, TO(a, V32)), put(w, TO(a >> 32, V32), 1); }},
    {"ld.param", [](Warp& w, const Ins& i) { u64 x = 0; memcpy(&x, w.block->l->params + i.x, i.p); if (i.q & 1) x = (s64)(x << (64 - 8 * i.p)) >> (64 - 8 * i.p); if (i.q & 2) put(w, all64(x)); else put(w, all32(x)); }},
    OP32("add.16", a + b & 0xffff), OP32("sub.16", a - b & 0xffff), OP32("add.32", a + b), OP32("sub.32", a - b), OP64("add.64", a + b), OP64("sub.64", a - b),
    OP32("mul.lo.16", a * b & 0xffff), OP32("mul.hi.u16", a * b >> 16), OP32("mul.lo.32", a * b), OP64("mul.lo.64", a * b), OP32("mad.lo.32", a * b + c), OP64("mad.lo.64", a * b + c),
    OP32("mul.hi.u32", TO(TO(a, V64) * TO(b, V64) >> 32, V32)), OP32("mul.hi.s32", TO((V64)(S(a) * S(b)) >> 32, V32)),
    WIDEN("mul.wide.u32", TO(a, V64) * TO(b, V64)), WIDEN("mul.wide.s32", S(a) * S(b)), WIDEN("mad.wide.u32", TO(a, V64) * TO(b, V64) + c), WIDEN("mad.wide.s32", (V64)(S(a) * S(b)) + c),
    OP32("div.s32", EACH(!b[l] ? ~0u : b[l] == ~0u ? -a[l] : (u32)((s32)a[l] / (s32)b[l]))), OP32("rem.s32", EACH(!b[l] ? a[l] : b[l] == ~0u ? 0 : (u32)((s32)a[l] % (s32)b[l]))),
    OP32("div.u32", EACH(b[l] ? a[l] / b[l] : ~0u)), OP32("rem.u32", EACH(b[l] ? a[l] % b[l] : a[l])),
    OP32("neg.32", -a), OP32("abs.s32", EACH((u32)std::abs((s64)(s32)a[l]))),
    OP32("min.u32", EACH(std::min(a[l], b[l]))), OP32("max.u32", EACH(std::max(a[l], b[l]))), OP32("min.s32", EACH((u32)std::min((s32)a[l], (s32)b[l]))), OP32("max.s32", EACH((u32)std::max((s32)a[l], (s32)b[l]))),
    OP32("min.relu.s32", EACH((u32)std::max(0, std::min((s32)a[l], (s32)b[l])))),
    OP32("and.32", a & b), OP32("or.32", a | b), OP32("xor.32", a ^ b), OP32("not.32", ~a), OP64("and.64", a & b), OP64("or.64", a | b), OP64("xor.64", a ^ b), OP64("not.64", ~a),
    OP32("shl.16", EACH(b[l] < 16 ? a[l] << b[l] & 0xffff : 0)), OP32("shl.32", EACH(b[l] < 32 ? a[l] << b[l] : 0)), OP32("shr.u32", EACH(b[l] < 32 ? a[l] >> b[l] : 0)), OP32("shr.s32", EACH((u32)((s32)a[l] >> std::min(b[l], 31u)))),
    {"shl.64", [](Warp& w, const Ins&) { V64 a = R64(w, 1); u32 n[32]; memcpy(n, &R(w, 2), 128); V64 d; LANES(d[l] = n[l] < 64 ? a[l] << n[l] : 0) put(w, d); }},
    {"shr.u64", [](Warp& w, const Ins&) { V64 a = R64(w, 1); u32 n[32]; memcpy(n, &R(w, 2), 128); V64 d; LANES(d[l] = n[l] < 64 ? a[l] >> n[l] : 0) put(w, d); }},
    {"shr.s64", [](Warp& w, const Ins&) { V64 a = R64(w, 1); u32 n[32]; memcpy(n, &R(w, 2), 128); V64 d; LANES(d[l] = (s64)a[l] >> std::min(n[l], 63u)) put(w, d); }},
    OP32("bfe.u32", EACH(field(a[l], b[l], c[l], false))), OP32("bfe.s32", EACH(field(a[l], b[l], c[l], true))), OP32("popc.b32", EACH((u32)__builtin_popcount(a[l]))),
    OP32("selp.32", pick(c, a, b)), {"selp.64", [](Warp& w, const Ins&) { V64 m = wide(R(w, 3)); put(w, R64(w, 1) & m | R64(w, 2) & ~m); }},
    COMPARE("eq", ==), COMPARE("lt", <), COMPARE("le", <=), COMPARE("gt", >), COMPARE("ge", >=),
    OP32("setp.ne.u32", a != b), NARROW("setp.ne.u64", narrow(a != b)), OP32("setp.num.f32", (x == x) & (y == y)), OP32("setp.nan.f32", (x != x) | (y != y)),
    OP32("setp.ne.f32", (x != y) & (x == x) & (y == y)), OP32("setp.neu.f32", x != y),
    OP32("add.f32", x + y), OP32("sub.f32", x - y), OP32("mul.f32", x * y), OP32("div.f32", x / y), OP32("neg.f32", a ^ 0x80000000u), OP32("abs.f32", a & 0x7fffffffu),
    OP32("fma.f32", EACH(as_bits(__builtin_fmaf(x[l], y[l], z[l])))), OP32("sqrt.f32", EACH(as_bits(sqrtf(x[l])))), OP32("min.f32", smaller(a, b, false)), OP32("max.f32", smaller(a, b, true)),
    OP32("ex2.approx.ftz.f32", EACH(subnormal_is_0(as_bits(exp2f(as_float(subnormal_is_0(a[l]))))))),
    OP32("cvt.f32.bf16", a << 16), OP32("cvt.f32.f16", EACH(as_bits(of_f16(a[l])))), OP32("cvt.rn.bf16.f32", EACH(to_bf16(x[l]))), OP32("cvt.rn.f16.f32", EACH(to_f16(x[l]))),
    OP32("cvt.rn.bf16x2.f32", EACH(to_bf16(x[l]) << 16 | to_bf16(y[l]))), OP32("cvt.rn.f16x2.f32", EACH(to_f16(x[l]) << 16 | to_f16(y[l]))),
    OP32("cvt.rna.tf32.f32", EACH((a[l] & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : a[l] + 0x1000 & ~0x1fffu)),
    WIDEN("cvt.u64.u32", TO(a, V64)), WIDEN("cvt.s64.s32", S(a)), OP64("cvt.s64.low", (S64)(a << 32) >> 32), NARROW("cvt.u32.u64", TO(a, V32)), OP32("cvt.u16.u32", a & 0xffff), OP32("cvt.s16.s8", (V32)((S32)(a << 24) >> 24) & 0xffff),
    {"ld.global", load<true>}, {"ld.shared", load<false>}, {"st.global", store<true>}, {"st.shared", store<false>}, {"atom.global.gpu.relaxed.min.s32", atomic_min},
    {"cp.async", copy_async}, {"cp.async.commit_group", commit_copies}, {"cp.async.wait_group", wait_for_copies},
    {"bar.warp.sync", [](Warp& w, const Ins& i) { whole(w, i, R(w, 0)); }}, {"shfl.sync.up.b32", shuffle<UP>}, {"shfl.sync.bfly.b32", shuffle<BUTTERFLY>}, {"shfl.sync.idx.b32", shuffle<INDEX>},
    {"redux.sync.add.s32", [](Warp& w, const Ins& i) { reduce<u32>(w, i, [](u32 a, u32 b) { return a + b; }); }},
    {"redux.sync.min.s32", [](Warp& w, const Ins& i) { reduce<s32>(w, i, [](s32 a, s32 b) { return std::min(a, b); }); }},
    {"redux.sync.max.s32", [](Warp& w, const Ins& i) { reduce<s32>(w, i, [](s32 a, s32 b) { return std::max(a, b); }); }},
    {"mma", mma}, {"ldmatrix", matrices<true>}, {"stmatrix", matrices<false>},
    {"wgmma", start_product}, {"wgmma.commit_group.sync.aligned", commit_products}, {"wgmma.wait_group.sync.aligned", wait_for_products}, {"wgmma.fence.sync.aligned", fence_registers}, {"fence.proxy.async.shared::cta", fence_proxy},
};
enum { BRA, RET, BAR };
const u32 NUM_OPS = sizeof(OPS) / sizeof(OPS[0]);
extern "C" const char* op_name(u32 number) { return number < NUM_OPS ? OPS[number].name : nullptr; }

// -- running -------------------------------------------------------------------------------------

enum State { READY, WAITING, DONE };

// wgmma: registers of a product under way must be left alone, and others fenced before.
static void track(Warp& w, const Ins& i, u32 at, bool product) {
  for (u32 k = 0; k < i.n; k++)
    if (w.in_flight[w.o[k]] && !(product && k < i.written)) fault(w, NOT_WAITED_FOR, at, 0, w.o[k], 4);
  for (u32 k = 0; k < i.written && !product; k++) w.written_at[w.o[k]] = w.time;
}

// Run a warp to its next barrier or its end. Of lanes that have parted the last ones go first.
static State run(Warp& w) {
  Launch* l = w.block->l;
  const Program& p = *l->program;
  for (;;) {
    u32 at = *std::min_element(w.pc, w.pc + 32), next = p.length;
    if (at == p.length) return DONE;
    LANES(w.m[l] = w.pc[l] == at ? ~0u : 0; if (!w.m[l]) next = std::min(next, w.pc[l]))
    const V32 here = w.m;
    auto uniform = [](V32 m) { u32 x = ~0u; LANES(x &= m[l]) return x != 0; };
    auto none = [](V32 m) { u32 x = 0; LANES(x |= m[l]) return x == 0; };
    const bool together = uniform(here);
    bool parted = false;
    while (!parted && at < next) {
      const Ins& i = p.code[at];
      w.o = p.operands + i.at, w.time++;
      l->reached[at]++;
      V32 active = here;
      if (i.guard) active &= i.guard > 0 ? w.r[i.guard] : ~w.r[~i.guard];
      bool taken = !i.guard || !none(active);
      if (i.op == BRA || i.op == RET) {
        u32 target = i.op == RET ? p.length : i.x;
        if (!taken) at++;
        else if (!i.guard || none(here & ~active)) at = target;
        else {
          LANES(if (here[l]) w.pc[l] = active[l] ? target : at + 1)
          parted = true;
        }
        continue;
      }
      if (i.op == BAR) {
        LANES(if (here[l]) w.pc[l] = at + 1; else if (w.pc[l] != p.length) fault(w, LANES_MISSING, at, l, 0, 0))
        return WAITING;
      }
      if (taken) {
        w.m = active, w.all = together && (!i.guard || uniform(active));
        if (p.tracked) track(w, i, at, OPS[i.op].run == start_product);
        OPS[i.op].run(w, i);
      }
      at++;
    }
    if (!parted) LANES(if (here[l]) w.pc[l] = at)
  }
}

static u64 shuffled(u64& s) { s ^= s << 13, s ^= s >> 7, s ^= s << 17; return s; }
template <class T> static void shuffle_order(std::vector<T>& v, u64& s, u32 seed) {
  for (u64 i = v.size(); seed && i > 1; i--) std::swap(v[i - 1], v[shuffled(s) % i]);
}

static void run_block(Block& b, Warp* warps, u64& random) {
  Launch* l = b.l;
  const Program& p = *l->program;
  const u32 slots[] = {2, 3, 4}, sizes[] = {b.id % l->grid[0], b.id / l->grid[0] % l->grid[1], b.id / l->grid[0] / l->grid[1]};
  memset(b.shared, 0xff, l->shared);
  b.first_epoch = ++b.epoch;
  std::vector<u32> order(p.warps);
  for (u32 k = 0; k < p.warps; k++) {
    Warp& w = warps[order[k] = k];
    w.state = READY, w.fenced = w.fenced_at = w.register_fence = 0;
    std::fill(w.pc, w.pc + 32, 0);
    for (int j = 0; j < 3; j++) w.r[slots[j]] = all32(sizes[j]);
  }
  for (bool waiting = true; waiting; b.epoch++) {
    waiting = false;
    u32 left = 0;
    shuffle_order(order, random, l->seed);
    for (u32 k : order) {
      if (warps[k].state != DONE) warps[k].state = run(warps[k]);
      waiting |= warps[k].state == WAITING, left += warps[k].state == DONE;
    }
    l->counts[BARRIERS] += waiting;
    if (waiting && left) fault(warps[0], BARRIER_LEFT, 0, 0, 0, 0, left);
  }
  for (u32 k = 0; k < p.warps; k++) {
    Warp& w = warps[k];
    w.copies.push_back(w.open);
    for (auto& group : w.copies) for (Copy& c : group) for (u32 j = 0; l->check && j < c.size; j++) b.bytes[c.to + j].copying = 0;
    w.open.clear(), w.copies.clear(), w.started.clear(), w.products.clear();
    std::fill(w.in_flight.begin(), w.in_flight.end(), 0);
    std::fill(w.written_at.begin(), w.written_at.end(), 0);
  }
  l->counts[PROGRAMS]++;
}

// What is kept of every byte of a tensor; memory that is never touched costs nothing.
static void watch(Range& r, bool begin) {
  size_t size = (r.high - r.low) * sizeof(Byte);
  if (!begin) munmap(r.seen, size);
  else r.seen = (Byte*)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

extern "C" void launch(Launch* l) {
  for (u32 k = 0; l->check && k < l->num_ranges; k++) watch(l->ranges[k], true);
  const Program& p = *l->program;
  u64 total = (u64)l->grid[0] * l->grid[1] * l->grid[2], random = 0x9e3779b97f4a7c15 * (l->seed + 1);
  std::vector<u32> order(total);
  for (u64 k = 0; k < total; k++) order[k] = k;
  shuffle_order(order, random, l->seed);
  u8* shared = (u8*)aligned_alloc(1024, (l->shared + 1023) / 1024 * 1024 + 1024);
  std::vector<Warp> warps(p.warps);
  Block b{l, 0, 0, 0, 0, warps.data(), shared, std::vector<SharedByte>(l->check ? l->shared : 0)};
  for (u32 k = 0; k < p.warps; k++) {
    Warp& w = warps[k];
    w.block = &b, w.number = k, w.time = 0;
    w.r = (V32*)aligned_alloc(128, p.slots * sizeof(V32));
    memset((void*)w.r, 0xa5, p.slots * sizeof(V32));
    for (u32 j = 0; j < p.literals; j++) {
      const Constant& c = p.constants[j];
      if (c.wide) *(V64*)&w.r[c.slot] = all64(c.value);
      else w.r[c.slot] = all32(c.value);
    }
    LANES(w.r[1][l] = 32 * k + l)
    for (int j = 0; j < 3; j++) w.r[5 + j] = all32(l->grid[j]);
    if (p.tracked) w.written_at.assign(p.slots, 0), w.in_flight.assign(p.slots, 0);
  }
  for (u32 id : order) b.id = id, run_block(b, warps.data(), random);
  for (Warp& w : warps) {
    l->counts[INSTRUCTIONS] += w.time;
    free(w.r);
  }
  free(shared);
  for (u32 k = 0; l->check && k < l->num_ranges; k++) watch(l->ranges[k], false);
}
