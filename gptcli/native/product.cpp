// Products of large matrices, as native/product.py calls them.

#include "product.h"

namespace {

void multiply(const Product& product, int threads) {
    const Division division(product, threads);
#pragma omp parallel num_threads(threads)
    {
        const Amx amx;
        const Space<float> sums(division.block_rows * division.block_columns * SQUARE);
#pragma omp for schedule(static)
        for (int part = 0; part < threads; part++) lay_out(product, part, threads);
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < division.blocks(); block++) multiply_block(product, division, block, sums.start, amx);
    }
}

}  // namespace

extern "C" {

void gptcli_product(const Product* product, int threads) { multiply(*product, threads); }

}  // extern "C"
