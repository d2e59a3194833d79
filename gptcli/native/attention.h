// Causal attention of whole texts in bfloat16, and its gradients.
//
// As in Dao 2023 (https://arxiv.org/abs/2307.08691), the attention weights are made for some queries and keys at a time and
// are never kept: the backward pass makes them again of the scores and their logarithm of a sum, which each query has.
//
// Scores lie as (keys, queries). So a vector holds those of one key and 16 queries, and what a query has one of, the
// greatest score or a sum, needs no looking across a vector. Rounded, two neighbours in a row of them make a word of a left
// slab, to be multiplied with what the queries have, and two rows beside each other make words of a right one, to be
// multiplied with what the keys have: no scores are ever transposed.
//
// A head of a sequence is one thread's, and its sums have one order: how many threads there are changes nothing.

#pragma once

#include "tiles.h"

namespace {

// At once. Scores of so many, and all they are made of and into, stay in the first cache.
constexpr int QUERIES = SLAB, KEYS = 2 * SLAB;
constexpr int GROUP = 8 * SLAB;  // Queries that are added up for a key without its sums leaving their tiles.
constexpr int KEY_SLABS = KEYS / SLAB, GROUP_SLABS = GROUP / SLAB;
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

struct Tokens {
    Bfloat16* start;
    int64_t stride, count;

    Tokens(const Attention& attention, const Part& part, int64_t pair)
        : start(part.start + pair / attention.heads * part.sequence_stride + pair % attention.heads * part.head_stride),
          stride(part.token_stride),
          count(attention.tokens) {}

    Bfloat16* operator[](int64_t token) const { return start + token * stride; }

    // To the second cache: the first one is full. Behind the last token, no harm is done.
    void read_ahead(int64_t token, int64_t size) const {
        for (int64_t i = 0; i < size; i += 2 * LANES) __builtin_prefetch((*this)[token] + i, 0, 2);
    }
};

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

// ---- Slabs: of tokens from `first` on, or of their numbers. Units of 32 rows by 32 numbers, or by 16 pairs, lie together.

// Left ones: a row for each token.
void rows_of_tokens(const Tokens& tokens, int64_t first, int64_t end, int64_t size, Unit* units) {
    for (; first < end; first += SLAB)
        for (int64_t i = 0; i < size; i += 2 * LANES)
            for (int64_t n = first; n < first + SLAB; n += UNIT) take_tokens(*units++, tokens, n, i);
}

// Left ones: a row for each number.
void rows_of_numbers(const Tokens& tokens, int64_t first, int64_t end, int64_t size, Unit* units) {
    for (int64_t slab = 0; slab < size; slab += SLAB)
        for (int64_t n = first; n < end; n += 2 * LANES)
            for (int64_t i = slab; i < slab + SLAB; i += UNIT, units++) take_pairs(*units, tokens, n, i), units->transpose();
}

// Right ones: an output for each token.
void outputs_of_tokens(const Tokens& tokens, int64_t first, int64_t end, int64_t size, Unit* units) {
    for (; first < end; first += SLAB)
        for (int64_t i = 0; i < size; i += 2 * LANES)
            for (int64_t n = first; n < first + SLAB; n += UNIT, units++) take_tokens(*units, tokens, n, i), units->transpose();
}

// Right ones: an output for each number.
void outputs_of_numbers(const Tokens& tokens, int64_t first, int64_t end, int64_t size, Unit* units) {
    for (int64_t slab = 0; slab < size; slab += SLAB)
        for (int64_t n = first; n < end; n += 2 * LANES)
            for (int64_t i = slab; i < slab + SLAB; i += UNIT) take_pairs(*units++, tokens, n, i);
}

// Where a slab's row begins; slabs are `distance` units apart.
inline uint32_t* row_of(Unit* units, int64_t distance, int64_t row) {
    return (uint32_t*)&units[row / SLAB * distance + row % SLAB / UNIT].lines[row % UNIT];
}

// Products of left slabs with a right one, over 32 numbers in each of `steps`. adds: to the sums that are there.
void multiply_slabs(bool adds, const Unit* left, int64_t distance, int64_t slabs, const Unit* right, int64_t steps, float* sums,
                    const Amx& amx) {
    for (int64_t slab = 0; slab < slabs; slab++, left += distance, sums += SQUARE) {
        const auto multiply = adds ? multiply_square<true> : multiply_square<false>;
        multiply((const uint32_t*)left, {LANES, SLAB * LANES}, (const uint32_t*)right, steps * LANES, sums, {}, {}, amx);
    }
}

// Of 32 keys that are the queries, leave out those behind each query.
void leave_out_later(float* scores) {
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int key = 0; key < SLAB; key++)
        for (int side = 0; side <= key / LANES; side++) {
            float* some = sums_of(scores, key) + side * UNIT_WORDS;
            store(lanes < key - side * LANES ? Floats{} - INFINITY : load(some), some);
        }
}

// Write sums (size, queries), times what each query has, as tokens.
void write_transposed(const float* sums, const float* factors, int64_t size, const Tokens& tokens, int64_t first) {
    for (int64_t n = 0; n < QUERIES; n += LANES)
        for (int64_t i = 0; i < size; i += 2 * UNIT) {
            Unit unit;
            const Floats factor = load(factors + n);
            for (int word = 0; word < UNIT; word++) {
                const float* two = sums_of(sums, i + 2 * word) + n / LANES * UNIT_WORDS;
                unit.lines[word] = pair(load(two) * factor, load(two + LANES) * factor);
            }
            unit.transpose();
            for (int64_t line = 0; line < std::min<int64_t>(UNIT, tokens.count - first - n); line++)
                write_line(unit.lines[line], tokens[first + n + line] + i);
        }
}

// Write sums (slabs of numbers, keys, 32), times a factor.
void write(const float* sums, float factor, int64_t size, const Tokens& tokens, int64_t first) {
    for (int64_t n = 0; n < std::min<int64_t>(KEYS, tokens.count - first); n++)
        for (int64_t i = 0; i < size; i += SLAB) {
            const float* some = sums_of(sums + i * KEYS, n);
            Words line;
            round_neighbours(load(some) * factor, load(some + UNIT_WORDS) * factor, (uint32_t*)&line);
            write_line(line, tokens[first + n] + i);
        }
}

// ---- A head of a sequence

// What one thread has for one head after the other.
struct Forward {
    const Attention& attention;
    const int64_t tokens = attention.tokens, size = attention.size, steps = size / (2 * LANES);
    const int64_t key_units = KEY_SLABS * 2 * steps, blocks = parts_of(tokens, KEYS);
    const Amx amx;
    std::vector<Unit> keys, values, queries;
    std::vector<Floats> sums;  // (size, queries)
    alignas(64) float scores[KEY_SLABS * SQUARE];
    Unit weights[KEY_SLABS * 2];

    explicit Forward(const Attention& attention)
        : attention(attention),
          keys(blocks * key_units),
          values(blocks * key_units),
          queries(2 * steps),
          sums(size * QUERIES / LANES) {}

    void attend(int64_t pair) {
        const Tokens query(attention, attention.query, pair), key(attention, attention.key, pair);
        const Tokens value(attention, attention.value, pair), attended(attention, attention.attended, pair);
        float *logarithms = attention.logarithms + pair * tokens, *mixed = (float*)sums.data();
        const float scale = attention.scale * LOG2_E;
        for (int64_t first = 0; first < tokens; first += QUERIES) {
            if (first % KEYS == 0) {
                rows_of_tokens(key, first, first + KEYS, size, &keys[first / KEYS * key_units]);
                rows_of_numbers(value, first, first + KEYS, size, &values[first / KEYS * key_units]);
            }
            outputs_of_tokens(query, first, first + QUERIES, size, queries.data());
            for (int64_t n = first + QUERIES; n < first + 2 * QUERIES; n++)
                query.read_ahead(n, size), key.read_ahead(n + QUERIES, size), value.read_ahead(n + QUERIES, size);
            alignas(64) float greatest[QUERIES], totals[QUERIES] = {};
            std::fill(greatest, greatest + QUERIES, -INFINITY);
            for (int64_t begin = 0; begin <= first; begin += KEYS) {
                const int64_t slabs = std::min<int64_t>(KEYS, first + QUERIES - begin) / SLAB, place = begin / KEYS * key_units;
                multiply_slabs(false, &keys[place], 2 * steps, slabs, queries.data(), steps, scores, amx);
                if (begin + slabs * SLAB > first) leave_out_later(scores + (slabs - 1) * SQUARE);
                for (int n = 0; n < QUERIES; n += LANES)
                    weigh(n, slabs * SLAB, scale, greatest + n, totals + n, begin ? mixed : nullptr);
                multiply_slabs(begin > 0, &values[place], 2 * KEY_SLABS, steps, weights, slabs, mixed, amx);
            }
            for (int64_t n = 0; n < std::min<int64_t>(QUERIES, tokens - first); n++)
                logarithms[first + n] = greatest[n] * scale + std::log2(totals[n]);
            for (float& total : totals) total = 1 / total;
            write_transposed(mixed, totals, size, attended, first);
        }
    }

    // Make weights of the scores of 16 queries from `n` on with some keys, and let what was mixed with others be in proportion.
    void weigh(int n, int64_t its_keys, float scale, float* greatest, float* totals, float* mixed) {
        const int64_t side = n / LANES;
        const float* its_scores = scores + side * UNIT_WORDS;
        const Floats before = load(greatest);
        Floats some[4] = {before, before, before, before};  // As each waits for what it was compared with before.
        for (int64_t key = 0; key < its_keys; key += UNIT)
            for (int i = 0; i < UNIT; i++) some[i % 4] = larger(some[i % 4], load(sums_of(its_scores, key) + i * LANES));
        const Floats most = larger(larger(some[0], some[1]), larger(some[2], some[3]));
        const Floats most_scaled = most * scale, change = power_of_2(before * scale - most_scaled);
        Floats total = load(totals) * change;
        for (int64_t key = 0; key < its_keys; key += UNIT) {
            Words* lines = &weights[key / SLAB * 2 + side].lines[key % SLAB / 2];
            for (const float *two = sums_of(its_scores, key), *end = two + UNIT_WORDS; two < end; two += 2 * LANES, lines++) {
                const Floats one = power_of_2(load(two) * scale - most_scaled);
                const Floats other = power_of_2(load(two + LANES) * scale - most_scaled);
                total += one + other;
                *lines = pair(one, other);
            }
        }
        store(most, greatest), store(total, totals);
        if (!mixed) return;
        for (int64_t i = 0; i < size; i += UNIT) {
            float* its_mixed = sums_of(mixed, i) + side * UNIT_WORDS;
            for (int n = 0; n < UNIT_WORDS; n += LANES) store(load(its_mixed + n) * change, its_mixed + n);
        }
    }
};

struct Backward {
    const Attention& attention;
    const int64_t tokens = attention.tokens, size = attention.size, steps = size / (2 * LANES);
    const int64_t slab_units = 2 * steps, key_units = KEY_SLABS * slab_units, end = parts_of(tokens, SLAB) * SLAB;
    const Amx amx;
    // Of all queries: what they and the gradients are, as right slabs with an output a token, and with one a number.
    std::vector<Unit> queries, gradients, query_numbers, gradient_numbers;
    std::vector<Unit> keys, key_numbers, values;
    std::vector<float> logarithms, dots;
    std::vector<Floats> query_sums, key_sums, value_sums;  // (slabs of queries, size, 32); (slabs of numbers, keys, 32)
    alignas(64) float scores[KEY_SLABS * SQUARE], of_weights[KEY_SLABS * SQUARE];
    // Left slabs, with a group's queries; and the gradients of scores as right ones, with some.
    Unit weight_rows[KEY_SLABS * 2 * GROUP_SLABS], score_rows[KEY_SLABS * 2 * GROUP_SLABS], score_outputs[KEY_SLABS * 2];

    explicit Backward(const Attention& attention)
        : attention(attention),
          queries(end / SLAB * slab_units),
          gradients(end / SLAB * slab_units),
          query_numbers(end / SLAB * slab_units),
          gradient_numbers(end / SLAB * slab_units),
          keys(key_units),
          key_numbers(key_units),
          values(key_units),
          logarithms(end),
          dots(end),
          query_sums(end * size / LANES),
          key_sums(KEYS * size / LANES),
          value_sums(KEYS * size / LANES) {}

    void attend(int64_t pair) {
        const Tokens query(attention, attention.query, pair), key(attention, attention.key, pair);
        const Tokens value(attention, attention.value, pair), attended(attention, attention.attended, pair);
        const Tokens gradient(attention, attention.of_attended, pair);
        std::copy_n(attention.logarithms + pair * tokens, tokens, logarithms.begin());
        for (int64_t n = 0; n < tokens; n++) {
            gradient.read_ahead(n + UNIT, size), attended.read_ahead(n + UNIT, size);
            for (const Tokens* all : {&query, &key, &value}) all->read_ahead(n, size);
            // The sum of each weight times its gradient.
            Floats products = {};
            for (int64_t i = 0; i < size; i += LANES) products += load(gradient[n] + i) * load(attended[n] + i);
            dots[n] = total(products);
        }
        outputs_of_tokens(query, 0, end, size, queries.data());
        outputs_of_tokens(gradient, 0, end, size, gradients.data());
        for (int64_t group = 0; group < end; group += GROUP) {
            outputs_of_numbers(query, group, group_end(group), size, &query_numbers[group / SLAB * slab_units]);
            outputs_of_numbers(gradient, group, group_end(group), size, &gradient_numbers[group / SLAB * slab_units]);
        }
        const Tokens of_key(attention, attention.of_key, pair), of_value(attention, attention.of_value, pair);
        for (int64_t first_key = 0; first_key < end; first_key += KEYS) {
            rows_of_tokens(key, first_key, first_key + KEYS, size, keys.data());
            rows_of_tokens(value, first_key, first_key + KEYS, size, values.data());
            rows_of_numbers(key, first_key, first_key + KEYS, size, key_numbers.data());
            for (int64_t group = first_key / GROUP * GROUP; group < end; group += GROUP) {
                const int64_t begin = std::max(group, first_key);
                for (int64_t first = begin; first < group_end(group); first += QUERIES) differentiate(first_key, first);
                const int64_t skipped = (begin - group) / SLAB, group_steps = (group_end(group) - group) / SLAB;
                const auto sum_up = [&](const Unit* rows, const std::vector<Unit>& numbers, std::vector<Floats>& sums) {
                    for (int64_t part = 0; part < steps; part++) {
                        const Unit* its_numbers = &numbers[group / SLAB * slab_units + (part * group_steps + skipped) * 2];
                        multiply_slabs(group > first_key, rows + 2 * skipped, 2 * GROUP_SLABS, KEY_SLABS, its_numbers,
                                       group_steps - skipped, (float*)sums.data() + part * KEY_SLABS * SQUARE, amx);
                    }
                };
                sum_up(weight_rows, gradient_numbers, value_sums);
                sum_up(score_rows, query_numbers, key_sums);
            }
            write((float*)key_sums.data(), attention.scale, size, of_key, first_key);
            write((float*)value_sums.data(), 1, size, of_value, first_key);
        }
        const Tokens of_query(attention, attention.of_query, pair);
        alignas(64) float factors[QUERIES];
        std::fill(factors, factors + QUERIES, attention.scale);
        for (int64_t first = 0; first < end; first += QUERIES)
            write_transposed((float*)query_sums.data() + first * size, factors, size, of_query, first);
    }

    int64_t group_end(int64_t first) const { return std::min(first + GROUP, end); }

    // Make the weights that 32 queries from `first` on give 64 keys, the gradients of their scores, and of these the queries'.
    void differentiate(int64_t first_key, int64_t first) {
        // Keys that are all behind these queries have none.
        const int64_t slabs = std::min<int64_t>(KEYS, first + QUERIES - first_key) / SLAB, place = first / SLAB * slab_units;
        multiply_slabs(false, keys.data(), slab_units, slabs, &queries[place], steps, scores, amx);
        if (first_key + slabs * SLAB > first) leave_out_later(scores + (slabs - 1) * SQUARE);
        multiply_slabs(false, values.data(), slab_units, slabs, &gradients[place], steps, of_weights, amx);
        const float scale = attention.scale * LOG2_E, *of_sums = &logarithms[first], *of_dots = &dots[first];
        const Floats sums[2] = {load(of_sums), load(of_sums + LANES)}, dot[2] = {load(of_dots), load(of_dots + LANES)};
        const int64_t step = first % GROUP / SLAB;
        for (int64_t key = 0; key < slabs * SLAB; key += 2) {
            Floats of_scores[2][2];
            uint32_t *its_weights = row_of(weight_rows + 2 * step, 2 * GROUP_SLABS, key);
            uint32_t *its_scores = row_of(score_rows + 2 * step, 2 * GROUP_SLABS, key);
            for (int one = 0; one < 2; one++) {
                const float *some = sums_of(scores, key + one), *of_some = sums_of(of_weights, key + one);
                Floats made[2];
                for (int side = 0; side < 2; side++) {
                    made[side] = power_of_2(load(some + side * UNIT_WORDS) * scale - sums[side]);
                    of_scores[one][side] = made[side] * (load(of_some + side * UNIT_WORDS) - dot[side]);
                }
                round_neighbours(made[0], made[1], its_weights + one * LANES);
                round_neighbours(of_scores[one][0], of_scores[one][1], its_scores + one * LANES);
            }
            for (int side = 0; side < 2; side++)
                score_outputs[key / SLAB * 2 + side].lines[key / 2 % UNIT] = pair(of_scores[0][side], of_scores[1][side]);
        }
        for (int64_t key = slabs * SLAB; key < KEYS; key++)
            for (Unit* units : {weight_rows, score_rows}) store_words(Words{}, row_of(units + 2 * step, 2 * GROUP_SLABS, key));
        multiply_slabs(first_key > 0, key_numbers.data(), 2 * KEY_SLABS, steps, score_outputs, slabs,
                       (float*)query_sums.data() + first * size, amx);
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
