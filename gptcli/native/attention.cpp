// Causal attention, as native/attention.py calls it.

#include "attention.h"

namespace {

template <class Pass>
void attend(const Attention& attention, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const std::unique_ptr<Pass> pass(new Pass(attention));
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < attention.sequences * attention.heads; pair++) pass->attend(pair);
    }
}

}  // namespace

extern "C" {

void gptcli_attend(const Attention* attention, int threads) { attend<Forward>(*attention, threads); }

void gptcli_attend_backward(const Attention* attention, int threads) { attend<Backward>(*attention, threads); }

}  // extern "C"
