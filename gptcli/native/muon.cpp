// The step of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), as native/muon.py calls it.
//
// Each matrix is one thread's from its gradient to its update: threads wait for each other only at the end, and how many there
// are changes nothing.

#include "product.h"

namespace {

struct Weights {
    float *weights, *momentum;
    const float* gradients;
    int64_t rows, columns;
    float scale;  // Of the update.
};

struct Step {
    float gradient_scale;
    float kept;               // Of a weight: what decay leaves.
    float momentum, epsilon;
    float coefficients[3];    // Of the polynomial's first, third and fifth power.
    int64_t iterations;       // 1 at least.
};

// sums: space for BLOCK_ROWS by BLOCK_COLUMNS.
void multiply(const Product& product, float* sums, const Amx& amx) {
    const Division division(product, 1);
    lay_out(product, 0, 1);
    for (int64_t block = 0; block < division.blocks(); block++) multiply_block(product, division, block, sums, amx);
}

// What one thread has, for matrices of up to these sizes.
struct Update {
    const Step& step;
    const Amx amx;
    const Space<Bfloat16> matrix, spare, gram, polynomial;
    const Space<uint32_t> left_slabs, right_slabs;
    const Space<float> sums;

    Update(const Step& step, int64_t smaller, int64_t larger)
        : step(step),
          matrix(smaller * larger),
          spare(smaller * larger),
          gram(smaller * smaller),
          polynomial(smaller * smaller),
          left_slabs(padded(smaller) * padded(larger) / 2),
          right_slabs(padded(smaller) * padded(larger) / 2),
          sums(BLOCK_ROWS * BLOCK_COLUMNS) {}

    static int64_t padded(int64_t count) { return parts_of(count, SLAB) * SLAB; }

    static Matrix of_rows(const Bfloat16* numbers, int64_t rows, int64_t columns, uint32_t* slabs) {
        return {numbers, rows, columns, 1, BFLOAT16, slabs};
    }

    static Matrix of_columns(const Bfloat16* numbers, int64_t columns, uint32_t* slabs) {
        return {numbers, columns, 1, columns, BFLOAT16, slabs};
    }

    // Put Nesterov's momentum, divided by its norm, into `matrix`: no singular value is more than 1. Let weights decay.
    void begin(const Weights& weights) const {
        const int64_t count = weights.rows * weights.columns;
        double squares = 0;
        Floats some = {};
        for (int64_t i = 0; i < count; i += LANES) {
            const int64_t size = std::min<int64_t>(LANES, count - i) * sizeof(float);
            Floats gradient = {}, momentum = {}, weight = {};
            memcpy(&gradient, weights.gradients + i, size);
            memcpy(&momentum, weights.momentum + i, size);
            memcpy(&weight, weights.weights + i, size);
            gradient *= step.gradient_scale;
            momentum += (gradient - momentum) * (1 - step.momentum);
            weight *= step.kept;
            memcpy(weights.momentum + i, &momentum, size);
            memcpy(weights.weights + i, &weight, size);
            const Floats update = gradient + (momentum - gradient) * step.momentum;
            Bfloat16 rounded[LANES];
            store(update, rounded);
            memcpy(matrix.start + i, rounded, size / 2);
            some += load(rounded) * load(rounded);
            if (i / LANES % 1024 == 1023) squares += total(some), some = Floats{};
        }
        const float norm = std::max(float(std::sqrt(squares + total(some))), step.epsilon);
        for (int64_t i = 0; i < count; i++) store(number(matrix.start[i]) / norm, matrix.start + i);
    }

    // By Newton and Schulz's iteration, move the singular values towards 1.
    void make(const Weights& weights) const {
        begin(weights);
        const int64_t rows = weights.rows, columns = weights.columns;
        const bool is_tall = rows > columns;
        const int64_t size = std::min(rows, columns);
        const auto [a, b, c] = step.coefficients;
        Bfloat16 *from = matrix.start, *to = spare.start;
        for (int64_t i = 0; i < step.iterations; i++) {
            const auto of_matrix = [&](bool are_rows, uint32_t* slabs) {
                return are_rows ? of_rows(from, rows, columns, slabs) : of_columns(from, columns, slabs);
            };
            Product product = {};
            product.scale = 1, product.format = BFLOAT16, product.outputs_stay = true;
            // With itself, the smaller way.
            product.left = of_matrix(!is_tall, left_slabs.start), product.right = of_matrix(!is_tall, right_slabs.start);
            product.length = std::max(rows, columns), product.outputs = gram.start, product.output_stride = size;
            product.is_symmetric = true;
            multiply(product, sums.start, amx);
            product.left = of_rows(gram.start, size, size, left_slabs.start);
            product.right = of_columns(gram.start, size, right_slabs.start);
            product.length = size, product.outputs = polynomial.start;
            product.scale = c, product.added = gram.start, product.added_scale = b;
            multiply(product, sums.start, amx);
            const Bfloat16* one = is_tall ? from : polynomial.start;
            product.left = of_rows(one, rows, size, left_slabs.start);
            const Bfloat16* other = is_tall ? polynomial.start : from;
            product.right = of_columns(other, columns, right_slabs.start);
            product.outputs = to, product.output_stride = columns, product.is_symmetric = false;
            product.scale = 1, product.added = from, product.added_scale = a;
            if (i == step.iterations - 1) {
                product.outputs = weights.weights, product.format = FLOAT, product.adds = true;
                product.scale = weights.scale, product.added_scale *= weights.scale;
            }
            multiply(product, sums.start, amx);
            std::swap(from, to);
        }
    }
};

}  // namespace

extern "C" {

// Return whether memory was enough.
int gptcli_muon(const Weights* weights, int64_t count, const Step* step, int threads) {
    int64_t smaller = 0, larger = 0;
    for (const Weights* some = weights; some < weights + count; some++) {
        smaller = std::max(smaller, std::min(some->rows, some->columns));
        larger = std::max(larger, std::max(some->rows, some->columns));
    }
    bool fit = true;
#pragma omp parallel num_threads(threads) reduction(&& : fit)
    {
        std::unique_ptr<const Update> update;
        fit = fits([&] { update.reset(new Update(*step, smaller, larger)); });
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++)
            if (update) update->make(weights[i]);
    }
    return fit;
}

}  // extern "C"
