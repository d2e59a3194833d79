// The loss of next-token prediction, as native/loss.py calls it.
//
// A row of scores is read from memory once: what is computed from it again, it still lies in the cache for.

#include <omp.h>

#include "tiles.h"

namespace {

// Scores of some of the vocabulary: (rows, width), rows being `stride` apart.
template <class Number>
struct Slice {
    Number* scores;
    int64_t width, stride;
};

// Compute the loss of a row in nats. powers: space for a number of each word, or nothing; then the gradient, times a factor, is
// put in the place of the scores.
//
// The loss is the cross-entropy with a target of 1 - smoothing for the chosen word, and of smoothing / vocabulary for all.
template <class Number>
double lose(const Slice<Number>* slices, int64_t count, int64_t row, int64_t chosen, double smoothing, float* powers,
            float factor) {
    // Not -INFINITY: less itself, that would be no number.
    float greatest = std::numeric_limits<float>::lowest();
    Number* its_place = nullptr;
    int64_t vocabulary = 0;
    for (const Slice<Number>* slice = slices; slice < slices + count; slice++) {
        Number* scores = slice->scores + row * slice->stride;
        Floats most = Floats{} + greatest;
        int64_t i = 0;
        for (; i + LANES <= slice->width; i += LANES) most = larger(most, load(scores + i));
        greatest = largest(most);
        for (; i < slice->width; i++) greatest = std::max(greatest, number(scores[i]));
        if (vocabulary <= chosen && chosen < vocabulary + slice->width) its_place = scores + chosen - vocabulary;
        vocabulary += slice->width;
    }
    double sum = 0, distances = 0;
    float* of_slice = powers;
    for (const Slice<Number>* slice = slices; slice < slices + count; slice++) {
        const Number* scores = slice->scores + row * slice->stride;
        Floats some = {}, their_distances = {};
        int64_t i = 0;
        for (; i + LANES <= slice->width; i += LANES) {
            __builtin_prefetch(scores + slice->stride + i, 0, 2);  // The next row.
            const Floats distance = load(scores + i) - greatest, power = exponential(distance);
            some += power, their_distances += distance;
            if (powers) store(power, of_slice + i);
        }
        for (; i < slice->width; i++) {
            const float distance = number(scores[i]) - greatest, power = exponential(distance);
            some[0] += power, their_distances[0] += distance;
            if (powers) of_slice[i] = power;
        }
        if (powers) of_slice += slice->width;
        sum += total(some), distances += total(their_distances);
    }
    const double of_each = smoothing / vocabulary;
    const float part = float(1 / sum), less = float(of_each), its_distance = number(*its_place) - greatest;
    if (powers) {
        of_slice = powers;
        for (const Slice<Number>* slice = slices; slice < slices + count; slice++) {
            Number* scores = slice->scores + row * slice->stride;
            int64_t i = 0;
            for (; i + LANES <= slice->width; i += LANES) store((load(of_slice + i) * part - less) * factor, scores + i);
            for (; i < slice->width; i++) store((of_slice[i] * part - less) * factor, scores + i);
            of_slice += slice->width;
        }
        store((powers[chosen] * part - less - float(1 - smoothing)) * factor, its_place);
    }
    return std::log(sum) - (1 - smoothing) * its_distance - (smoothing ? of_each * distances : 0);
}

template <class Number>
void lose_all(const Slice<Number>* slices, int64_t count, const int64_t* chosen, int64_t rows, double smoothing, float* powers,
              float factor, double* losses, int threads) {
    int64_t vocabulary = 0;
    for (const Slice<Number>* slice = slices; slice < slices + count; slice++) vocabulary += slice->width;
#pragma omp parallel num_threads(threads)
    {
        float* its_powers = powers ? powers + omp_get_thread_num() * vocabulary : nullptr;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            losses[row] = lose(slices, count, row, chosen[row], smoothing, its_powers, factor);
    }
}

}  // namespace

extern "C" {

// chosen, losses: (rows). powers: space, (threads, vocabulary), or nothing where gradients are not wanted. Each row's loss is
// computed by one thread: how many there are changes nothing.
void gptcli_loss_float32(const Slice<float>* slices, int64_t count, const int64_t* chosen, int64_t rows, double smoothing,
                         float* powers, float factor, double* losses, int threads) {
    lose_all(slices, count, chosen, rows, smoothing, powers, factor, losses, threads);
}

void gptcli_loss_bfloat16(const Slice<Bfloat16>* slices, int64_t count, const int64_t* chosen, int64_t rows,
                          double smoothing, float* powers, float factor, double* losses, int threads) {
    lose_all(slices, count, chosen, rows, smoothing, powers, factor, losses, threads);
}

// torch converts first, and then adds.
void gptcli_add(const Bfloat16* numbers, int64_t count, float* sums, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) sums[i] += number(numbers[i]);
}

}  // extern "C"
