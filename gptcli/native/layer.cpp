// GPT-2's layer in training and its gradients, as native/layer.py calls them.
//
// A call is a whole pass through a layer. Threads wait for each other between its stages, and for nobody else; of all that is
// made in between, only what the other pass needs is kept.
//
// Where gradients are sums over rows, these are made in parts of a fixed size: how many threads there are changes nothing.

#include <omp.h>

#include <initializer_list>

#include "attention.h"
#include "product.h"

namespace {

constexpr int64_t PART_ROWS = 64;

// Gradients are not for the forward pass.
struct Norm {
    const float *weight, *bias;
    float *of_weight, *of_bias;
};

struct Linear {
    const float *weight, *bias;  // (inputs, outputs), (outputs)
    float *of_weight, *of_bias;
    int64_t inputs, outputs;
};

// The sizes of a head and of the MLP (inner) are multiples of 32.
struct Layer {
    int64_t sequences, tokens, heads, width, inner;
    float epsilon, scale;  // Of layer norms; of the attention's scores.
    Norm ln_1;
    Linear attention_input, attention_output;
    Norm ln_2;
    Linear mlp_input, mlp_output;
    const float* inputs;
    // What the backward pass needs, too. (rows, ...) each, rows being those of all sequences.
    Bfloat16 *parts, *attended;  // Queries, keys and values beside each other; row_stride(3 * width) and (width) apart.
    float* logarithms;           // As in attention.h.
    float* middle;               // (width): between attention and MLP.
    Bfloat16* given;             // To the activation function: row_stride(inner) apart.
    float* outputs;
    // Gradients.
    const float* of_outputs;
    float* of_inputs;
    int64_t adds;  // Those of weights to what is there.

    int64_t rows() const { return sequences * tokens; }
};

// How far it is from a row to the next: at a distance of 2 KiB, rows are in each other's way in the first cache.
int64_t row_stride(int64_t columns) { return columns % 1024 ? columns : columns + SLAB; }

// Space that is divided; without any, how much it takes is found.
struct Workspace {
    char* const start;
    int64_t size = 0, most = 0;

    template <class Number>
    Number* take(int64_t count) {
        Number* place = (Number*)((uintptr_t)start + size);
        size += parts_of(count * sizeof(Number), sizeof(Words)) * sizeof(Words);
        most = std::max(most, size);
        return place;
    }
};

// ---- Layer norms

struct Moments {
    float mean, factor;  // The factor makes the variance 1.

    Moments(const float* row, int64_t width, float epsilon) {
        // Two sums, as each waits for what is added to it before.
        Floats sums[2] = {}, squares[2] = {};
        for (int64_t i = 0; i < width; i += 2 * LANES) sums[0] += load(row + i), sums[1] += load(row + i + LANES);
        mean = total(sums[0] + sums[1]) / width;
        for (int64_t i = 0; i < width; i += 2 * LANES) {
            const Floats one = load(row + i) - mean, other = load(row + i + LANES) - mean;
            squares[0] += one * one, squares[1] += other * other;
        }
        factor = 1 / std::sqrt(total(squares[0] + squares[1]) / width + epsilon);
    }
};

// Threads do not wait for each other at the end.
void normalize(const Layer& layer, const Norm& norm, const float* inputs, Bfloat16* outputs) {
    const int64_t width = layer.width;
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < layer.rows(); row++) {
        const float* some = inputs + row * width;
        const Moments moments(some, width, layer.epsilon);
        const auto normal = [&](int64_t i) {
            return (load(some + i) - moments.mean) * moments.factor * load(norm.weight + i) + load(norm.bias + i);
        };
        Bfloat16* its_outputs = outputs + row * row_stride(width);
        for (int64_t i = 0; i < width; i += 2 * LANES) {
            for (int64_t line = 0; line < 2; line++) __builtin_prefetch(some + width + i + line * LANES);
            round_neighbours(normal(i), normal(i + LANES), (uint32_t*)(its_outputs + i));
        }
    }
}

// Put the gradient of inputs, plus what has gone past the norm, into of_inputs and, rounded, into `rounded` if it is there.
// sums: space, (parts of rows, 2, width).
void normalize_backward(const Layer& layer, const Norm& norm, const float* inputs, const float* gradients, const float* past,
                        float* of_inputs, Bfloat16* rounded, float* sums) {
    const int64_t width = layer.width, rows = layer.rows(), parts = parts_of(rows, PART_ROWS);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float *of_weight = sums + part * 2 * width, *of_bias = of_weight + width;
        std::fill(of_weight, of_bias + width, 0);
        for (int64_t row = part * PART_ROWS; row < std::min(rows, (part + 1) * PART_ROWS); row++) {
            const float *some = inputs + row * width, *gradient = gradients + row * width, *its_past = past + row * width;
            const Moments moments(some, width, layer.epsilon);
            const auto standard = [&](int64_t i) { return (load(some + i) - moments.mean) * moments.factor; };
            Floats all = {}, products = {};
            for (int64_t i = 0; i < width; i += LANES) {
                for (const float* next : {some + width, gradient + width, its_past}) __builtin_prefetch(next + i);
                const Floats of_output = load(gradient + i), of_standard = of_output * load(norm.weight + i);
                store(load(of_weight + i) + of_output * standard(i), of_weight + i);
                store(load(of_bias + i) + of_output, of_bias + i);
                all += of_standard, products += of_standard * standard(i);
            }
            const float mean = total(all) / width, mean_product = total(products) / width;
            const auto of_input = [&](int64_t i) {
                const Floats of_standard = load(gradient + i) * load(norm.weight + i);
                return load(its_past + i) + (of_standard - mean - standard(i) * mean_product) * moments.factor;
            };
            for (int64_t i = 0; i < width; i += 2 * LANES) {
                const Floats one = of_input(i), other = of_input(i + LANES);
                store(one, of_inputs + row * width + i), store(other, of_inputs + row * width + i + LANES);
                if (rounded) round_neighbours(one, other, (uint32_t*)(rounded + row * row_stride(width) + i));
            }
        }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < width; i += LANES) {
        Floats of_weight = {}, of_bias = {};
        for (int64_t part = 0; part < parts; part++) {
            of_weight += load(sums + part * 2 * width + i);
            of_bias += load(sums + (part * 2 + 1) * width + i);
        }
        if (layer.adds) of_weight += load(norm.of_weight + i), of_bias += load(norm.of_bias + i);
        store(of_weight, norm.of_weight + i), store(of_bias, norm.of_bias + i);
    }
}

// ---- Products

// Numbers of all rows, which may be written where `start` is of something that is made.
struct Rows {
    void* start;
    Format format;
    int64_t stride;
};

Rows low(const Bfloat16* start, int64_t columns, Format format = BFLOAT16) { return {(void*)start, format, row_stride(columns)}; }

Rows exact(const float* start, int64_t columns) { return {(void*)start, FLOAT, columns}; }

Matrix by_rows(Rows rows, int64_t count) { return {rows.start, count, rows.stride, 1, rows.format, nullptr}; }

Matrix by_columns(Rows rows, int64_t columns) { return {rows.start, columns, 1, rows.stride, rows.format, nullptr}; }

Product product_of(Matrix left, Matrix right, int64_t length, Rows outputs) {
    Product product = {};
    product.left = left, product.right = right, product.length = length, product.scale = 1;
    product.outputs = outputs.start, product.format = outputs.format, product.output_stride = outputs.stride;
    return product;
}

Product outputs_of(const Linear& linear, int64_t rows, Rows inputs, Rows outputs) {
    const Matrix weights = by_columns(exact(linear.weight, linear.outputs), linear.outputs);
    Product product = product_of(by_rows(inputs, rows), weights, linear.inputs, outputs);
    product.bias = linear.bias;
    return product;
}

Product gradient_of_inputs(const Linear& linear, int64_t rows, Rows gradients, Rows of_inputs) {
    const Matrix weights = by_rows(exact(linear.weight, linear.outputs), linear.inputs);
    return product_of(by_rows(gradients, rows), weights, linear.outputs, of_inputs);
}

// And that of the bias.
Product gradient_of_weight(const Layer& layer, const Linear& linear, Rows inputs, Rows gradients) {
    const Rows of_weight = exact(linear.of_weight, linear.outputs);
    const Matrix left = by_columns(inputs, linear.inputs), right = by_columns(gradients, linear.outputs);
    Product product = product_of(left, right, layer.rows(), of_weight);
    product.right_totals = linear.of_bias, product.adds = layer.adds;
    return product;
}

// Products that are made at the same time.
struct Stage {
    Product products[2];
    int count;

    // Takes space to lay out their matrices, which others may take again.
    Stage(std::initializer_list<Product> made, Workspace& workspace) : count(0) {
        const int64_t before = workspace.size;
        for (Product product : made) {
            const auto give_space = [&](Matrix& matrix) {
                const int64_t words = parts_of(product.length, 2 * LANES) * LANES;
                matrix.slabs = workspace.take<uint32_t>(parts_of(matrix.rows, SLAB) * SLAB * words);
            };
            if (!is_laid_out(product.left, product.length)) give_space(product.left);
            give_space(product.right);
            products[count++] = product;
        }
        workspace.size = before;
    }

    // Threads wait for each other before it begins, between laying out and multiplying, and at the end.
    void multiply(float* sums) const {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const Amx amx;
#pragma omp barrier
        for (int i = 0; i < count; i++) lay_out(products[i], thread, threads);
#pragma omp barrier
        for (int i = 0; i < count; i++) {
            const Division division(products[i], threads);
#pragma omp for schedule(dynamic) nowait
            for (int64_t block = 0; block < division.blocks(); block++) multiply_block(products[i], division, block, sums, amx);
        }
#pragma omp barrier
    }
};

// ---- Attention

// of_parts: gradients of queries, keys and values.
Attention attention_of(const Layer& layer, Bfloat16* of_attended, Bfloat16* of_parts) {
    const int64_t width = layer.width, size = width / layer.heads;
    const auto part_of = [&](Bfloat16* start, int64_t stride) { return Part{start, layer.tokens * stride, size, stride}; };
    const auto third_of = [&](Bfloat16* start, int third) { return part_of(start + third * width, row_stride(3 * width)); };
    Attention attention = {};
    attention.query = third_of(layer.parts, 0), attention.key = third_of(layer.parts, 1), attention.value = third_of(layer.parts, 2);
    attention.of_query = third_of(of_parts, 0), attention.of_key = third_of(of_parts, 1), attention.of_value = third_of(of_parts, 2);
    attention.attended = part_of(layer.attended, row_stride(width));
    attention.of_attended = part_of(of_attended, row_stride(width));
    attention.logarithms = layer.logarithms, attention.scale = layer.scale;
    attention.sequences = layer.sequences, attention.heads = layer.heads;
    attention.tokens = layer.tokens, attention.size = size;
    return attention;
}

// ---- Passes. Each returns the bytes of space that it takes, or 0 where memory besides was not enough; without space, it does
// nothing else.

int64_t forward(const Layer& layer, char* space, int threads) {
    const int64_t rows = layer.rows(), width = layer.width, inner = layer.inner;
    Workspace workspace = {space};
    Bfloat16* normal = workspace.take<Bfloat16>(rows * row_stride(width));
    Bfloat16* activated = workspace.take<Bfloat16>(rows * row_stride(inner));
    const Product of_parts = outputs_of(layer.attention_input, rows, low(normal, width), low(layer.parts, 3 * width));
    Product middle = outputs_of(layer.attention_output, rows, low(layer.attended, width), exact(layer.middle, width));
    middle.residual = layer.inputs;
    Product given = outputs_of(layer.mlp_input, rows, low(normal, width), low(layer.given, inner));
    given.activated = activated;
    Product outputs = outputs_of(layer.mlp_output, rows, low(activated, inner), exact(layer.outputs, width));
    outputs.residual = layer.middle;
    const Stage stages[] = {{{of_parts}, workspace}, {{middle}, workspace}, {{given}, workspace}, {{outputs}, workspace}};
    if (!space) return workspace.most;
    const Attention attention = attention_of(layer, nullptr, nullptr);
    const Space<float> all_sums(threads * BLOCK_ROWS * BLOCK_COLUMNS);
    bool fit = true;
#pragma omp parallel num_threads(threads) reduction(&& : fit)
    {
        float* sums = all_sums.start + omp_get_thread_num() * BLOCK_ROWS * BLOCK_COLUMNS;
        normalize(layer, layer.ln_1, layer.inputs, normal);
        stages[0].multiply(sums);
        fit = attend<Forward>(attention);
        stages[1].multiply(sums);
        normalize(layer, layer.ln_2, layer.middle, normal);
        stages[2].multiply(sums);
        stages[3].multiply(sums);
    }
    return fit ? workspace.most : 0;
}

int64_t backward(const Layer& layer, char* space, int threads) {
    const int64_t rows = layer.rows(), width = layer.width, inner = layer.inner;
    Workspace workspace = {space};
    Bfloat16* normal = workspace.take<Bfloat16>(rows * row_stride(width));
    Bfloat16* gradient = workspace.take<Bfloat16>(rows * row_stride(width));  // Of outputs, and then of the middle.
    Bfloat16* of_attended = workspace.take<Bfloat16>(rows * row_stride(width));
    float* of_normal = workspace.take<float>(rows * width);
    float* of_middle = workspace.take<float>(rows * width);
    float* norm_sums = workspace.take<float>(parts_of(rows, PART_ROWS) * 2 * width);
    // Of what the activation function is given, and later of queries, keys and values.
    Bfloat16* of_many = workspace.take<Bfloat16>(rows * std::max(row_stride(inner), row_stride(3 * width)));
    const Rows of_given = low(of_many, inner), of_parts = low(of_many, 3 * width);
    Product through_activation = gradient_of_inputs(layer.mlp_output, rows, low(gradient, width), of_given);
    through_activation.slopes_at = layer.given;
    const Stage stages[] = {
        {{gradient_of_weight(layer, layer.mlp_output, low(layer.given, inner, ACTIVATED), exact(layer.of_outputs, width)),
          through_activation},
         workspace},
        {{gradient_of_weight(layer, layer.mlp_input, low(normal, width), of_given),
          gradient_of_inputs(layer.mlp_input, rows, of_given, exact(of_normal, width))},
         workspace},
        {{gradient_of_weight(layer, layer.attention_output, low(layer.attended, width), exact(of_middle, width)),
          gradient_of_inputs(layer.attention_output, rows, low(gradient, width), low(of_attended, width))},
         workspace},
        {{gradient_of_weight(layer, layer.attention_input, low(normal, width), of_parts),
          gradient_of_inputs(layer.attention_input, rows, of_parts, exact(of_normal, width))},
         workspace},
    };
    if (!space) return workspace.most;
    const Attention attention = attention_of(layer, of_attended, of_many);
    const Space<float> all_sums(threads * BLOCK_ROWS * BLOCK_COLUMNS);
    bool fit = true;
#pragma omp parallel num_threads(threads) reduction(&& : fit)
    {
        float* sums = all_sums.start + omp_get_thread_num() * BLOCK_ROWS * BLOCK_COLUMNS;
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < width; i += LANES)
                store(load(layer.of_outputs + row * width + i), gradient + row * row_stride(width) + i);
        stages[0].multiply(sums);
        normalize(layer, layer.ln_2, layer.middle, normal);
        stages[1].multiply(sums);
        normalize_backward(layer, layer.ln_2, layer.middle, of_normal, layer.of_outputs, of_middle, gradient, norm_sums);
        stages[2].multiply(sums);
        fit = attend<Backward>(attention);
        normalize(layer, layer.ln_1, layer.inputs, normal);
        stages[3].multiply(sums);
        normalize_backward(layer, layer.ln_1, layer.inputs, of_normal, of_middle, layer.of_inputs, nullptr, norm_sums);
    }
    return fit ? workspace.most : 0;
}

}  // namespace

extern "C" {

int64_t gptcli_layer_forward(const Layer* layer, char* space, int threads) {
    int64_t size = 0;
    fits([&] { size = forward(*layer, space, threads); });
    return size;
}

int64_t gptcli_layer_backward(const Layer* layer, char* space, int threads) {
    int64_t size = 0;
    fits([&] { size = backward(*layer, space, threads); });
    return size;
}

}  // extern "C"
