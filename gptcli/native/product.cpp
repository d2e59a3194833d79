// Products of large matrices, as native/product.py calls them.

#include <omp.h>

#include "product.h"

namespace {

void multiply(const Product& product, int threads) {
    const Division division(product, threads);
    const int64_t size = division.block_rows * division.block_columns * SQUARE;
    const Space<float> all_sums(threads * size);
#pragma omp parallel num_threads(threads)
    {
        const Amx amx;
        float* sums = all_sums.start + omp_get_thread_num() * size;
#pragma omp for schedule(static)
        for (int part = 0; part < threads; part++) lay_out(product, part, threads);
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < division.blocks(); block++) multiply_block(product, division, block, sums, amx);
    }
}

}  // namespace

extern "C" {

// Return whether memory was enough.
int gptcli_product(const Product* product, int threads) {
    return fits([&] { multiply(*product, threads); });
}

}  // extern "C"
