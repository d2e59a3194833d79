// Causal attention, as native/attention.py calls it.

#include "attention.h"

extern "C" {

// Both return whether memory was enough.
int gptcli_attend(const Attention* attention, int threads) {
    bool fit = true;
#pragma omp parallel num_threads(threads) reduction(&& : fit)
    fit = attend<Forward>(*attention);
    return fit;
}

int gptcli_attend_backward(const Attention* attention, int threads) {
    bool fit = true;
#pragma omp parallel num_threads(threads) reduction(&& : fit)
    fit = attend<Backward>(*attention);
    return fit;
}

}  // extern "C"
