// The step of AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), and the norm of gradients, as
// native/adamw.py calls them.
//
// Each weight, gradient and moment is read from memory once.

#include "tiles.h"

namespace {

constexpr int64_t PART = 1 << 14;  // Numbers of one tensor, which are one thread's.

struct Weights {
    float *weights, *mean, *square_mean;
    const float* gradients;
    int64_t count;
    float kept;               // Of a weight: what decay leaves.
    float rate;               // For the mean as it is, which begins with 0.
    float square_correction;  // What roots of the mean square are divided by, for the same reason.
};

struct Step {
    float gradient_scale, beta1, beta2, epsilon;
};

struct Part {
    const Weights* weights;
    int64_t first, end;
};

std::vector<Part> parts_of(const Weights* weights, int64_t count) {
    std::vector<Part> parts;
    for (const Weights* some = weights; some < weights + count; some++)
        for (int64_t first = 0; first < some->count; first += PART)
            parts.push_back({some, first, std::min(first + PART, some->count)});
    return parts;
}

void update(const Part& part, const Step& step) {
    const Weights& some = *part.weights;
    float *weights = some.weights, *mean = some.mean, *square_mean = some.square_mean;
    const float* gradients = some.gradients;
#pragma omp simd
    for (int64_t i = part.first; i < part.end; i++) {
        const float gradient = gradients[i] * step.gradient_scale;
        mean[i] += (gradient - mean[i]) * (1 - step.beta1);
        square_mean[i] = square_mean[i] * step.beta2 + gradient * gradient * (1 - step.beta2);
        const float root = std::sqrt(square_mean[i]) / some.square_correction + step.epsilon;
        weights[i] = weights[i] * some.kept - some.rate * mean[i] / root;
    }
}

double sum_of_squares(const float* numbers, int64_t count) {
    Floats sums[VECTORS] = {};
    int64_t i = 0;
    for (; i + TILE <= count; i += TILE)
        for (int vector = 0; vector < VECTORS; vector++) {
            const Floats some = load(numbers + i + vector * LANES);
            sums[vector] += some * some;
        }
    double result = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < count; i++) result += numbers[i] * numbers[i];
    return result;
}

}  // namespace

extern "C" {

void gptcli_adamw(const Weights* weights, int64_t count, const Step* step, int threads) {
    const std::vector<Part> parts = parts_of(weights, count);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t i = 0; i < parts.size(); i++) update(parts[i], *step);
}

// Of weights, only gradients are looked at. How many threads there are changes nothing.
double gptcli_gradient_norm(const Weights* weights, int64_t count, int threads) {
    const std::vector<Part> parts = parts_of(weights, count);
    std::vector<double> squares(parts.size());
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t i = 0; i < parts.size(); i++)
        squares[i] = sum_of_squares(parts[i].weights->gradients + parts[i].first, parts[i].end - parts[i].first);
    double sum = 0;
    for (double some : squares) sum += some;
    return std::sqrt(sum);
}

}  // extern "C"
