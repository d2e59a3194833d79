// Causal attention of whole texts in bfloat16, and its gradients.
//
// As in Dao 2023 (https://arxiv.org/abs/2307.08691), the attention weights are made for some queries and keys at a time and
// are never kept: the backward pass makes them again of the scores and their logarithm of a sum, which each query has.
//
// Scores lie as (keys, queries). So a vector holds those of one key and 16 queries, and what a query has one of, the
// greatest score or a sum, needs no looking across a vector. Rounded, two neighbours in a row of such a block make a word of
// inputs, to be multiplied with what the queries have, and two rows beside each other make words of weights, to be
// multiplied with what the keys have: no block is ever transposed.
//
// A head of a sequence is one thread's, and its sums have one order: how many threads there are changes nothing.

#pragma once

#include "tiles.h"

namespace {

constexpr int BLOCK = TILE, BLOCK_WORDS = BLOCK / 2;  // Queries or keys at once.
constexpr int BLOCK_UNITS = BLOCK * BLOCK_WORDS / UNIT_WORDS;  // Of a block by 64 numbers.
constexpr float LOG2_E = 1.44269504f;

// Tokens' numbers of one head and sequence; (sequences, heads, tokens, size), of which the last lie together.
struct Part {
    Bfloat16* start;
    int64_t sequence_stride, head_stride, token_stride;
};

// The size of a head is a multiple of 32.
struct Attention {
    Part query, key, value, attended;
    Part of_attended, of_query, of_key, of_value;  // Gradients. Not for the forward pass.
    float* logarithms;  // (sequences, heads, tokens): to the base 2, of the sum of the powers of e of a query's scores.
    int64_t sequences, heads, tokens, size;
    float scale;
};

typedef float Row[TILE];

struct Tokens {
    Bfloat16* start;
    int64_t stride, count;

    Tokens(const Attention& attention, const Part& part, int64_t pair)
        : start(part.start + pair / attention.heads * part.sequence_stride + pair % attention.heads * part.head_stride),
          stride(part.token_stride),
          count(attention.tokens) {}

    Bfloat16* operator[](int64_t token) const { return start + token * stride; }
};

// ---- Numbers

// 2^x, as Cephes' exp2f; 0 below the smallest normal number. x: less than 127.
inline Floats power_of_2(Floats x) {
#ifdef __AVX512F__
    const Floats n = whole(x), r = x - n;
#else
    constexpr float TO_INTEGER = 12582912;  // 1.5 * 2^23: to this, floats are whole numbers.
    const Floats shifted = x + TO_INTEGER, r = x - (shifted - TO_INTEGER);
#endif
    Floats p = 1.535336188e-4f * r + 1.339887440e-3f;
    p = p * r + 9.618437357e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472028e-1f;
    p = p * r + 1;
#ifdef __AVX512F__
    return scaled(p, n, _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126), _CMP_NLT_UQ));
#else
    return x < -126 ? Floats{} : (Floats)((Ints)p + ((Ints)shifted << 23));
#endif
}

// ---- Units of 16 by 16 words

// Take the words of 16 tokens from `first` on, which hold 32 numbers from `number` on. Zeros behind the last token.
void take_tokens(Unit& unit, const Tokens& tokens, int64_t first, int64_t number) {
    for (int64_t n = 0; n < UNIT; n++)
        if (first + n < tokens.count)
            memcpy(&unit.lines[n], tokens[first + n] + number, sizeof unit.lines[n]);
        else
            unit.lines[n] = Words{};
}

// Take the words of 16 pairs of tokens, which hold 16 numbers.
void take_pairs(Unit& unit, const Tokens& tokens, int64_t first, int64_t number) {
    const auto word = [&](int64_t n) { return n < tokens.count ? (Words)load(tokens[n] + number) : Words{}; };
    for (int64_t n = 0; n < UNIT; n++) unit.lines[n] = word(first + 2 * n) >> 16 | word(first + 2 * n + 1);
}

// ---- A block of tokens from `first` on, as inputs or weights

// Inputs: a row for each token.
void rows_of_tokens(const Tokens& tokens, int64_t first, int64_t size, Unit* units) {
    for (int64_t n = 0; n < BLOCK; n += UNIT)
        for (int64_t i = 0; i < size; i += 2 * LANES) take_tokens(*units++, tokens, first + n, i);
}

// Inputs: a row for each of a token's numbers.
void rows_of_numbers(const Tokens& tokens, int64_t first, int64_t size, Unit* units) {
    for (int64_t i = 0; i < size; i += UNIT)
        for (int64_t n = 0; n < BLOCK; n += 2 * LANES, units++) take_pairs(*units, tokens, first + n, i), units->transpose();
}

// Weights: an output for each token.
void outputs_of_tokens(const Tokens& tokens, int64_t first, int64_t size, Unit* units) {
    for (int64_t i = 0; i < size; i += 2 * LANES)
        for (int64_t n = 0; n < BLOCK; n += UNIT, units++) take_tokens(*units, tokens, first + n, i), units->transpose();
}

// Weights: an output for each of a token's numbers, in tiles. What is behind the last number stays as it is.
void outputs_of_numbers(const Tokens& tokens, int64_t first, int64_t size, Unit* units) {
    for (int64_t i = 0; i < size; i += UNIT)
        for (int64_t n = 0; n < BLOCK; n += 2 * UNIT)
            take_pairs(units[i / TILE * BLOCK_UNITS + (weight_place(n / 2, i % TILE)) / UNIT_WORDS], tokens, first + n, i);
}

// Products of `count` rows with a tile's weights.
template <bool ADDS>
void multiply_rows(const Unit* inputs, int64_t count, const Unit* weights, int64_t words, Row* sums, const Amx& amx) {
    const uint32_t* rows = (const uint32_t*)inputs;
    for (int64_t n = 0; n < count;)
        n += multiply_some<Floats, ADDS>(rows + place_of(n, words), count - n, (const Words*)weights, words, sums + n, amx);
}

void multiply_rows(bool adds, const Unit* inputs, int64_t count, const Unit* weights, int64_t words, Row* sums, const Amx& amx) {
    if (adds)
        multiply_rows<true>(inputs, count, weights, words, sums, amx);
    else
        multiply_rows<false>(inputs, count, weights, words, sums, amx);
}

// Of a block whose keys are its queries, leave out the later keys.
void leave_out_later(Row* scores) {
    for (int key = 0; key < BLOCK; key++) std::fill(scores[key], scores[key] + key, -INFINITY);
}

// Write (size, queries) numbers, times what each query has, as tokens.
void write_transposed(const Row* numbers, const float* factors, int64_t size, const Tokens& tokens, int64_t first) {
    for (int64_t n = 0; n < BLOCK; n += LANES)
        for (int64_t i = 0; i < size; i += 2 * UNIT) {
            Unit unit;
            const Floats factor = load(factors + n);
            for (int word = 0; word < UNIT; word++) {
                const Row* two = numbers + i + 2 * word;
                unit.lines[word] = pair(load(two[0] + n) * factor, load(two[1] + n) * factor);
            }
            unit.transpose();
            for (int64_t line = 0; line < std::min<int64_t>(UNIT, tokens.count - first - n); line++)
                write_line(unit.lines[line], tokens[first + n + line] + i);
        }
}

// Write (tokens, size) numbers, in tiles, times a factor.
void write(const Row* numbers, float factor, int64_t size, const Tokens& tokens, int64_t first) {
    for (int64_t n = 0; n < std::min<int64_t>(BLOCK, tokens.count - first); n++)
        for (int64_t i = 0; i < size; i += 2 * LANES) {
            const float* some = numbers[i / TILE * BLOCK + n] + i % TILE;
            Words line;
            round_neighbours(load(some) * factor, load(some + LANES) * factor, (uint32_t*)&line);
            write_line(line, tokens[first + n] + i);
        }
}

// ---- A head of a sequence

// What one thread has for one head after the other.
struct Forward {
    const Attention& attention;
    const int64_t tokens = attention.tokens, size = attention.size, words = size / 2, units = BLOCK * words / UNIT_WORDS;
    const int64_t blocks = (tokens + BLOCK - 1) / BLOCK;
    const Amx amx;
    std::vector<Unit> keys, values, queries, weights;
    std::vector<Floats> sums;  // (size, queries)
    alignas(64) Row scores[BLOCK];

    explicit Forward(const Attention& attention)
        : attention(attention),
          keys(blocks * units),
          values(blocks * units),
          queries(units),
          weights(BLOCK_UNITS),
          sums(size * VECTORS) {}

    void attend(int64_t pair) {
        const Tokens query(attention, attention.query, pair), key(attention, attention.key, pair);
        const Tokens value(attention, attention.value, pair), attended(attention, attention.attended, pair);
        float* logarithms = attention.logarithms + pair * tokens;
        Row* mixed = (Row*)sums.data();
        const float scale = attention.scale * LOG2_E;
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t first = i * BLOCK;
            rows_of_tokens(key, first, size, &keys[i * units]);
            rows_of_numbers(value, first, size, &values[i * units]);
            outputs_of_tokens(query, first, size, queries.data());
            alignas(64) float greatest[BLOCK], totals[BLOCK] = {};
            std::fill(greatest, greatest + BLOCK, -INFINITY);
            for (int64_t j = 0; j <= i; j++) {
                multiply_rows<false>(&keys[j * units], BLOCK, queries.data(), words, scores, amx);
                if (j == i) leave_out_later(scores);
                for (int n = 0; n < BLOCK; n += LANES) weigh(n, scale, greatest + n, totals + n, j > 0 ? mixed : nullptr);
                multiply_rows(j > 0, &values[j * units], size, weights.data(), BLOCK_WORDS, mixed, amx);
            }
            for (int64_t n = 0; n < std::min<int64_t>(BLOCK, tokens - first); n++)
                logarithms[first + n] = greatest[n] * scale + std::log2(totals[n]);
            for (float& total : totals) total = 1 / total;
            write_transposed(mixed, totals, size, attended, first);
        }
    }

    // Make weights of the scores of 16 queries from `n` on, and let what was mixed with others be in proportion to them.
    void weigh(int n, float scale, float* greatest, float* totals, Row* mixed) {
        const Floats before = load(greatest);
        Floats most = before;
        for (int key = 0; key < BLOCK; key++) most = larger(most, load(scores[key] + n));
        const Floats most_scaled = most * scale, change = power_of_2(before * scale - most_scaled);
        Floats total = load(totals) * change;
        for (int key = 0; key < BLOCK; key += 2) {
            const Floats one = power_of_2(load(scores[key] + n) * scale - most_scaled);
            const Floats other = power_of_2(load(scores[key + 1] + n) * scale - most_scaled);
            total += one + other;
            store_words(pair(one, other), (uint32_t*)weights.data() + weight_place(key / 2, n));
        }
        store(most, greatest), store(total, totals);
        if (mixed)
            for (int64_t i = 0; i < size; i++) store(load(mixed[i] + n) * change, mixed[i] + n);
    }
};

struct Backward {
    const Attention& attention;
    const int64_t tokens = attention.tokens, size = attention.size, words = size / 2, units = BLOCK * words / UNIT_WORDS;
    const int64_t blocks = (tokens + BLOCK - 1) / BLOCK, parts = (size + TILE - 1) / TILE, part_units = parts * BLOCK_UNITS;
    const Amx amx;
    // Of all queries: what they and the gradients are, as weights with an output a token, and with one a number.
    std::vector<Unit> queries, gradients, query_numbers, gradient_numbers;
    std::vector<Unit> keys, key_numbers, values;
    std::vector<float> logarithms, dots;
    std::vector<Floats> query_sums, key_sums, value_sums;  // (blocks, size, queries); (parts, keys, numbers)
    alignas(64) Row scores[BLOCK], of_weights[BLOCK];
    // As inputs, and of the scores' gradients as weights too.
    Unit weight_rows[BLOCK_UNITS], score_rows[BLOCK_UNITS], score_outputs[BLOCK_UNITS];

    explicit Backward(const Attention& attention)
        : attention(attention),
          queries(blocks * units),
          gradients(blocks * units),
          query_numbers(blocks * part_units),
          gradient_numbers(blocks * part_units),
          keys(units),
          key_numbers(units),
          values(units),
          logarithms(blocks * BLOCK),
          dots(blocks * BLOCK),
          query_sums(blocks * size * VECTORS),
          key_sums(parts * BLOCK * VECTORS),
          value_sums(parts * BLOCK * VECTORS) {}

    void attend(int64_t pair) {
        const Tokens query(attention, attention.query, pair), key(attention, attention.key, pair);
        const Tokens value(attention, attention.value, pair), attended(attention, attention.attended, pair);
        const Tokens gradient(attention, attention.of_attended, pair);
        std::copy_n(attention.logarithms + pair * tokens, tokens, logarithms.begin());
        for (int64_t n = 0; n < tokens; n++) {
            // The sum of each weight times its gradient.
            Floats products = {};
            for (int64_t i = 0; i < size; i += LANES) products += load(gradient[n] + i) * load(attended[n] + i);
            dots[n] = total(products);
        }
        for (int64_t i = 0; i < blocks; i++) {
            outputs_of_tokens(query, i * BLOCK, size, &queries[i * units]);
            outputs_of_tokens(gradient, i * BLOCK, size, &gradients[i * units]);
            outputs_of_numbers(query, i * BLOCK, size, &query_numbers[i * part_units]);
            outputs_of_numbers(gradient, i * BLOCK, size, &gradient_numbers[i * part_units]);
        }
        const Tokens of_key(attention, attention.of_key, pair), of_value(attention, attention.of_value, pair);
        for (int64_t j = 0; j < blocks; j++) {
            rows_of_tokens(key, j * BLOCK, size, keys.data());
            rows_of_tokens(value, j * BLOCK, size, values.data());
            rows_of_numbers(key, j * BLOCK, size, key_numbers.data());
            for (int64_t i = j; i < blocks; i++) {
                multiply_rows<false>(keys.data(), BLOCK, &queries[i * units], words, scores, amx);
                if (i == j) leave_out_later(scores);
                multiply_rows<false>(values.data(), BLOCK, &gradients[i * units], words, of_weights, amx);
                differentiate(i);
                for (int64_t part = 0; part < parts; part++) {
                    const int64_t place = i * part_units + part * BLOCK_UNITS;
                    multiply_rows(i > j, weight_rows, BLOCK, &gradient_numbers[place], BLOCK_WORDS,
                                  (Row*)value_sums.data() + part * BLOCK, amx);
                    multiply_rows(i > j, score_rows, BLOCK, &query_numbers[place], BLOCK_WORDS,
                                  (Row*)key_sums.data() + part * BLOCK, amx);
                }
                multiply_rows(j > 0, key_numbers.data(), size, score_outputs, BLOCK_WORDS,
                              (Row*)query_sums.data() + i * size, amx);
            }
            write((Row*)key_sums.data(), attention.scale, size, of_key, j * BLOCK);
            write((Row*)value_sums.data(), 1, size, of_value, j * BLOCK);
        }
        const Tokens of_query(attention, attention.of_query, pair);
        float factors[BLOCK];
        std::fill(factors, factors + BLOCK, attention.scale);
        for (int64_t i = 0; i < blocks; i++)
            write_transposed((Row*)query_sums.data() + i * size, factors, size, of_query, i * BLOCK);
    }

    // Make the weights of a block, and the gradients of its scores.
    void differentiate(int64_t block) {
        const float scale = attention.scale * LOG2_E;
        for (int n = 0; n < BLOCK; n += 2 * LANES) {
            const float *of_sums = &logarithms[block * BLOCK + n], *of_dots = &dots[block * BLOCK + n];
            const Floats sums[2] = {load(of_sums), load(of_sums + LANES)}, dot[2] = {load(of_dots), load(of_dots + LANES)};
            for (int key = 0; key < BLOCK; key += 2) {
                Floats of_scores[2][2];
                for (int one = 0; one < 2; one++) {
                    Floats made[2];
                    for (int half = 0; half < 2; half++) {
                        const int query = n + half * LANES;
                        made[half] = power_of_2(load(scores[key + one] + query) * scale - sums[half]);
                        of_scores[one][half] = made[half] * (load(of_weights[key + one] + query) - dot[half]);
                    }
                    const int64_t place = place_of(key + one, BLOCK_WORDS) + n / 2 * UNIT;
                    round_neighbours(made[0], made[1], (uint32_t*)weight_rows + place);
                    round_neighbours(of_scores[one][0], of_scores[one][1], (uint32_t*)score_rows + place);
                }
                for (int half = 0; half < 2; half++)
                    store_words(pair(of_scores[0][half], of_scores[1][half]),
                                (uint32_t*)score_outputs + weight_place(key / 2, n + half * LANES));
            }
        }
    }
};

// All heads of all sequences, divided among the threads that call it. Returns whether memory was enough for this one.
template <class Pass>
bool attend(const Attention& attention) {
    std::unique_ptr<Pass> pass;
    const bool has_pass = fits([&] { pass.reset(new Pass(attention)); });
#pragma omp for schedule(dynamic)
    for (int64_t pair = 0; pair < attention.sequences * attention.heads; pair++)
        if (has_pass) pass->attend(pair), finish_lines();
    return has_pass;
}

}  // namespace
