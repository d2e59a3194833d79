// Vectors of numbers, bfloat16, and products of tiles, which all compiled code shares.
//
// All products go through one layout. 32 bits, a word, hold what is added to one sum at once: 2 numbers of bfloat16, or 4
// bytes. Both inputs and weights lie in units of 16 by 16 words: those of a token, or of an input, beside each other. Units
// of 16 outputs and the same inputs lie four together, a tile's; those of the next 16 inputs come behind, and then the next
// tile. So a vector of 16 sums needs no adding up across, and processors that multiply small matrices (AMX) find theirs.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int LANES = 16, VECTORS = 4, TILE = LANES * VECTORS;
constexpr int UNIT = 16, UNIT_WORDS = UNIT * LANES;
constexpr int FEW = 4;          // Tokens of a tile at once, without AMX: more sums do not fit the registers.
constexpr int MANY = 2 * UNIT;  // At most, with AMX.
constexpr int PREFETCHED = 32;  // Vectors or tokens ahead. What the processor foresees by itself is too little.

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4)));  // Wherever an array of words begins.

// The upper half of a float.
struct Bfloat16 {
    uint16_t bits;
};

// ---- Memory

// Return whether there was enough for what `work` does. Nothing else may be thrown out of threads, or through Python: where it
// was too little, a function goes on without, and says that nothing of what it made is right.
template <class Work>
bool fits(const Work& work) {
    try {
        work();
        return true;
    } catch (const std::bad_alloc&) {
        return false;
    }
}

// ---- Numbers

inline void store(float value, Bfloat16* place) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    const bool is_number = value == value;
    place->bits = is_number ? (word + 0x7fff + ((word >> 16) & 1)) >> 16 : 0x7fc0;  // To the nearest; of two, to the even one.
}

inline void store(float value, float* place) { *place = value; }

inline float number(float value) { return value; }

inline float number(Bfloat16 value) {
    const uint32_t word = uint32_t(value.bits) << 16;
    float result;
    memcpy(&result, &word, sizeof result);
    return result;
}

inline Floats load(const float* place) {
    Floats values;
    memcpy(&values, place, sizeof values);
    return values;
}

inline Floats load(const Bfloat16* place) {
    typedef uint16_t Halves __attribute__((vector_size(32)));
    Halves halves;
    memcpy(&halves, place, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void store(Floats values, float* place) { memcpy(place, &values, sizeof values); }

inline void store(Floats values, Bfloat16* place) {
#ifdef __AVX512BF16__
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)values);
    memcpy(place, &rounded, sizeof rounded);
#else
    for (int i = 0; i < LANES; i++) store(values[i], place + i);
#endif
}

// Numbers of bfloat16.
inline Floats rounded(Floats values) {
    Bfloat16 some[LANES];
    store(values, some);
    return load(some);
}

// Where one of both is no number, the second one.
template <class Values>
inline Values larger(Values one, Values other) {
    return one > other ? one : other;
}

template <class Values>
inline Values smaller(Values one, Values other) {
    return one < other ? one : other;
}

inline float largest(Floats values) {
    float result = values[0];
    for (int i = 1; i < LANES; i++) result = std::max(result, values[i]);
    return result;
}

inline float total(Floats values) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight eights[2];
    memcpy(eights, &values, sizeof values);
    const Eight eight = eights[0] + eights[1];
    Four fours[2];
    memcpy(fours, &eight, sizeof eight);
    const Four four = fours[0] + fours[1];
    return (four[0] + four[1]) + (four[2] + four[3]);
}

// e^x where |x| <= ln(2) / 2.
template <class Values>
inline Values exponential_near_0(Values x) {
    Values p = x * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    return p * x * x + x + 1;
}

#ifdef __AVX512F__
// x to the nearest whole number.
inline Floats whole(Floats x) {
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// values * 2^n, but 0 where is_there is not set; n: whole.
inline Floats scaled(Floats values, Floats n, __mmask16 is_there) {
    return (Floats)_mm512_maskz_scalef_ps(is_there, (__m512)values, (__m512)n);
}
#endif

// e^x to about 23 bits, as Cephes' expf: 2^n e^r with |r| <= ln(2) / 2. Values: float, or Floats; Bits: uint32_t, or Words.
template <class Values, class Bits>
inline Values exponential(Values x) {
    x = smaller(Values{} + 88, larger(Values{} - 87, x));
    // To where neighbours are 1 apart: the last bits are the whole number.
    const Values shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const Values p = exponential_near_0(x - n * 0.693359375f + n * 2.12194440e-4f);
    Bits power;
    memcpy(&power, &shifted, sizeof power);
    power = (power + 127) << 23;
    Values scale;
    memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

inline float exponential(float x) { return exponential<float, uint32_t>(x); }

inline Floats exponential(Floats x) {
#ifdef __AVX512F__
    const Floats n = whole(x * 1.44269504f), r = x - n * 0.693359375f + n * 2.12194440e-4f;
    // Below, numbers are smaller than normal ones.
    return scaled(exponential_near_0(r), n, _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87), _CMP_NLT_UQ));
#else
    return exponential<Floats, Words>(x);
#endif
}

// 2^x to 18 bits, which is for what is rounded to 8: 2^floor(x) 2^r, r between 0 and 1. x: less than 127.
inline Floats power_of_2(Floats x) {
#ifdef __AVX512DQ__
    const Floats r = (Floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    constexpr float TO_INTEGER = 12582912;  // 1.5 * 2^23: to this, floats are whole numbers.
    const Floats shifted = (x - 0.5f) + TO_INTEGER, r = x - (shifted - TO_INTEGER);
#endif
    // The polynomial whose greatest relative error is least.
    Floats p = 0.0135341679f * r + 0.0520114606f;
    p = p * r + 0.241442757f;
    p = p * r + 0.693003834f;
    p = p * r + 1.00000259f;
#ifdef __AVX512DQ__
    return (Floats)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return x < -126 ? Floats{} : (Floats)((Ints)p + ((Ints)shifted << 23));  // Below, numbers are smaller than normal ones.
#endif
}

// 1 / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3). |x| <= 8.
inline float tanh_gelu_share(float x) { return 1 / (1 + exponential(x * (-1.5957691216f - 0.0713548163f * x * x))); }

inline Floats tanh_gelu_share(Floats x) {
    const Floats divisor = 1 + power_of_2(x * (-2.3022082f - 0.10294324f * x * x));
#ifdef __AVX512F__
    const Floats some = (Floats)_mm512_rcp14_ps((__m512)divisor);
    return some * (2 - divisor * some);  // Newton's iteration: twice the bits.
#else
    return 1 / divisor;
#endif
}

// GPT-2's activation function and its slope: x (1 + tanh u) / 2 = x s, s being its share.
// From -8 and 8 on, that is as good as 0 or 1.
template <class Values>
inline Values tanh_gelu(Values x) {
    x = larger(Values{} - 8, x);
    return x * tanh_gelu_share(smaller(Values{} + 8, x));
}

template <class Values>
inline Values tanh_gelu_slope(Values x) {
    x = smaller(Values{} + 8, larger(Values{} - 8, x));
    const Values s = tanh_gelu_share(x);
    return s + x * s * (1.0f - s) * (1.5957691216f + 0.2140644488f * x * x);
}

// ---- Places of words

inline int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Where the words of a token begin, of which there are `words`. LANES lie together, the next ones UNIT_WORDS behind.
inline int64_t place_of(int64_t token, int64_t words) { return token / UNIT * UNIT * words + token % UNIT * LANES; }

// Where a weight lies in its tile.
inline int64_t weight_place(int64_t word, int64_t output) {
    return (word / LANES * VECTORS + output / LANES) * UNIT_WORDS + word % LANES * LANES + output % LANES;
}

// Round 32 numbers, a unit's words, to bfloat16.
inline void round_some(const float* numbers, uint32_t* words) {
    for (int i = 0; i < 2 * LANES; i++) store(numbers[i], (Bfloat16*)words + i);
}

inline void store_words(Words values, uint32_t* place) { memcpy(place, &values, sizeof values); }

// Words of one number of `low` and one of `high`, rounded.
inline Words pair(Floats low, Floats high) {
#ifdef __AVX512BF16__
    static constexpr struct alignas(64) {
        uint16_t places[32];
    } both = {{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31}};
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (Words)_mm512_permutexvar_epi16(_mm512_load_si512(&both), halves);
#else
    Words words;
    for (int i = 0; i < LANES; i++) {
        Bfloat16 halves[2];
        store(low[i], &halves[0]), store(high[i], &halves[1]);
        uint32_t word;
        memcpy(&word, halves, sizeof word);
        words[i] = word;
    }
    return words;
#endif
}

// Words of two neighbours each: those of `first`, and behind them those of `second`.
inline void round_neighbours(Floats first, Floats second, uint32_t* place) {
#ifdef __AVX512BF16__
    store_words((Words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first), place);
#else
    float numbers[2 * LANES];
    store(first, numbers), store(second, numbers + LANES);
    round_some(numbers, place);
#endif
}

// Write a line of memory, which need not be read for that where it is one and goes past the caches. stays: in them, to be read
// soon. It is there for other threads after finish_lines.
inline void write_line(Words words, void* place, bool stays = false) {
#ifdef __AVX512F__
    if (!stays && (uintptr_t)place % sizeof words == 0) {
        _mm512_stream_si512((__m512i*)place, (__m512i)words);
        return;
    }
#endif
    memcpy(place, &words, sizeof words);
}

inline void finish_lines() {
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

struct alignas(64) Unit {
    Words lines[UNIT];

    void transpose() {
#ifdef __AVX512F__
        const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
        for (uint32_t step = 1; step < UNIT; step *= 2) {
            // Change the places of squares of this size. In the second vector, lanes count from 16 on.
            const Words is_upper = (Words)((lanes & step) != 0);
            const Words lower = is_upper ? lanes - step + UNIT : lanes, upper = is_upper ? lanes + UNIT : lanes + step;
#pragma GCC unroll 16
            for (uint32_t n = 0; n < UNIT; n++)
                if (!(n & step)) {
                    const __m512i one = (__m512i)lines[n], other = (__m512i)lines[n + step];
                    lines[n] = (Words)_mm512_permutex2var_epi32(one, (__m512i)lower, other);
                    lines[n + step] = (Words)_mm512_permutex2var_epi32(one, (__m512i)upper, other);
                }
        }
#else
        for (int n = 0; n < UNIT; n++)
            for (int word = 0; word < n; word++) {
                const uint32_t kept = lines[n][word];
                lines[n][word] = lines[word][n];
                lines[word][n] = kept;
            }
#endif
    }
};

// ---- Products of a tile. Sums: Floats, of bfloat16, or Ints, of bytes.

inline Floats add_products(Floats sums, uint32_t inputs, Words weights) {
#ifdef __AVX512BF16__
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(inputs), (__m512bh)weights);
#else
    const Words both = inputs - Words{};
    sums += (Floats)(both << 16) * (Floats)(weights << 16);
    return sums + (Floats)(both & 0xffff0000u) * (Floats)(weights & 0xffff0000u);
#endif
}

inline Ints add_products(Ints sums, uint32_t inputs, Words weights) {
#ifdef __AVX512VNNI__
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(inputs), (__m512i)weights);
#else
    for (int byte = 0; byte < 4; byte++)
        sums += ((Ints)(weights << (24 - 8 * byte)) >> 24) * int32_t((inputs >> (8 * byte)) & 255);
    return sums;
#endif
}

// Compute the sums of COUNT tokens.
template <int COUNT, class Sums, class Number>
inline void multiply_few(const uint32_t* inputs, const Words* weights, int64_t words, Number (*outputs)[TILE]) {
    Sums sums[COUNT][VECTORS] = {};
    for (int64_t begin = 0; begin < words; begin += LANES, inputs += UNIT_WORDS, weights += VECTORS * LANES)
        for (int word = 0; word < LANES; word++)
            for (int vector = 0; vector < VECTORS; vector++) {
                const Words* some = weights + vector * LANES + word;
                __builtin_prefetch(some + PREFETCHED);
                for (int n = 0; n < COUNT; n++)
                    sums[n][vector] = add_products(sums[n][vector], inputs[n * LANES + word], *some);
            }
    memcpy(outputs, sums, sizeof sums);
}

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
// AMX's tiles, of a thread.
struct Amx {
    const bool is_there = permitted();

    Amx() {
        // Constant, as compilers do not see that all of it is read.
        static constexpr struct alignas(64) {
            uint8_t palette, start, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } shape = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
        if (is_there) _tile_loadconfig(&shape);
    }
    ~Amx() {
        if (is_there) _tile_release();
    }
    // Linux gives their registers to a process that asks (ARCH_REQ_XCOMP_PERM, XTILEDATA).
    static bool permitted() {
        static const bool answer = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
        return answer;
    }
};

#define ADD_PRODUCTS(sums, inputs, weights)    \
    if (std::is_same<Sums, Floats>::value)     \
        _tile_dpbf16ps(sums, inputs, weights); \
    else                                       \
        _tile_dpbusd(sums, inputs, weights);
// Compilers do not see either that tiles are loaded from memory.
#define WRITE_ALL_TO_MEMORY asm volatile("" ::: "memory");

// Compute the sums of a unit: four tiles beside each other.
template <class Sums, class Number>
inline void multiply_unit(const uint32_t* inputs, const Words* weights, int64_t words, Number (*outputs)[TILE]) {
    WRITE_ALL_TO_MEMORY
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t word = 0; word < words; word += LANES, inputs += UNIT_WORDS, weights += LANES * VECTORS) {
        for (int line = 0; line < LANES * VECTORS; line++) __builtin_prefetch(weights + LANES * VECTORS + line);
        _tile_loadd(4, inputs, 4 * LANES);
        _tile_loadd(6, weights, 4 * LANES);
        ADD_PRODUCTS(0, 4, 6)
        _tile_loadd(7, weights + 1 * LANES, 4 * LANES);
        ADD_PRODUCTS(1, 4, 7)
        _tile_loadd(6, weights + 2 * LANES, 4 * LANES);
        ADD_PRODUCTS(2, 4, 6)
        _tile_loadd(7, weights + 3 * LANES, 4 * LANES);
        ADD_PRODUCTS(3, 4, 7)
    }
    _tile_stored(0, outputs[0], 4 * TILE);
    _tile_stored(1, outputs[0] + LANES, 4 * TILE);
    _tile_stored(2, outputs[0] + 2 * LANES, 4 * TILE);
    _tile_stored(3, outputs[0] + 3 * LANES, 4 * TILE);
}

// Compute the sums of two units: two by two tiles, first for one half of the outputs, then for the other.
template <class Sums, class Number>
inline void multiply_two_units(const uint32_t* inputs, const Words* weights, int64_t words, Number (*outputs)[TILE]) {
    WRITE_ALL_TO_MEMORY
    for (int half = 0; half < VECTORS; half += 2) {
        const uint32_t *one = inputs, *other = inputs + UNIT * words;
        const Words* some = weights + half * LANES;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t word = 0; word < words; word += LANES) {
            _tile_loadd(4, one, 4 * LANES);
            _tile_loadd(6, some, 4 * LANES);
            ADD_PRODUCTS(0, 4, 6)
            _tile_loadd(7, some + LANES, 4 * LANES);
            ADD_PRODUCTS(1, 4, 7)
            _tile_loadd(5, other, 4 * LANES);
            ADD_PRODUCTS(2, 5, 6)
            ADD_PRODUCTS(3, 5, 7)
            one += UNIT_WORDS, other += UNIT_WORDS, some += LANES * VECTORS;
        }
        _tile_stored(0, outputs[0] + half * LANES, 4 * TILE);
        _tile_stored(1, outputs[0] + (half + 1) * LANES, 4 * TILE);
        _tile_stored(2, outputs[UNIT] + half * LANES, 4 * TILE);
        _tile_stored(3, outputs[UNIT] + (half + 1) * LANES, 4 * TILE);
    }
}
#undef ADD_PRODUCTS
#undef WRITE_ALL_TO_MEMORY
#else
struct Amx {
    const bool is_there = false;
};
template <class Sums, class Number>
inline void multiply_unit(const uint32_t*, const Words*, int64_t, Number (*)[TILE]) {}
template <class Sums, class Number>
inline void multiply_two_units(const uint32_t*, const Words*, int64_t, Number (*)[TILE]) {}
#endif

// Compute the sums of some of `count` tokens, and return of how many; of what stands behind these, nothing is to be read.
template <class Sums, class Number>
inline int64_t multiply_some(const uint32_t* inputs, int64_t count, const Words* weights, int64_t words,
                             Number (*outputs)[TILE], const Amx& amx) {
    // AMX always computes a unit. Of bytes, a single token is faster without.
    if (amx.is_there && (count > 1 || std::is_same<Sums, Floats>::value)) {
        if (count > UNIT)
            multiply_two_units<Sums>(inputs, weights, words, outputs);
        else
            multiply_unit<Sums>(inputs, weights, words, outputs);
        return std::min<int64_t>(count, MANY);
    }
    if (count >= FEW) {
        multiply_few<FEW, Sums>(inputs, weights, words, outputs);
        return FEW;
    }
    multiply_few<1, Sums>(inputs, weights, words, outputs);
    return 1;
}

// ---- Products of slabs

constexpr int SLAB = 2 * UNIT, SQUARE = SLAB * SLAB;  // Rows; outputs of two slabs.

// Where the sums of a row begin in squares, one below the other; those of the other 16 outputs are a unit behind.
template <class Number>
inline Number* sums_of(Number* sums, int64_t row) {
    return sums + row / UNIT * 2 * UNIT_WORDS + row % UNIT * LANES;
}

// How far it is, in words, from a row to the next, and to the words behind.
struct Distances {
    int64_t row, vector;
};

// What is read ahead while a square is multiplied, some lines with each vector: all at once, they would keep its tiles waiting.
// Of what lies behind the end, nothing comes: no harm is done.
struct Ahead {
    const uint32_t* words;
    int64_t lines;

    void read_some() {
        for (int64_t line = 0; line < lines; line++, words += LANES) __builtin_prefetch(words, 0, 2);
    }
};

// Compute the products of two slabs' chunks, as four units of outputs: the right matrix' two of each unit of rows.
template <bool ADDS>
inline void multiply_square(const uint32_t* left, Distances distances, const uint32_t* right, int64_t words, float* sums,
                            Ahead next_left, Ahead next_right, const Amx& amx) {
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
    if (amx.is_there) {
        constexpr int STRIDE = 4 * LANES;
        asm volatile("" ::: "memory");  // Compilers do not see that tiles are loaded from memory.
        if (ADDS) {
            _tile_loadd(0, sums, STRIDE);
            _tile_loadd(1, sums + UNIT_WORDS, STRIDE);
            _tile_loadd(2, sums + 2 * UNIT_WORDS, STRIDE);
            _tile_loadd(3, sums + 3 * UNIT_WORDS, STRIDE);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        const uint32_t* left_below = left + UNIT * distances.row;
        const int64_t left_stride = 4 * distances.row;
        for (int64_t word = 0; word < words; word += LANES) {
            next_left.read_some(), next_right.read_some();
            _tile_stream_loadd(4, left, left_stride);
            _tile_loadd(6, right, STRIDE);
            _tile_loadd(7, right + UNIT_WORDS, STRIDE);
            _tile_stream_loadd(5, left_below, left_stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            left += distances.vector, left_below += distances.vector, right += SLAB * LANES;
        }
        _tile_stored(0, sums, STRIDE);
        _tile_stored(1, sums + UNIT_WORDS, STRIDE);
        _tile_stored(2, sums + 2 * UNIT_WORDS, STRIDE);
        _tile_stored(3, sums + 3 * UNIT_WORDS, STRIDE);
        return;
    }
#endif
    if (!ADDS) std::fill(sums, sums + SQUARE, 0);
    for (int64_t word = 0; word < words; word += LANES)
        for (int side = 0; side < 2; side++)
            for (int row = 0; row < SLAB; row++) {
                float* place = sums_of(sums, row) + side * UNIT_WORDS;
                const uint32_t* inputs = left + word / LANES * distances.vector + row * distances.row;
                const Words* weights = (const Words*)(right + word * SLAB + side * UNIT_WORDS);
                Floats sum = load(place);
                for (int i = 0; i < LANES; i++) sum = add_products(sum, inputs[i], weights[i]);
                store(sum, place);
            }
}

}  // namespace
