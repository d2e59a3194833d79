// GPT-2's layers for new tokens, and products with its head, as models/native_forward.py calls them.
//
// A new token is all reading of weights. Here one call reads them once, in the order in which they lie, and what happens
// between two products stays in the caches.
//
// All products go through the layout of tiles.h. Attention to many tokens does too: keys are a matrix with an output for
// each key, values one with an output for each of their numbers.

#include "tiles.h"

namespace {

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

// ---- Activation functions

// x (1 + erf(x / sqrt(2))) / 2; erf by Abramowitz and Stegun's 7.1.26, to 1.5e-7.
inline float exact_gelu(float x) {
    const float u = std::fabs(x) * 0.7071067812f, t = 1 / (1 + 0.3275911f * u);
    const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const float erf = 1 - p * exponential(-u * u);
    return x * (1 + (x < 0 ? -erf : erf)) / 2;
}

// ---- Inputs

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

// Attention of all tokens. A head of a run is one thread's, from its new keys to what it yields. Returns whether memory was
// enough for this thread.
bool attend(const Model& model, int64_t layer, const Tokens& tokens, const std::vector<Run>& runs, const float* new_parts,
            float* mixed, const Amx& amx) {
    const int64_t width = model.width, size = width / model.heads;
    bool fit = true;
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
        fit &= fits([&] {
            if (run.count >= UNIT)
                attend_many(head, position, run.count, parts, 3 * width, outputs, width, amx);
            else
                for (int64_t n = 0; n < run.count; n++)
                    attend_one(head, position + n, parts + n * 3 * width, outputs + n * width);
        });
    }
    return fit;
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

// hidden: (tokens, width), the embeddings; afterwards what is behind the last layer norm. Returns whether memory was enough for
// all threads.
bool forward(const Model* model, const Tokens* tokens, float* hidden, int threads) {
    const int64_t count = tokens->count, width = model->width, inner = model->inner;
    std::unique_ptr<float[]> normed(new float[count * width]), parts(new float[count * 3 * width]);
    std::unique_ptr<float[]> mixed(new float[count * width]), activated(new float[count * inner]);
    Inputs inputs(count, std::max(width, inner));
    const std::vector<Run> runs = find_runs(*tokens);
    bool fit = true;
#pragma omp parallel num_threads(threads) reduction(&& : fit)
    {
        const Amx amx;
        const auto add = [&](int64_t token, int64_t i, float value) { hidden[token * width + i] += value; };
        for (int64_t number = 0; number < model->layer_count; number++) {
            const Layer& layer = model->layers[number];
            normalize(layer.ln_1, model->epsilon, count, width, hidden, normed.get());
            multiply(layer.attention_input, inputs.round(layer.attention_input, normed.get()), amx,
                     [&](int64_t token, int64_t i, float value) { parts[token * 3 * width + i] = value; });
            fit &= attend(*model, number, *tokens, runs, parts.get(), mixed.get(), amx);
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
    return fit;
}

}  // namespace

extern "C" {

// Both return whether memory was enough.
int gptcli_forward(const Model* model, const Tokens* tokens, float* hidden, int threads) {
    bool fit = false;
    fits([&] { fit = forward(model, tokens, hidden, threads); });
    return fit;
}

// outputs: (count, outputs), of numbers (count, inputs).
int gptcli_multiply(const Matrix* matrix, const float* numbers, int64_t count, float* outputs, int threads) {
    std::unique_ptr<Inputs> inputs;
    if (!fits([&] { inputs.reset(new Inputs(count, matrix->inputs)); })) return false;
#pragma omp parallel num_threads(threads)
    multiply(*matrix, inputs->round(*matrix, numbers), Amx(),
             [&](int64_t token, int64_t i, float value) { outputs[token * matrix->outputs + i] = value; });
    return true;
}

}  // extern "C"
