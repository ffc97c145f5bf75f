// Executes decoded PTX: 32 lanes at a time, warps from barrier to barrier, every access checked.
// Built once; `ptx_program.py` decodes a kernel for it, `ptx_machine.py` launches.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <numeric>
#include <sys/mman.h>
#include <unordered_set>
#include <vector>

typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int32_t s32; typedef int64_t s64;
#define LANE_VECTOR(type, bytes) typedef type __attribute__((vector_size(bytes), aligned(32)))
LANE_VECTOR(u32, 128) V32; LANE_VECTOR(s32, 128) S32; LANE_VECTOR(float, 128) F32;
LANE_VECTOR(u64, 256) V64; LANE_VECTOR(s64, 256) S64;
#define TO(x, type) __builtin_convertvector(x, type)
#define LANES(...) for (int l = 0; l < 32; l++) { __VA_ARGS__; }
#define EACH(e) ({ V32 r_; LANES(r_[l] = (e)) r_; })

// -- what Python passes --------------------------------------------------------------------------------------------
// Operands: `n` slots from `at` on, the `written` first are results. guard: the slot of a predicate, ~slot for its
// opposite, 0 for none. p, q: sizes and counts. x: the offset of an address, the target of a branch.
struct Ins { u32 op, at, n, written; s32 guard; u32 p, q; s64 x; };
struct Constant { u64 slot, wide, value; };
struct Byte { u32 writer, reader, write_at, read_at; };         // program + 1; epoch and warp
struct Range { u64 low, high; const u8* inside; Byte* seen; };  // inside: which bytes are a tensor's; null: all
struct Fault { u64 kind, at, program, warp, lane, size, address, other; };
enum { INSTRUCTIONS, LOADED, LOAD_SECTORS, STORED, STORE_SECTORS, PROGRAM_SECTORS, LAUNCH_SECTORS, SHARED, WAVEFRONTS,
       MATRIX, BARRIERS, PROGRAMS };
struct Launch {
  const Ins* code; const u32* operands; const Constant* constants;
  u64 length, slots, literals, warps, tracked;  // tracked: registers of wgmma are watched
  const u8* params; Range* ranges; Fault* faults;
  u64 *counts, *reached;  // reached: how often each instruction was executed
  u64 grid[3], num_ranges, shared, seed, check, count, most, max_faults, num_faults;  // most: instructions of a warp
};
enum Kind { OUTSIDE_GLOBAL, ODD_GLOBAL, RACE_OF_PROGRAMS, RACE_OF_WARPS, OUTSIDE_SHARED, ODD_SHARED, READ_AFTER_WRITE,
            WRITE_AFTER_READ, WRITE_AFTER_WRITE, UNWRITTEN, COPY_UNDER_WAY, LANES_MISSING, BARRIER_LEFT, NO_PROXY_FENCE,
            NO_REGISTER_FENCE, NOT_WAITED_FOR, OPERAND_OVERWRITTEN, UNKNOWN_LAYOUT, NO_END };

// -- the machine -----------------------------------------------------------------------------------------------------
enum { UP, BUTTERFLY, INDEX, BF16 = 0, F16, TF32 };
const u32 MANY = ~0u, SEVERAL = 0xff;                                           // programs; warps
struct SharedByte { u32 write_at, read_at, time; u8 writer, reader, copying; };  // epochs, instructions, warps
struct Copy { u32 to, at; u64 from; u32 size, real; };
struct Block;
struct Product { u32 at, epoch, time, columns, kind, transposed; bool from_registers, add; u64 a, b; V32 rows[4]; const u32* results; };
struct Warp {
  Block* block;
  u32 number, state, pc[32], num_products, last_product;
  u32 time, fenced, fenced_at, register_fence;  // instructions so far; the last fences: time, time's epoch, time
  V32 *r, m;     // registers; active lanes
  bool all;      // whether all lanes are
  const u32* o;  // operands of the running instruction
  std::vector<u32> touched_at;  // per slot, if tracked
  std::vector<u8> in_flight;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> copies;
  std::vector<Product> started;  // of wgmma
  std::deque<std::vector<Product>> products;
};
struct Block {
  Launch* call;
  u32 id, epoch, first_epoch; u64 range;  // an epoch ends at a barrier; range: the one hit last
  Warp* warps;
  u8* shared;
  std::vector<SharedByte> bytes;
  std::unordered_set<u64> sectors, all_sectors;  // of this program, of all; loaded or stored
};
static bool fault(Warp& w, Kind kind, u32 at, u32 lane, u64 address, u32 size, u64 other = 0) {
  Launch* call = w.block->call;
  for (u32 i = 0; i < call->num_faults; i++) if (call->faults[i].kind == kind && call->faults[i].at == at) return false;
  if (call->num_faults < call->max_faults) call->faults[call->num_faults++] = {kind, at, w.block->id, w.number, lane, size, address, other};
  return false;
}
static u32 at(Warp& w, const Ins& i) { return &i - w.block->call->code; } static V32 all32(u32 x) { return V32{} + x; } static V64 all64(u64 x) { return V64{} + x; }
static F32 f(V32 x) { return (F32)x; } static V32 pick(V32 m, V32 a, V32 b) { return (a & m) | (b & ~m); }
static V64 wide(V32 m) { return (V64)TO((S32)m, S64); } static V32 narrow(S64 m) { return (V32)TO(m, S32); }
static V32& R(Warp& w, u32 k) { return w.r[w.o[k]]; } static V64& R64(Warp& w, u32 k) { return *(V64*)&w.r[w.o[k]]; }
static void put(Warp& w, V32 v, u32 k = 0) { V32& d = R(w, k); d = w.all ? v : pick(w.m, v, d); }
static void put(Warp& w, V64 v, u32 k = 0) { V64& d = R64(w, k), m = wide(w.m); d = w.all ? v : (v & m) | (d & ~m); }

static void whole(Warp& w, const Ins& i, const V32& named = ~V32{}) {
  u32 all = w.all ? ~0u : 0;
  LANES(all &= named[l]) if (all != ~0u) fault(w, LANES_MISSING, at(w, i), 0, 0, 0);
}
static V32 smaller(V32 a, V32 b, bool larger) {  // PTX: a NaN loses, -0 < +0
  F32 x = f(a), y = f(b);
  V32 r = pick((V32)(x == y), larger ? a & b : a | b, pick((V32)(larger ? x > y : x < y), a, b));
  V32 both = (V32)(x != x) & (V32)(y != y);
  return pick(both, all32(0x7fffffff), pick((V32)(x != x), b, pick((V32)(y != y), a, r)));
}
static float as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; } static double as_double(u64 x) { double y; memcpy(&y, &x, 8); return y; }
static u32 as_bits(float x) { u32 y; memcpy(&y, &x, 4); return y; }
static u32 to_bf16(float x) { u32 b = as_bits(x); return x != x ? 0x7fff : (b + 0x7fff + (b >> 16 & 1)) >> 16; }
static u32 to_f16(float x) { _Float16 h = (_Float16)x; u16 b; memcpy(&b, &h, 2); return x != x ? 0x7fff : b; }
static float of_f16(u16 b) { _Float16 h; memcpy(&h, &b, 2); return (float)h; } static u32 subnormal_is_0(u32 x) { return x & 0x7f800000 ? x : x & 0x80000000; }
static u32 field(u32 a, u32 at, u32 bits, bool sign) {
  s64 x = (sign ? (s64)(s32)a : (s64)a) >> std::min(at & 255, 32u), unused = 64 - std::min(bits & 255, 32u);
  return unused == 64 ? 0 : sign ? (s64)((u64)x << unused) >> unused : (u64)x << unused >> unused;
}
static u32 byte_of(u64 from, u32 how) { u32 x = from >> 8 * (how & 7) & 255; return how & 8 ? (x & 128 ? 255 : 0) : x; }
static u32 bytes_of(u64 from, u32 how) { u32 x = 0; for (int n = 0; n < 4; n++) x |= byte_of(from, how >> 4 * n) << 8 * n; return x; }

// -- memory ----------------------------------------------------------------------------------------------------------
// Whether an access may go on; `stored`: the bytes that it writes.
static bool global(Warp& w, u32 lane, u64 a, u32 n, const Ins& i, const u8* stored, bool atomic = false) {
  Block* b = w.block;
  Launch* call = b->call;
  auto wrong = [&](Kind kind, u64 other = 0) { return fault(w, kind, at(w, i), lane, a, n, other); };
  auto holds = [&](u32 k) { return k < call->num_ranges && a >= call->ranges[k].low && a + n <= call->ranges[k].high; };
  if (a & (n - 1)) return wrong(ODD_GLOBAL);
  if (!holds(b->range)) for (b->range = 0; b->range < call->num_ranges && !holds(b->range); b->range++) {}
  if (b->range == call->num_ranges) return wrong(OUTSIDE_GLOBAL);
  const Range& r = call->ranges[b->range];
  u64 first = a - r.low;
  for (u32 j = 0; r.inside && j < n; j++) if (!r.inside[first + j]) return wrong(OUTSIDE_GLOBAL);
  u32 me = b->id + 1, now = b->epoch << 6 | w.number;
  auto elsewhere = [&](u32 who) { return who && who != me; };
  auto beside = [&](u32 who, u32 then) { return who == me && then >> 6 == b->epoch && (then & 63) != w.number; };
  for (u32 j = 0; r.seen && j < n; j++) {
    Byte& s = r.seen[first + j];
    bool same = stored && stored[j] == *(u8*)(a + j);
    if (elsewhere(s.writer) && !(atomic && s.writer == MANY)) return wrong(RACE_OF_PROGRAMS, s.writer), true;
    if (stored && elsewhere(s.reader)) return wrong(RACE_OF_PROGRAMS, s.reader), true;
    if (beside(s.writer, s.write_at) && !same) return wrong(RACE_OF_WARPS, s.write_at & 63), true;
    if (stored && beside(s.reader, s.read_at)) return wrong(RACE_OF_WARPS, s.read_at & 63), true;
    if (stored) s.writer = atomic ? MANY : me, s.write_at = now;
    else s.read_at = beside(s.reader, s.read_at) ? now | 63 : now, s.reader = elsewhere(s.reader) ? MANY : me;  // 63: several
  }
  return true;
}
static void watch_shared(Warp& w, u32 lane, u32 a, u32 n, u32 at, const u8* stored, bool write) {
  Block* b = w.block;
  auto wrong = [&](Kind kind, u64 other = 0) { fault(w, kind, at, lane, a, n, other); };
  for (u32 j = a; j < a + n; j++) {
    SharedByte& s = b->bytes[j];
    bool written = s.write_at == b->epoch && s.writer != w.number, read = s.read_at == b->epoch && s.reader != w.number;
    if (s.copying) return wrong(COPY_UNDER_WAY);
    if (!write && s.write_at < b->first_epoch) return wrong(UNWRITTEN);
    if (!write && written) return wrong(READ_AFTER_WRITE, s.writer);
    if (write && written && !(stored && stored[j - a] == b->shared[j])) return wrong(WRITE_AFTER_WRITE, s.writer);
    if (write && read) return wrong(WRITE_AFTER_READ, s.reader);
    if (write) s.write_at = b->epoch, s.writer = w.number, s.time = w.time;
    else s.read_at = b->epoch, s.reader = read ? SEVERAL : w.number;
  }
}
static bool shared(Warp& w, u32 lane, u32 a, u32 n, const Ins& i, const u8* stored, bool write) {
  Launch* call = w.block->call;
  if (a & (n - 1)) return fault(w, ODD_SHARED, at(w, i), lane, a, n);
  if ((u64)a + n > call->shared) return fault(w, OUTSIDE_SHARED, at(w, i), lane, a, n);
  if (call->check) watch_shared(w, lane, a, n, at(w, i), stored, write);
  return true;
}

// Sectors of 32 bytes that an access touches, and the fewest for what it asks (lanes at one address ask for the same).
static void count_global(Warp& w, V64 a, V32 m, u32 n, u32 asked) {
  u64 at[32], *counts = w.block->call->counts, k = 0;
  LANES(if (m[l]) at[k++] = a[l]) std::sort(at, at + k);
  k = std::unique(at, at + k) - at;
  counts[asked] += (k * n + 31) / 32;
  for (u64 j = 0; j < k; j++) w.block->sectors.insert((at[j] >>= 5) << 1 | (asked == STORED));
  counts[asked + 1] += std::unique(at, at + k) - at;
}
// Wavefronts of an access to shared memory: the most words of one bank, for each group of lanes that moves 128 bytes.
static void count_shared(Warp& w, V32 a, V32 m, u32 n) {
  u32 group = n <= 4 ? 32 : 128 / n;
  for (u32 g = 0; g < 32; g += group) {
    u32 words[128], k = 0, most = 0, banks[32] = {};
    for (u32 l = g; l < g + group; l++)
      if (m[l]) for (u32 x = a[l] >> 2; x <= (a[l] + n - 1) >> 2; x++) words[k++] = x;
    std::sort(words, words + k);
    for (u32 j = 0, distinct = std::unique(words, words + k) - words; j < distinct; j++) most = std::max(most, ++banks[words[j] & 31]);
    if (k) w.block->call->counts[WAVEFRONTS] += most, w.block->call->counts[SHARED]++;
  }
}

// p: bytes of a register, q: 1 sign-extended, 2 registers of 64 bits.
static u64 number(const u8* from, const Ins& i) {
  u64 x = 0, unused = 64 - 8 * i.p;
  memcpy(&x, from, i.p);
  return i.q & 1 ? (s64)(x << unused) >> unused : x;
}
template <bool GLOBAL, bool STORE> static void move(Warp& w, const Ins& i) {
  u32 k = i.n - 1, n = i.p * k;
  V64 a = (GLOBAL ? R64(w, k) : TO(R(w, k), V64)) + (u64)i.x;
  if (w.block->call->count) GLOBAL ? count_global(w, a, w.m, n, STORE ? STORED : LOADED) : count_shared(w, TO(a, V32), w.m, n);
  for (u32 l = 0; l < 32; l++) {
    if (!w.m[l]) continue;
    u8 data[32], *place = GLOBAL ? (u8*)a[l] : w.block->shared + (u32)a[l];
    memset(data, 0x5a, 32);  // what a load that must not be gives
    for (u32 j = 0; STORE && j < k; j++) {
      u64 x = i.q & 2 ? R64(w, j)[l] : R(w, j)[l];
      memcpy(data + j * i.p, &x, i.p);
    }
    bool may = GLOBAL ? global(w, l, a[l], n, i, STORE ? data : nullptr) : shared(w, l, a[l], n, i, STORE ? data : nullptr, STORE);
    if (may) STORE ? memcpy(place, data, n) : memcpy(data, place, n);
    for (u32 j = 0; !STORE && j < k; j++) {
      u64 x = number(data + j * i.p, i);
      if (i.q & 2) R64(w, j)[l] = x; else R(w, j)[l] = x;
    }
  }
}
static void parameter(Warp& w, const Ins& i) {
  if (u64 x = number(w.block->call->params + i.x, i); i.q & 2) put(w, all64(x)); else put(w, all32(x));
}
// What was there; then the smaller of two s32 is, or the sum of two u64.
template <class T> static void atomic(Warp& w, const Ins& i) {
  constexpr bool WIDE = sizeof(T) == 8;
  V64 a = R64(w, 1) + (u64)i.x;
  if (w.block->call->count) count_global(w, a, w.m, sizeof(T), STORED);
  LANES(T value = WIDE ? R64(w, 2)[l] : R(w, 2)[l], *place = (T*)a[l]; if (w.m[l] && global(w, l, a[l], sizeof(T), i, (u8*)&value, true)) {
    if (WIDE) R64(w, 0)[l] = *place; else R(w, 0)[l] = *place;
    *place = WIDE ? *place + value : std::min(*place, value); })
}

// Asynchronous copies land as late as they may; until then the target holds ones.
static void copy_async(Warp& w, const Ins& i) {
  V64 from = R64(w, 1) + (u64)i.x;
  V32 to = R(w, 0) + i.q, real = R(w, 2);
  Block* b = w.block;
  if (b->call->count) count_global(w, from, w.m & (V32)(real != 0), i.p, LOADED), count_shared(w, to, w.m, i.p);
  for (u32 k = 0; k < 32; k++) {
    if (!w.m[k] || !shared(w, k, to[k], i.p, i, nullptr, true)) continue;
    bool reads = real[k] && global(w, k, from[k], i.p, i, nullptr);
    for (u32 j = 0; b->call->check && j < i.p; j++) b->bytes[to[k] + j].copying = 1;
    memset(b->shared + to[k], 0xff, i.p);
    w.open.push_back({to[k], at(w, i), from[k], i.p, reads ? std::min(real[k], i.p) : 0});
  }
}
static void wait_for_copies(Warp& w, const Ins& i) {
  Block* b = w.block;
  for (whole(w, i); w.copies.size() > i.p; w.copies.pop_front())
    for (Copy& c : w.copies.front()) {
      for (u32 j = 0; b->call->check && j < c.size; j++) b->bytes[c.to + j].copying = 0;
      if (b->call->check) watch_shared(w, 0, c.to, c.size, c.at, nullptr, true);
      memset(b->shared + c.to, 0, c.size);
      memcpy(b->shared + c.to, (u8*)c.from, c.real);
    }
}

// -- between the lanes of a warp -----------------------------------------------------------------
template <int HOW> static void shuffle(Warp& w, const Ins& i) {
  whole(w, i, R(w, 4));
  V32 v = R(w, 1), by = R(w, 2) & 31, c = R(w, 3);
  put(w, EACH(({
    u32 segment = c[l] >> 8 & 31, low = l & segment, high = low | (c[l] & 31 & ~segment);
    s32 j = HOW == UP ? l - (s32)by[l] : HOW == BUTTERFLY ? l ^ by[l] : low | (by[l] & ~segment);
    v[(HOW == UP ? j >= (s32)high : j <= (s32)high) ? j & 31 : l]; })));
}

// -- matrices ---------------------------------------------------------------------------------------------------------
static float element(u32 x, int kind) { return kind == BF16 ? as_float(x << 16) : kind == F16 ? of_f16(x) : as_float(x & ~0x1fffu); }

// c [16, n] += a [16, k] b [k, n]
static void multiply(float* __restrict c, const float* a, const float* __restrict b, u32 n, u32 k) {
  for (u32 i = 0; i < 16; i++)
    for (u32 j = 0; j < k; j++) {
      float x = a[16 * i + j];
      for (u32 l = 0; l < n; l++) c[i * n + l] += x * b[j * n + l];
    }
}
// Where lane l has element j of its results in c [16, n].
static u32 cell(u32 n, u32 j, u32 l) { return (l / 4 + 8 * (j % 4 >> 1)) * n + j / 4 * 8 + l % 4 * 2 + (j & 1); }
// The numbers in a register of an operand: f(row or column, place along K, value).
template <class F> static void spread(const V32& r, u32 group, int kind, F f) {
  for (u32 l = 0; l < 32; l++)
    if (kind == TF32) f(l / 4, l % 4 + 4 * group, element(r[l], kind));
    else for (u32 h = 0; h < 2; h++) f(l / 4, l % 4 * 2 + h + 8 * group, element(r[l] >> 16 * h & 0xffff, kind));
}
static void rows_of_registers(float* a, const V32* r, int kind) {
  for (u32 i = 0; i < 4; i++) spread(r[i], i >> 1, kind, [&](u32 row, u32 k, float x) { a[16 * (row + 8 * (i & 1)) + k] = x; });
}
static void mma(Warp& w, const Ins& i) {  // p: kind; d 4, a 4, b 2, c 4 registers
  whole(w, i), w.block->call->counts[MATRIX]++;
  float a[16 * 16], b[16 * 8], c[16 * 8] = {};
  V32 rows[4] = {R(w, 4), R(w, 5), R(w, 6), R(w, 7)}, d[4];
  rows_of_registers(a, rows, i.p);
  for (int j = 0; j < 2; j++) spread(R(w, 8 + j), j, i.p, [&](u32 column, u32 k, float x) { b[8 * k + column] = x; });
  multiply(c, a, b, 8, i.p == TF32 ? 8 : 16);
  for (int j = 0; j < 4; j++) d[j] = EACH(as_bits(as_float(R(w, 10 + j)[l]) + c[cell(8, j, l)]));
  for (int j = 0; j < 4; j++) put(w, d[j], j);
}
// p: matrices, q: 1 transposed. Eight lanes give the rows of each matrix.
template <bool LOAD> static void matrices(Warp& w, const Ins& i) {
  whole(w, i);
  V32 a = R(w, i.p) + (u32)i.x, out[4];
  for (u32 k = 0; k < i.p; k++) {
    u16 t[8][8] = {};
    auto cell = [&](int row, int column) -> u16& { return i.q ? t[column][row] : t[row][column]; };
    if (w.block->call->count) count_shared(w, a, EACH((u32)l / 8 == k ? ~0u : 0), 16);
    if (!LOAD) LANES(u32 x = R(w, k)[l]; cell(l / 4, l % 4 * 2) = x; cell(l / 4, l % 4 * 2 + 1) = x >> 16)
    for (u32 j = 0; j < 8; j++) {
      u8* place = w.block->shared + a[8 * k + j];
      if (shared(w, 8 * k + j, a[8 * k + j], 16, i, (u8*)t[j], !LOAD)) memcpy(LOAD ? (u8*)t[j] : place, LOAD ? place : (u8*)t[j], 16);
    }
    out[k] = EACH((u32)cell(l / 4, l % 4 * 2) | (u32)cell(l / 4, l % 4 * 2 + 1) << 16);
  }
  for (u32 k = 0; LOAD && k < i.p; k++) put(w, out[k], k);
}

// wgmma reads 16 bytes where its descriptor says: `line` counts along M or N, `k` along K; a swizzle moves address bits.
static u32 place(u64 d, u32 line, u32 k, bool along_lines, u32 size) {
  u32 start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
  u32 mode = d >> 62, width = mode ? 256u >> mode : 16, byte = (along_lines ? line : k) * size, other = along_lines ? k : line;
  u32 across = along_lines ? byte / width * leading : mode ? 0 : byte / 16 * leading;
  u32 within = along_lines ? byte % width : mode ? byte : byte % 16;
  u32 a = start + other / 8 * stride + other % 8 * width + across + within;
  return a ^ (a >> 3 & (mode ? width - 16 : 0));
}
// Visit an operand's pieces of 16 bytes: f(address, line, k).
template <class F> static void pieces(Warp& w, const Product& p, bool is_a, F f) {
  bool along = p.transposed & (is_a ? 1 : 2);
  u32 size = p.kind == TF32 ? 4 : 2, depth = p.kind == TF32 ? 8 : 16, step = 16 / size, first = is_a ? 16 * (w.number & 3) : 0;
  for (u32 line = 0; line < (is_a ? p.from_registers ? 0 : 16 : p.columns); line += along ? step : 1)
    for (u32 k = 0; k < depth; k += along ? 1 : step) f(place(is_a ? p.a : p.b, first + line, k, along, size), line, k);
}
static bool readable(Warp& w, u32 x, const Product& p) {
  Block* b = w.block;
  if ((u64)x + 16 > b->call->shared) return fault(w, OUTSIDE_SHARED, p.at, 0, x, 16);
  if (p.transposed & 1 && !(p.a >> 62) || p.transposed & 2 && !(p.b >> 62)) fault(w, UNKNOWN_LAYOUT, p.at, 0, x, 16);
  if (!b->call->check) return true;
  watch_shared(w, 0, x, 16, p.at, nullptr, false);
  for (u32 j = x; j < x + 16; j++) {
    const SharedByte& s = b->bytes[j];
    if (s.write_at > p.epoch || s.write_at == p.epoch && s.writer == w.number && s.time > p.time) return fault(w, OPERAND_OVERWRITTEN, p.at, 0, x, 16, s.writer), true;
    if (s.time >= b->warps[s.writer].fenced && s.write_at >= w.fenced_at) return fault(w, NO_PROXY_FENCE, p.at, 0, x, 16, s.writer), true;
  }
  return true;
}
// The registers that must be left alone until the wait: 1 results, 2 those of A.
static void mark(Warp& w, const Product& p) {
  for (u32 j = 0; j < p.columns / 2 + 4 * p.from_registers; j++) w.in_flight[p.results[j]] = 1 + (j >= p.columns / 2);
}
// p: columns, q: kind, x: 1 A in registers, 2 A transposed, 4 B transposed
static void start_product(Warp& w, const Ins& i) {
  whole(w, i), w.block->call->counts[MATRIX]++, w.last_product = at(w, i), w.num_products++;
  Product p{at(w, i), w.block->epoch, w.time, i.p, i.q, (u32)i.x >> 1, bool(i.x & 1)};
  u32 k = i.written + (p.from_registers ? 4 : 1);
  for (int j = 0; p.from_registers && j < 4; j++) p.rows[j] = R(w, i.written + j);
  if (!p.from_registers) p.a = R64(w, i.written)[0];
  p.b = R64(w, k)[0], p.add = R(w, k + 1)[0], p.results = w.o;
  for (u32 j = 0; j < i.written + 4 * p.from_registers; j++)
    if (!w.register_fence || w.touched_at[w.o[j]] > w.register_fence) fault(w, NO_REGISTER_FENCE, p.at, 0, w.o[j], 4);
  mark(w, p);
  for (bool is_a : {true, false}) pieces(w, p, is_a, [&](u32 x, u32, u32) { readable(w, x, p); });
  w.started.push_back(p);
}
static void finish(Warp& w, const Product& p) {
  float a[16 * 16] = {}, b[16 * 256], c[16 * 256];
  u32 n = p.columns, size = p.kind == TF32 ? 4 : 2;
  if (p.from_registers) rows_of_registers(a, p.rows, p.kind);
  for (bool is_a : {true, false})
    pieces(w, p, is_a, [&](u32 x, u32 line, u32 k) {
      bool along = p.transposed & (is_a ? 1 : 2), ok = readable(w, x, p);
      for (u32 j = 0; j < 16 / size; j++) {
        u32 bits = 0, at_line = line + j * along, at_k = k + j * !along;
        if (ok) memcpy(&bits, w.block->shared + x + j * size, size);
        (is_a ? a[16 * at_line + at_k] : b[n * at_k + at_line]) = element(bits, p.kind);
      }
    });
  for (u32 j = 0; j < n / 2; j++) LANES(c[cell(n, j, l)] = p.add ? as_float(w.r[p.results[j]][l]) : 0)
  multiply(c, a, b, n, p.kind == TF32 ? 8 : 16);
  for (u32 j = 0; j < n / 2; j++) LANES(w.r[p.results[j]][l] = as_bits(c[cell(n, j, l)]))
}
static void wait_for_products(Warp& w, const Ins& i) {
  for (whole(w, i); w.products.size() > i.p; w.products.pop_front()) for (Product& p : w.products.front()) finish(w, p);
  std::fill(w.in_flight.begin(), w.in_flight.end(), 0);
  for (Product& p : w.started) mark(w, p);  // without a commit nothing waits for them
  for (auto& group : w.products) for (Product& p : group) mark(w, p);
}

// -- the instructions ----------------------------------------------------------------------------
// e is computed from the operands a, b, c in 32 bits (x, y, z as floats), or in 64.
#define OP32(name, e) {name, [](Warp& w, const Ins& i) { V32 a = R(w, 1), b = R(w, 2), c = R(w, 3); F32 x = f(a), y = f(b), z = f(c); (void)x; (void)y; (void)z; put(w, (V32)(e)); }}
#define OP64(name, e) {name, [](Warp& w, const Ins& i) { V64 a = R64(w, 1), b = R64(w, 2), c = R64(w, 3); (void)b; (void)c; put(w, (V64)(e)); }}
#define WIDEN(name, e) {name, [](Warp& w, const Ins& i) { V32 a = R(w, 1), b = R(w, 2); V64 c = R64(w, 3); (void)b; (void)c; put(w, (V64)(e)); }}
#define NARROW(name, e) {name, [](Warp& w, const Ins& i) { V64 a = R64(w, 1), b = R64(w, 2); (void)b; put(w, (V32)(e)); }}
#define COMPARE(how, op) OP32("setp." how ".u32", a op b), OP32("setp." how ".s32", (S32)a op (S32)b), OP32("setp." how ".f32", x op y), NARROW("setp." how ".u64", narrow(a op b)), NARROW("setp." how ".s64", narrow((S64)a op (S64)b))
#define SHIFT(name, e) {name, [](Warp& w, const Ins&) { V64 d; LANES(u64 a = R64(w, 1)[l]; u32 n = R(w, 2)[l]; d[l] = e) put(w, d); }}
#define REDUCE(name, type, e) {name, [](Warp& w, const Ins& i) { whole(w, i, R(w, 2)); type a = R(w, 1)[0]; for (int l = 1; l < 32; l++) { type b = R(w, 1)[l]; a = e; } put(w, all32(a)); }}
#define S(v) TO((S32)(v), S64)
static const struct { const char* name; void (*run)(Warp&, const Ins&); } OPS[] = {
    {"bra", nullptr}, {"ret", nullptr}, {"bar.sync", nullptr}, OP32("mov.32", a), OP64("mov.64", a), OP32("pack.32", (a & 0xffff) | b << 16), WIDEN("pack.64", TO(a, V64) | TO(b, V64) << 32),
    {"unpack.32", [](Warp& w, const Ins&) { V32 a = R(w, 2); put(w, a & 0xffff), put(w, a >> 16, 1); }}, {"unpack.64", [](Warp& w, const Ins&) { V64 a = R64(w, 2); put(w, TO(a, V32)), put(w, TO(a >> 32, V32), 1); }},
    {"ld.param", parameter}, OP32("add.16", a + b & 0xffff), OP32("sub.16", a - b & 0xffff), OP32("add.32", a + b), OP32("sub.32", a - b), OP64("add.64", a + b), OP64("sub.64", a - b),
    OP32("mul.lo.16", a * b & 0xffff), OP32("mul.hi.u16", a * b >> 16), OP32("mul.lo.32", a * b), OP64("mul.lo.64", a * b), OP32("mad.lo.32", a * b + c), OP64("mad.lo.64", a * b + c),
    OP32("mul.hi.u32", TO(TO(a, V64) * TO(b, V64) >> 32, V32)), WIDEN("mul.wide.u32", TO(a, V64) * TO(b, V64)), WIDEN("mul.wide.s32", S(a) * S(b)), WIDEN("mad.wide.u32", TO(a, V64) * TO(b, V64) + c), WIDEN("mad.wide.s32", (V64)(S(a) * S(b)) + c),
    OP32("div.u32", EACH(b[l] ? a[l] / b[l] : ~0u)), OP32("div.s32", EACH(!b[l] ? ~0u : b[l] == ~0u ? -a[l] : (u32)((s32)a[l] / (s32)b[l]))), {"div.s64", [](Warp& w, const Ins&) { V64 d; LANES(u64 a = R64(w, 1)[l], b = R64(w, 2)[l]; d[l] = !b ? ~0ull : b == ~0ull ? -a : (u64)((s64)a / (s64)b)) put(w, d); }},
    OP32("neg.32", -a), OP32("min.u32", EACH(std::min(a[l], b[l]))), OP32("min.s32", EACH((u32)std::min((s32)a[l], (s32)b[l]))), OP32("max.s32", EACH((u32)std::max((s32)a[l], (s32)b[l]))),
    OP64("min.s64", (S64)a < (S64)b ? a : b), OP64("max.s64", (S64)a > (S64)b ? a : b), OP32("min.relu.s32", EACH((u32)std::max(0, std::min((s32)a[l], (s32)b[l])))),
    OP32("and.32", a & b), OP32("or.32", a | b), OP32("xor.32", a ^ b), OP32("not.32", ~a), OP64("and.64", a & b), OP64("or.64", a | b), OP64("xor.64", a ^ b),
    OP32("shl.16", EACH(b[l] < 16 ? a[l] << b[l] & 0xffff : 0)), OP32("shl.32", EACH(b[l] < 32 ? a[l] << b[l] : 0)), OP32("shr.u32", EACH(b[l] < 32 ? a[l] >> b[l] : 0)), OP32("shr.s32", EACH((u32)((s32)a[l] >> std::min(b[l], 31u)))),
    SHIFT("shl.64", n < 64 ? a << n : 0), SHIFT("shr.u64", n < 64 ? a >> n : 0), SHIFT("shr.s64", (u64)((s64)a >> std::min(n, 63u))), OP32("bfe.u32", EACH(field(a[l], b[l], c[l], false))), OP32("bfe.s32", EACH(field(a[l], b[l], c[l], true))), OP32("prmt.b32", EACH(bytes_of((u64)b[l] << 32 | a[l], c[l]))), OP32("shf.l.wrap.b32", EACH((u32)(((u64)b[l] << 32 | a[l]) << (c[l] & 31) >> 32))), OP32("popc.b32", EACH((u32)__builtin_popcount(a[l]))),
    OP32("selp.32", pick(c, a, b)), {"selp.64", [](Warp& w, const Ins&) { V64 m = wide(R(w, 3)); put(w, R64(w, 1) & m | R64(w, 2) & ~m); }},
    COMPARE("eq", ==), COMPARE("lt", <), COMPARE("le", <=), COMPARE("gt", >), COMPARE("ge", >=),
    OP32("setp.ne.u32", a != b), NARROW("setp.ne.u64", narrow(a != b)), OP32("setp.num.f32", (x == x) & (y == y)), OP32("setp.leu.f32", ~(x > y)), OP32("setp.ne.f32", (x != y) & (x == x) & (y == y)),
    OP32("add.f32", x + y), OP32("sub.f32", x - y), OP32("mul.f32", x * y), OP32("div.f32", x / y), OP32("neg.f32", a ^ 0x80000000u), OP32("abs.f32", a & 0x7FFFFFFFu),
    OP32("fma.f32", EACH(as_bits(__builtin_fmaf(x[l], y[l], z[l])))), OP32("sqrt.f32", EACH(as_bits(sqrtf(x[l])))), OP32("min.f32", smaller(a, b, false)), OP32("max.f32", smaller(a, b, true)),
    OP32("ex2.approx.ftz.f32", EACH(subnormal_is_0(as_bits(exp2f(as_float(subnormal_is_0(a[l]))))))),
    OP32("cvt.f32.bf16", a << 16), OP32("cvt.f32.f16", EACH(as_bits(of_f16(a[l])))), OP32("cvt.rn.bf16.f32", EACH(to_bf16(x[l]))), OP32("cvt.rn.f16.f32", EACH(to_f16(x[l]))),
    OP32("cvt.rn.bf16x2.f32", EACH(to_bf16(x[l]) << 16 | to_bf16(y[l]))), OP32("cvt.rn.f16x2.f32", EACH(to_f16(x[l]) << 16 | to_f16(y[l]))),
    OP32("cvt.rn.f32.s32", EACH(as_bits((float)(s32)a[l]))), NARROW("cvt.rn.f32.f64", EACH(as_bits((float)as_double(a[l])))), OP32("cvt.rna.tf32.f32", EACH((a[l] & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : a[l] + 0x1000 & ~0x1fffu)),
    WIDEN("cvt.u64.u32", TO(a, V64)), WIDEN("cvt.s64.s32", S(a)), OP64("cvt.s64.low", (S64)(a << 32) >> 32), NARROW("cvt.u32.u64", TO(a, V32)), OP32("cvt.u16.u32", a & 0xffff), OP32("cvt.s16.s8", (V32)((S32)(a << 24) >> 24) & 0xffff),
    {"ld.global", move<true, false>}, {"ld.shared", move<false, false>}, {"st.global", move<true, true>}, {"st.shared", move<false, true>}, {"atom.global.gpu.relaxed.min.s32", atomic<s32>}, {"atom.global.gpu.relaxed.add.u64", atomic<u64>},
    {"cp.async", copy_async}, {"cp.async.commit_group", [](Warp& w, const Ins& i) { whole(w, i), w.copies.push_back(std::move(w.open)); w.open.clear(); }}, {"cp.async.wait_group", wait_for_copies},
    {"bar.warp.sync", [](Warp& w, const Ins& i) { whole(w, i, R(w, 0)); }}, {"shfl.sync.up.b32", shuffle<UP>}, {"shfl.sync.bfly.b32", shuffle<BUTTERFLY>}, {"shfl.sync.idx.b32", shuffle<INDEX>},
    REDUCE("redux.sync.add.s32", u32, a + b), REDUCE("redux.sync.min.s32", s32, std::min(a, b)), REDUCE("redux.sync.max.s32", s32, std::max(a, b)),
    {"mma", mma}, {"ldmatrix", matrices<true>}, {"stmatrix", matrices<false>},
    {"wgmma", start_product}, {"wgmma.wait_group.sync.aligned", wait_for_products},
    {"wgmma.commit_group.sync.aligned", [](Warp& w, const Ins& i) { whole(w, i), w.products.push_back(std::move(w.started)); w.started.clear(); }},
    {"wgmma.fence.sync.aligned", [](Warp& w, const Ins& i) { whole(w, i), w.register_fence = w.time; }}, {"fence.proxy.async.shared::cta", [](Warp& w, const Ins&) { w.fenced = w.time, w.fenced_at = w.block->epoch; }},
};
enum { BRA, RET, BAR };
enum State { READY, WAITING, DONE };
extern "C" const char* op_name(u32 number) { return number < sizeof(OPS) / sizeof(OPS[0]) ? OPS[number].name : nullptr; }

// -- running -------------------------------------------------------------------------------------
// wgmma: registers of a product under way must be left alone, and others fenced before.
static void track(Warp& w, const Ins& i, u32 at, bool product) {
  for (u32 k = 0; k < i.n; k++) if (w.in_flight[w.o[k]] && !(product && w.in_flight[w.o[k]] == 1 + (k >= i.written))) fault(w, NOT_WAITED_FOR, at, 0, w.o[k], 4);
  for (u32 k = 0; k < i.n && !product; k++) w.touched_at[w.o[k]] = w.time;
}

// Run a warp to its next barrier or its end. Of lanes that have parted the last ones go first.
static State run(Warp& w) {
  Launch* call = w.block->call;
  auto all = [](V32 m) { u32 x = ~0u; LANES(x &= m[l]) return x != 0; };
  auto none = [](V32 m) { u32 x = 0; LANES(x |= m[l]) return x == 0; };
  for (;;) {
    u32 at = *std::min_element(w.pc, w.pc + 32), next = call->length;
    if (at == call->length) return DONE;
    V32 here{};
    LANES(if (w.pc[l] == at) here[l] = ~0u; else next = std::min(next, w.pc[l]))
    const bool together = all(here);
    while (at < next) {
      const Ins& i = call->code[at];
      if (w.time >= call->most) return fault(w, NO_END, at, 0, 0, 0), DONE;
      w.o = call->operands + i.at, w.time++, call->reached[at]++;
      w.m = i.guard > 0 ? here & w.r[i.guard] : i.guard ? here & ~w.r[~i.guard] : here;
      w.all = i.guard ? all(w.m) : together;
      if (i.op == BAR) {
        LANES(if (here[l]) w.pc[l] = at + 1; else if (w.pc[l] != call->length) fault(w, LANES_MISSING, at, l, 0, 0))
        return WAITING;
      }
      if (i.guard && none(w.m)) at++;
      else if (i.op == BRA || i.op == RET) {
        u32 target = i.op == RET ? call->length : i.x;
        LANES(if (here[l]) w.pc[l] = w.m[l] ? target : at + 1)
        if (!none(here & ~w.m)) break;  // they part
        at = target;
      } else {
        if (call->tracked) track(w, i, at, OPS[i.op].run == start_product);
        OPS[i.op].run(w, i);
        at++;
      }
      LANES(if (here[l]) w.pc[l] = at)
    }
  }
}

template <class T> static void shuffle_order(std::vector<T>& v, u64& random, u64 seed) {
  for (u64 i = v.size(); seed && i > 1; std::swap(v[i - 1], v[random % i]), i--)
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
}
static void run_block(Block& b, std::vector<Warp>& warps, u64& random) {
  Launch* call = b.call; const u64* grid = call->grid;
  memset(b.shared, 0xff, call->shared);
  for (SharedByte& s : b.bytes) s.copying = 0;
  b.first_epoch = ++b.epoch;
  std::vector<u32> order;
  for (Warp& w : warps) {
    order.push_back(w.number);
    w.state = READY, w.num_products = 0, w.fenced = w.fenced_at = w.register_fence = 0;
    std::fill(w.pc, w.pc + 32, 0);
    w.r[2] = all32(b.id % grid[0]), w.r[3] = all32(b.id / grid[0] % grid[1]), w.r[4] = all32(b.id / grid[0] / grid[1]);
    w.open.clear(), w.copies.clear(), w.started.clear(), w.products.clear();
    if (call->tracked) w.touched_at.assign(call->slots, 0), w.in_flight.assign(call->slots, 0);
  }
  for (bool waiting = true; waiting; b.epoch++) {
    waiting = false;
    u32 left = 0;
    shuffle_order(order, random, call->seed);
    for (u32 k : order) {
      if (warps[k].state != DONE) warps[k].state = run(warps[k]);
      waiting |= warps[k].state == WAITING, left += warps[k].state == DONE;
    }
    call->counts[BARRIERS] += waiting;
    for (Warp& w : warps)
      if (left && w.state == WAITING) fault(w, BARRIER_LEFT, *std::min_element(w.pc, w.pc + 32) - 1, 0, 0, 0, left);
  }
  for (Warp& w : warps)  // four warps make a product together
    if (call->tracked && w.num_products > warps[w.number / 4 * 4 + (w.number + 1) % 4].num_products) fault(w, LANES_MISSING, w.last_product, 0, 0, 0);
  call->counts[PROGRAMS]++, call->counts[PROGRAM_SECTORS] += b.sectors.size();
  b.all_sectors.merge(b.sectors), b.sectors.clear();
}

extern "C" void launch(Launch* call) {
  const u64* grid = call->grid;
  u64 random = 0x9e3779b97f4a7c15 * (call->seed + 1);
  std::vector<u32> order(grid[0] * grid[1] * grid[2]);
  std::iota(order.begin(), order.end(), 0);
  shuffle_order(order, random, call->seed);
  std::vector<u8> shared(call->shared + 1024);
  std::vector<Warp> warps(call->warps);
  Block b{call, 0, 0, 0, 0, warps.data(), (u8*)(((u64)shared.data() + 1023) & ~1023ull), std::vector<SharedByte>(call->check ? call->shared : 0)};
  for (u64 k = 0; k < call->warps; k++) {
    Warp& w = warps[k];
    w.block = &b, w.number = k, w.time = 0;
    w.r = (V32*)aligned_alloc(128, call->slots * sizeof(V32));
    memset((void*)w.r, 0xa5, call->slots * sizeof(V32));
    for (const Constant* c = call->constants; c < call->constants + call->literals; c++)
      if (c->wide) *(V64*)&w.r[c->slot] = all64(c->value); else w.r[c->slot] = all32(c->value);
    LANES(w.r[1][l] = 32 * k + l)
    for (int j = 0; j < 3; j++) w.r[5 + j] = all32(grid[j]);
  }
  auto size = [&](u64 k) { return (call->ranges[k].high - call->ranges[k].low) * sizeof(Byte); };
  const int kept = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;  // memory that is never touched costs nothing
  for (u64 k = 0; call->check && k < call->num_ranges; k++)
    call->ranges[k].seen = (Byte*)mmap(nullptr, size(k), PROT_READ | PROT_WRITE, kept, -1, 0);
  for (u32 id : order) b.id = id, run_block(b, warps, random);
  for (u64 k = 0; call->check && k < call->num_ranges; k++) munmap(call->ranges[k].seen, size(k));
  for (Warp& w : warps) call->counts[INSTRUCTIONS] += w.time, free(w.r);
  call->counts[LAUNCH_SECTORS] = b.all_sectors.size();
}
