// Causal attention, as native/attention.py calls it.

#include "attention.h"

extern "C" {

void gptcli_attend(const Attention* attention, int threads) {
#pragma omp parallel num_threads(threads)
    attend<Forward>(*attention);
}

void gptcli_attend_backward(const Attention* attention, int threads) {
#pragma omp parallel num_threads(threads)
    attend<Backward>(*attention);
}

}  // extern "C"
