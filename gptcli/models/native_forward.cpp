// GPT-2's layers for new tokens, and products with its head, as native_forward.py calls them.
//
// A new token is all reading of weights. Here one call reads them once, in the order in which they lie, and what happens
// between two products stays in the caches.
//
// All products go through one layout. 32 bits, a word, hold what is added to one sum at once: 2 numbers of bfloat16, or 4
// bytes. Both inputs and weights lie in units of 16 by 16 words: those of a token, or of an input, beside each other. Units
// of 16 outputs and the same inputs lie four together, a tile's; those of the next 16 inputs come behind, and then the next
// tile. So a vector of 16 sums needs no adding up across, and processors that multiply small matrices (AMX) find theirs.
// Attention to many tokens goes the same way: keys are a matrix with an output for each key, values one with an output for
// each of their numbers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
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

// Inputs are a multiple of 64. What is there for each output is there for all outputs of the tiles.
struct Matrix {
    const Words* tiles;
    const float* bias;    // Or null.
    const float* scales;  // Of bytes; null for bfloat16.
    const int32_t* sums;  // Of the bytes of each output.
    int64_t outputs, inputs;
};

struct Norm {
    const float *weight, *bias;
};

struct Layer {
    Norm ln_1;
    Matrix attention_input, attention_output;
    Norm ln_2;
    Matrix mlp_input, mlp_output;
    float scale;  // Of the attention's scores.
};

// Width and inner width are multiples of 64, that of a head of 32.
struct Model {
    const Layer* layers;
    Norm ln_f;
    int64_t layer_count, width, inner, heads, has_tanh;
    float epsilon;
};

// New tokens, and the keys and values of all: (layers, 2, rows, heads, capacity, size).
struct Tokens {
    int64_t count;
    const int64_t *rows, *positions;
    Bfloat16* keys_and_values;
    int64_t layer_stride, value_stride, row_stride, head_stride;
};

// Tokens of a row, one behind the other.
struct Run {
    int64_t first, count;
};

// ---- Numbers

inline void store(float value, Bfloat16* place) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    const bool is_number = value == value;
    place->bits = is_number ? (word + 0x7fff + ((word >> 16) & 1)) >> 16 : 0x7fc0;  // To the nearest; of two, to the even one.
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

inline Floats larger(Floats one, Floats other) { return one > other ? one : other; }

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

// e^x to about 23 bits, as Cephes' expf: 2^n e^r with |r| <= ln(2) / 2.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    const int32_t power = (int32_t(n) + 127) << 23;
    float scale;
    memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

// x (1 + tanh u) / 2 = x / (1 + e^-2u).
inline float tanh_gelu(float x) {
    const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1 + exponential(-2 * u));
}

// x (1 + erf(x / sqrt(2))) / 2; erf by Abramowitz and Stegun's 7.1.26, to 1.5e-7.
inline float exact_gelu(float x) {
    const float u = std::fabs(x) * 0.7071067812f, t = 1 / (1 + 0.3275911f * u);
    const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const float erf = 1 - p * exponential(-u * u);
    return x * (1 + (x < 0 ? -erf : erf)) / 2;
}

// ---- Inputs

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

struct Inputs {
    // Of products with at most `most` inputs.
    Inputs(int64_t count, int64_t most)
        : count(count),
          words(new uint32_t[(count + MANY - 1) / MANY * MANY * most / 2]()),
          scales(new float[count]),
          zeros(new int32_t[count]) {}

    const int64_t count;
    std::unique_ptr<uint32_t[]> words;
    // Of bytes: a number is scale (byte - zero).
    std::unique_ptr<float[]> scales;
    std::unique_ptr<int32_t[]> zeros;

    // Take (count, inputs) numbers, as the matrix wants them. Each thread does a part.
    const Inputs& round(const Matrix& matrix, const float* numbers) {
        const int64_t width = matrix.inputs;
#pragma omp for schedule(static)
        for (int64_t token = 0; token < count; token++) {
            const float* some = numbers + token * width;
            if (matrix.scales) {
                round_to_bytes(some, width, token);
                continue;
            }
            uint32_t* place = words.get() + place_of(token, width / 2);
            for (int64_t i = 0; i < width; i += 2 * LANES, place += UNIT_WORDS) round_some(some + i, place);
        }
        return *this;
    }

    // 256 levels between the least and the greatest number, 0 being one of them.
    void round_to_bytes(const float* numbers, int64_t width, int64_t token) {
        Floats most = {}, least = {}, flaws = {};
        for (int64_t i = 0; i < width; i += LANES) {
            const Floats some = load(numbers + i);
            most = larger(most, some), least = larger(least, -some);
            flaws += some * 0;  // Not a number where one is none or not finite, as all outputs then are to be.
        }
        const float low = -largest(least), scale = std::max((largest(most) - low) / 255, 1e-30f), inverse = 1 / scale;
        const float zero = std::nearbyint(-low * inverse);
        scales[token] = scale + total(flaws), zeros[token] = int32_t(zero);
        uint32_t* place = words.get() + place_of(token, width / 4);
        for (int64_t i = 0; i < width; i += 4 * LANES, place += UNIT_WORDS)
            for (int j = 0; j < 4 * LANES; j++) {
                const float level = std::nearbyint(numbers[i + j] * inverse) + zero;
                ((uint8_t*)place)[j] = uint8_t(int32_t(std::min(std::max(level, 0.0f), 255.0f)));
            }
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

// ---- What all threads do together, each a part

template <class Sums, class Number, class Finish>
void multiply_words(const Matrix& matrix, int64_t words, const Inputs& inputs, const Amx& amx, Finish finish) {
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < (matrix.outputs + TILE - 1) / TILE; tile++) {
        const Words* weights = matrix.tiles + tile * words * VECTORS;
        const int64_t first = tile * TILE, width = std::min<int64_t>(TILE, matrix.outputs - first);
        for (int64_t token = 0; token < inputs.count;) {
            alignas(64) Number sums[MANY][TILE];
            const int64_t some = multiply_some<Sums>(inputs.words.get() + place_of(token, words), inputs.count - token,
                                                     weights, words, sums, amx);
            for (int64_t n = 0; n < some; n++, token++)
#pragma omp simd
                for (int64_t i = 0; i < width; i++) {
                    float value = sums[n][i];
                    if (std::is_same<Sums, Ints>::value)
                        value = float(int32_t(sums[n][i]) - inputs.zeros[token] * matrix.sums[first + i]) *
                                inputs.scales[token] * matrix.scales[first + i];
                    finish(token, first + i, value + (matrix.bias ? matrix.bias[first + i] : 0));
                }
        }
    }
}

// Multiply all tokens with a matrix; finish(token, output, value) takes what comes out.
template <class Finish>
void multiply(const Matrix& matrix, const Inputs& inputs, const Amx& amx, Finish finish) {
    if (matrix.scales)
        multiply_words<Ints, int32_t>(matrix, matrix.inputs / 4, inputs, amx, finish);
    else
        multiply_words<Floats, float>(matrix, matrix.inputs / 2, inputs, amx, finish);
}

void normalize(const Norm& norm, float epsilon, int64_t count, int64_t width, const float* inputs, float* outputs) {
#pragma omp for schedule(static)
    for (int64_t token = 0; token < count; token++) {
        const float* x = inputs + token * width;
        float* y = outputs + token * width;
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += x[i];
        const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / std::sqrt(squares / width + epsilon);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) y[i] = (x[i] - mean) * scale * norm.weight[i] + norm.bias[i];
    }
}

// ---- Attention

// The keys and values of a row, (capacity, size) each.
struct Head {
    Bfloat16 *keys, *values;
    int64_t size;
    float scale;
};

// Let the token at `position` attend to those up to itself.
void attend_one(const Head& head, int64_t position, const float* query, float* mixed) {
    const int64_t size = head.size, seen = position + 1;
    std::unique_ptr<float[]> weights(new float[seen]);
    float greatest = -INFINITY, sum = 0;
    for (int64_t j = 0; j < seen; j++) {
        Floats products = {};
        for (int64_t i = 0; i < size; i += 2 * LANES) __builtin_prefetch(head.keys + (j + PREFETCHED) * size + i);
        for (int64_t i = 0; i < size; i += LANES) products += load(query + i) * load(head.keys + j * size + i);
        weights[j] = total(products) * head.scale;
        greatest = std::max(greatest, weights[j]);
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < seen; j++) sum += weights[j] = exponential(weights[j] - greatest);
    for (int64_t i = 0; i < size; i += 2 * LANES) {
        Floats means[2] = {};
        for (int64_t j = 0; j < seen; j++) {
            const Bfloat16* values = head.values + j * size + i;
            __builtin_prefetch(values + PREFETCHED * size);
            for (int half = 0; half < 2; half++) means[half] += load(values + half * LANES) * weights[j];
        }
        for (Floats& mean : means) mean /= sum;
        memcpy(mixed + i, means, sizeof means);
    }
}

// The same for `count` tokens from `position` on, by products of tiles. stride, mixed_stride: from a token to the next.
void attend_many(const Head& head, int64_t position, int64_t count, const float* queries, int64_t stride, float* mixed,
                 int64_t mixed_stride, const Amx& amx) {
    const int64_t size = head.size, words = size / 2, parts = (size + TILE - 1) / TILE;
    const int64_t seen = position + count, tiles = (seen + TILE - 1) / TILE, padded = tiles * TILE, pairs = padded / 2;
    std::vector<uint32_t> keys(padded * words), values(parts * TILE * pairs);
    std::vector<uint32_t> rounded(MANY * words), weights(MANY * pairs);
    std::vector<float> scores(MANY * padded);
    for (int64_t j = 0; j < seen; j++) {
        uint32_t* place = &keys[j / TILE * TILE * words];
        for (int64_t word = 0; word < words; word++)
            memcpy(place + weight_place(word, j % TILE), head.keys + j * size + 2 * word, 4);
    }
    for (int64_t j = 0; j < seen; j++)
        for (int64_t part = 0; part < parts; part++) {
            uint32_t* place = &values[part * pairs * TILE];
            const Bfloat16* row = head.values + j * size + part * TILE;
            for (int64_t i = 0; i < std::min<int64_t>(TILE, size - part * TILE); i++)
                place[weight_place(j / 2, i)] |= uint32_t(row[i].bits) << (j % 2 * 16);
        }
    alignas(64) float sums[MANY][TILE];
    for (int64_t first = 0; first < count; first += MANY) {
        const int64_t some = std::min<int64_t>(MANY, count - first), end = position + first + some;
        const int64_t end_padded = (end + TILE - 1) / TILE * TILE;
        for (int64_t n = 0; n < some; n++)
            for (int64_t i = 0; i < size; i += 2 * LANES)
                round_some(queries + (first + n) * stride + i, &rounded[place_of(n, words) + i / 2 * UNIT]);
        for (int64_t j = 0; j < end_padded; j += TILE) {
            for (int64_t n = 0; n < some;)
                n += multiply_some<Floats>(&rounded[place_of(n, words)], some - n, (const Words*)&keys[j * words], words,
                                           sums + n, amx);
            for (int64_t n = 0; n < some; n++) memcpy(&scores[n * padded + j], sums[n], sizeof sums[n]);
        }
        float totals[MANY];
        for (int64_t n = 0; n < some; n++) {
            float *row = &scores[n * padded], sum = 0;
            const int64_t its_end = position + first + n + 1;
            std::fill(row + its_end, row + end_padded, -INFINITY);
            Floats most = load(row);
            for (int64_t j = LANES; j < end_padded; j += LANES) most = larger(most, load(row + j));
            const float greatest = largest(most);
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < its_end; j++) sum += row[j] = exponential((row[j] - greatest) * head.scale);
            std::fill(row + its_end, row + end_padded, 0.0f);
            for (int64_t j = 0; j < end_padded; j += 2 * LANES)
                round_some(row + j, &weights[place_of(n, pairs) + j / 2 * UNIT]);
            totals[n] = sum;
        }
        for (int64_t part = 0; part < parts; part++) {
            // Units are `pairs` words apart, of which the first ones are multiplied.
            for (int64_t n = 0; n < some;) {
                const int64_t at_once = n % UNIT == 0 ? std::min<int64_t>(UNIT, some - n) : some - n;
                n += multiply_some<Floats>(&weights[place_of(n, pairs)], at_once,
                                           (const Words*)&values[part * TILE * pairs], end_padded / 2, sums + n, amx);
            }
            for (int64_t n = 0; n < some; n++)
                for (int64_t i = 0; i < std::min<int64_t>(TILE, size - part * TILE); i++)
                    mixed[(first + n) * mixed_stride + part * TILE + i] = sums[n][i] / totals[n];
        }
    }
}

// Attention of all tokens. A head of a run is one thread's, from its new keys to what it yields.
void attend(const Model& model, int64_t layer, const Tokens& tokens, const std::vector<Run>& runs, const float* new_parts,
            float* mixed, const Amx& amx) {
    const int64_t width = model.width, size = width / model.heads;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < int64_t(runs.size()) * model.heads; item++) {
        const Run& run = runs[item / model.heads];
        const int64_t number = item % model.heads, position = tokens.positions[run.first];
        const float* parts = new_parts + run.first * 3 * width + number * size;
        Bfloat16* keys = tokens.keys_and_values + layer * tokens.layer_stride + tokens.rows[run.first] * tokens.row_stride +
                         number * tokens.head_stride;
        const Head head = {keys, keys + tokens.value_stride, size, model.layers[layer].scale};
        for (int64_t n = 0; n < run.count; n++)
            for (int64_t i = 0; i < size; i++) {
                store(parts[n * 3 * width + width + i], head.keys + (position + n) * size + i);
                store(parts[n * 3 * width + 2 * width + i], head.values + (position + n) * size + i);
            }
        float* outputs = mixed + run.first * width + number * size;
        if (run.count >= UNIT)
            attend_many(head, position, run.count, parts, 3 * width, outputs, width, amx);
        else
            for (int64_t n = 0; n < run.count; n++)
                attend_one(head, position + n, parts + n * 3 * width, outputs + n * width);
    }
}

std::vector<Run> find_runs(const Tokens& tokens) {
    std::vector<Run> runs;
    for (int64_t n = 0; n < tokens.count; n++)
        if (n > 0 && tokens.rows[n] == tokens.rows[n - 1] && tokens.positions[n] == tokens.positions[n - 1] + 1)
            runs.back().count++;
        else
            runs.push_back({n, 1});
    return runs;
}

}  // namespace

extern "C" {

// hidden: (tokens, width), the embeddings; afterwards what is behind the last layer norm.
void gptcli_forward(const Model* model, const Tokens* tokens, float* hidden, int threads) {
    const int64_t count = tokens->count, width = model->width, inner = model->inner;
    std::unique_ptr<float[]> normed(new float[count * width]), parts(new float[count * 3 * width]);
    std::unique_ptr<float[]> mixed(new float[count * width]), activated(new float[count * inner]);
    Inputs inputs(count, std::max(width, inner));
    const std::vector<Run> runs = find_runs(*tokens);
#pragma omp parallel num_threads(threads)
    {
        const Amx amx;
        const auto add = [&](int64_t token, int64_t i, float value) { hidden[token * width + i] += value; };
        for (int64_t number = 0; number < model->layer_count; number++) {
            const Layer& layer = model->layers[number];
            normalize(layer.ln_1, model->epsilon, count, width, hidden, normed.get());
            multiply(layer.attention_input, inputs.round(layer.attention_input, normed.get()), amx,
                     [&](int64_t token, int64_t i, float value) { parts[token * 3 * width + i] = value; });
            attend(*model, number, *tokens, runs, parts.get(), mixed.get(), amx);
            multiply(layer.attention_output, inputs.round(layer.attention_output, mixed.get()), amx, add);
            normalize(layer.ln_2, model->epsilon, count, width, hidden, normed.get());
            inputs.round(layer.mlp_input, normed.get());
            if (model->has_tanh)
                multiply(layer.mlp_input, inputs, amx,
                         [&](int64_t token, int64_t i, float value) { activated[token * inner + i] = tanh_gelu(value); });
            else
                multiply(layer.mlp_input, inputs, amx,
                         [&](int64_t token, int64_t i, float value) { activated[token * inner + i] = exact_gelu(value); });
            multiply(layer.mlp_output, inputs.round(layer.mlp_output, activated.get()), amx, add);
        }
        normalize(model->ln_f, model->epsilon, count, width, hidden, normed.get());
    }
    std::copy(normed.get(), normed.get() + count * width, hidden);
}

// outputs: (count, outputs), of numbers (count, inputs).
void gptcli_multiply(const Matrix* matrix, const float* numbers, int64_t count, float* outputs, int threads) {
    Inputs inputs(count, matrix->inputs);
#pragma omp parallel num_threads(threads)
    multiply(*matrix, inputs.round(*matrix, numbers), Amx(),
             [&](int64_t token, int64_t i, float value) { outputs[token * matrix->outputs + i] = value; });
}

}  // extern "C"
