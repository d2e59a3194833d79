// Products of large matrices in bfloat16.
//
// What the matrix unit is given must come from the nearest caches, or it waits most of the time. Both matrices are first laid
// out in slabs of 32 rows, and along the length in chunks. A chunk of the right slab stays in the first cache; those of the left
// slabs are read past it, from the second one, which they and the sums of a block of outputs fit.
//
// Each output is one thread's, and its sum has one order: how many threads there are changes nothing.

#pragma once

#include <cstdlib>

#include "tiles.h"

namespace {

constexpr int64_t CHUNK_WORDS = 192;                      // At most. 24 KiB of a slab.
constexpr int64_t BLOCK_ROWS = 384, BLOCK_COLUMNS = 384;  // At most. 576 KiB of sums.
constexpr int64_t LARGE = 1 << 23;                        // Numbers of a matrix that, laid out, leaves the caches.

// What is given to GPT-2's activation function; what it returns is multiplied.
struct Activated {
    Bfloat16 given;
};

inline float number(Activated value) { return tanh_gelu(number(value.given)); }

inline Floats load(const Activated* place) { return tanh_gelu(load(&place->given)); }

enum Format : int64_t { BFLOAT16, FLOAT, ACTIVATED };

// What is multiplied lies along the length. One of both strides is 1.
struct Matrix {
    const void* numbers;
    int64_t rows, row_stride, stride;
    Format format;
    uint32_t* slabs;  // Space for it: words of `rows`, in whole slabs, by `length`, in whole vectors of words.
};

// The numbers of a row of outputs lie together. An output is
// (scale * sum + bias) * slope of the activation function + added_scale * added + residual + what is there, of these what is
// asked for.
struct Product {
    Matrix left, right;
    int64_t length;
    void* outputs;  // (rows of left, rows of right)
    int64_t output_stride;
    Format format;  // Of outputs.
    int64_t adds;                // Also right_totals.
    const float* bias;           // (rows of right).
    float* right_totals;         // (rows of right): given the sums along the length.
    // Of these, places are as those of outputs.
    const Bfloat16 *slopes_at, *added;
    const float* residual;
    Bfloat16* activated;  // Given what the activation function makes of outputs in bfloat16.
    float scale, added_scale;
    int64_t is_symmetric;  // Then what is above the diagonal is not computed but copied.
    int64_t outputs_stay;  // In the caches, as they are read next.
};

// ---- Laying out

// How the length is divided, in words: into chunks of about one size, in whole vectors.
struct Chunks {
    const int64_t words, size;

    explicit Chunks(int64_t length)
        : words(parts_of(length, 2 * LANES) * LANES),
          size(words ? parts_of(words, parts_of(words, CHUNK_WORDS) * LANES) * LANES : 0) {}
    int64_t size_at(int64_t first) const { return std::min(size, words - first); }
};

// Where a slab's chunk begins.
inline uint32_t* chunk_of(const Matrix& matrix, const Chunks& chunks, int64_t row, int64_t first) {
    return matrix.slabs + first * parts_of(matrix.rows, SLAB) * SLAB + row / SLAB * SLAB * chunks.size_at(first);
}

// Whether tiles can be read from where the matrix lies. At a distance of 2 KiB, rows are in each other's way in the first cache.
inline bool is_laid_out(const Matrix& matrix, int64_t length) {
    return matrix.format == BFLOAT16 && matrix.stride == 1 && matrix.rows % SLAB == 0 && length % (2 * LANES) == 0 &&
           matrix.row_stride % 2 == 0 && matrix.row_stride % 1024 != 0 && (uintptr_t)matrix.numbers % sizeof(uint32_t) == 0;
}

// Take 16 rows by 32 numbers; zeros behind the ends. are_rows: a row in each line, else a word of each row.
template <class Number>
inline void take(const Matrix& matrix, int64_t length, int64_t row, int64_t place, bool are_rows, Unit& unit) {
    const Number* start = (const Number*)matrix.numbers + row * matrix.row_stride + place * matrix.stride;
    bool are_taken_as_rows = true;
    if (row + UNIT > matrix.rows || place + 2 * LANES > length) {
        for (int64_t n = 0; n < UNIT; n++) {
            float numbers[2 * LANES] = {};
            for (int64_t i = 0; i < 2 * LANES; i++)
                if (row + n < matrix.rows && place + i < length) numbers[i] = number(start[n * matrix.row_stride + i * matrix.stride]);
            round_some(numbers, (uint32_t*)&unit.lines[n]);
        }
    } else if (matrix.stride == 1) {
        for (int64_t n = 0; n < UNIT; n++) {
            const Number* some = start + n * matrix.row_stride;
            if (std::is_same<Number, Bfloat16>::value)
                memcpy(&unit.lines[n], some, sizeof unit.lines[n]);
            else
                round_neighbours(load(some), load(some + LANES), (uint32_t*)&unit.lines[n]);
        }
    } else {
        are_taken_as_rows = false;
        const bool is_new = row % (sizeof(Words) / sizeof(Number)) == 0;
        for (int64_t n = 0; n < UNIT; n++) {
            const Number *low = start + 2 * n * matrix.stride, *high = low + matrix.stride;
            if (is_new) __builtin_prefetch(low + 2 * UNIT * matrix.stride), __builtin_prefetch(high + 2 * UNIT * matrix.stride);
            if (std::is_same<Number, Bfloat16>::value)
                unit.lines[n] = (Words)load(low) >> 16 | (Words)load(high);
            else
                unit.lines[n] = pair(load(low), load(high));
        }
    }
    if (are_taken_as_rows != are_rows) unit.transpose();
}

// Lay out the slabs from `first` to `end`. totals: given those of their rows, for words of each row; adds: to what is there.
template <class Number>
void lay_out(const Matrix& matrix, int64_t length, int64_t first, int64_t end, bool are_rows, float* totals, bool adds) {
    std::vector<float> sums(totals ? (end - first) * SLAB : 0);
    const bool is_large = matrix.rows * length >= LARGE;
    const Chunks chunks(length);
    const auto lay_out_unit = [&](int64_t row, int64_t first_word, int64_t word) {
        uint32_t* chunk = chunk_of(matrix, chunks, row, first_word);
        Unit& there = *(Unit*)(chunk + (word - first_word) * SLAB + row % SLAB * LANES);
        Unit made, &unit = is_large ? made : there;
        take<Number>(matrix, length, row, 2 * word, are_rows, unit);
        if (is_large)
            for (int line = 0; line < UNIT; line++) write_line(unit.lines[line], &there.lines[line]);
        if (!totals) return;
        float* of_rows = sums.data() + row - first * SLAB;
        Floats sum = load(of_rows);
        for (const Words& line : unit.lines) sum += (Floats)(line << 16) + (Floats)(line & 0xffff0000u);
        store(sum, of_rows);
    };
    const auto for_words = [&](const auto& work) {
        for (int64_t first_word = 0; first_word < chunks.words; first_word += chunks.size)
            for (int64_t word = first_word; word < first_word + chunks.size_at(first_word); word += LANES) work(first_word, word);
    };
    const auto for_rows = [&](const auto& work) {
        for (int64_t row = first * SLAB; row < end * SLAB; row += UNIT) work(row);
    };
    // In the order in which the matrix lies in memory.
    if (matrix.stride == 1)
        for_rows([&](int64_t row) { for_words([&](int64_t chunk, int64_t word) { lay_out_unit(row, chunk, word); }); });
    else
        for_words([&](int64_t chunk, int64_t word) { for_rows([&](int64_t row) { lay_out_unit(row, chunk, word); }); });
    finish_lines();
    if (!totals) return;
    for (int64_t row = first * SLAB; row < std::min(end * SLAB, matrix.rows); row++)
        totals[row] = sums[row - first * SLAB] + (adds ? totals[row] : 0);
}

void lay_out(const Matrix& matrix, int64_t length, int part, int parts, bool are_rows, float* totals, bool adds) {
    const int64_t slabs = parts_of(matrix.rows, SLAB), first = slabs * part / parts, end = slabs * (part + 1) / parts;
    if (first == end) return;
    const auto lay_out_part = matrix.format == FLOAT       ? lay_out<float>
                              : matrix.format == ACTIVATED ? lay_out<Activated>
                                                           : lay_out<Bfloat16>;
    lay_out_part(matrix, length, first, end, are_rows, totals, adds);
}

void lay_out(const Product& product, int part, int parts) {
    if (!is_laid_out(product.left, product.length)) lay_out(product.left, product.length, part, parts, true, nullptr, false);
    lay_out(product.right, product.length, part, parts, false, product.right_totals, product.adds);
}

// ---- Multiplying

template <class Number>
struct Space {
    Number* const start;
    explicit Space(int64_t count) : start((Number*)aligned_alloc(64, parts_of(count * sizeof(Number), 64) * 64)) {
        if (!start) throw std::bad_alloc();
    }
    ~Space() { free(start); }
    Space(const Space&) = delete;
};

// In slabs: how outputs are divided into blocks.
struct Division {
    const int64_t rows, columns;
    int64_t block_rows, block_columns;

    Division(const Product& product, int threads)
        : rows(parts_of(product.left.rows, SLAB)), columns(parts_of(product.right.rows, SLAB)) {
        block_rows = parts_of(rows, parts_of(rows, BLOCK_ROWS / SLAB));
        block_columns = parts_of(columns, parts_of(columns, BLOCK_COLUMNS / SLAB));
        while (blocks() < threads && block_rows * block_columns > 1) {
            int64_t& larger = block_rows > block_columns ? block_rows : block_columns;
            larger = parts_of(larger, 2);
        }
    }
    int64_t blocks_of_columns() const { return parts_of(columns, block_columns); }
    int64_t blocks() const { return parts_of(rows, block_rows) * blocks_of_columns(); }
};

inline void write_line(Floats first, Floats second, Bfloat16* line, bool stays) {
    Words words;
    round_neighbours(first, second, (uint32_t*)&words);
    write_line(words, line, stays);
}

inline void write_line(Floats first, Floats second, float* lines, bool stays) {
    write_line((Words)first, lines, stays), write_line((Words)second, lines + LANES, stays);
}

// Write the outputs of a slab of rows.
template <class Number>
void write(const Product& product, const float* sums, int64_t stride, int64_t first_row, int64_t first_column, int64_t columns) {
    const int64_t end = std::min(first_column + columns * SLAB, product.right.rows);
    for (int64_t row = 0; row < std::min<int64_t>(SLAB, product.left.rows - first_row); row++) {
        Number* outputs = (Number*)product.outputs + (first_row + row) * product.output_stride;
        const auto its = [&](auto* all) { return all ? all + (first_row + row) * product.output_stride : nullptr; };
        const Bfloat16 *slopes_at = its(product.slopes_at), *added = its(product.added);
        const float* residual = its(product.residual);
        Bfloat16* activated = its(product.activated);
        const float* of_row = sums_of(sums, row);
        const bool are_lines = (uintptr_t)outputs % sizeof(Words) == 0;
        const auto read_next = [&](const auto* numbers, int64_t column) {
            const auto* next = numbers + product.output_stride + column;
            for (int64_t i = 0; i < SLAB; i += sizeof(Words) / sizeof *numbers) __builtin_prefetch(next + i);
        };
        for (int64_t column = first_column; column < end; column += SLAB, of_row += stride) {
            if (slopes_at) read_next(slopes_at, column);
            if (added) read_next(added, column);
            if (residual) read_next(residual, column);
            if (product.adds) read_next(outputs, column);
            Floats numbers[2] = {load(of_row), load(of_row + UNIT_WORDS)};
            if (are_lines && column + SLAB <= end) {
                for (int half = 0; half < 2; half++) {
                    const int64_t i = column + half * LANES;
                    numbers[half] *= product.scale;
                    if (product.bias) numbers[half] += load(product.bias + i);
                    if (slopes_at) numbers[half] *= tanh_gelu_slope(load(slopes_at + i));
                    if (added) numbers[half] += product.added_scale * load(added + i);
                    if (residual) numbers[half] += load(residual + i);
                    if (product.adds) numbers[half] += load(outputs + i);
                }
                const bool stays = product.outputs_stay;
                write_line(numbers[0], numbers[1], outputs + column, stays);
                if (activated)
                    write_line(tanh_gelu(rounded(numbers[0])), tanh_gelu(rounded(numbers[1])), activated + column, stays);
                continue;
            }
            for (int64_t i = 0; i < std::min<int64_t>(SLAB, end - column); i++) {
                float value = numbers[i / LANES][i % LANES] * product.scale;
                if (product.bias) value += product.bias[column + i];
                if (slopes_at) value *= tanh_gelu_slope(number(slopes_at[column + i]));
                if (added) value += product.added_scale * number(added[column + i]);
                if (residual) value += residual[column + i];
                if (product.adds) value += number(outputs[column + i]);
                store(value, outputs + column + i);
                if (activated) store(tanh_gelu(number(outputs[column + i])), activated + column + i);
            }
        }
    }
    finish_lines();
}

void transpose_square(Unit* units) {
    for (Unit* unit = units; unit < units + 4; unit++) unit->transpose();
    std::swap(units[1], units[2]);
}

void multiply_block(const Product& product, const Division& division, int64_t block, float* sums, const Amx& amx) {
    const int64_t first_row = block / division.blocks_of_columns() * division.block_rows;
    const int64_t first_column = block % division.blocks_of_columns() * division.block_columns;
    const int64_t rows = std::min(division.block_rows, division.rows - first_row);
    const int64_t columns = std::min(division.block_columns, division.columns - first_column);
    const Chunks chunks(product.length);
    if (!chunks.words) std::fill(sums, sums + rows * columns * SQUARE, 0);
    // The first row of a column that is computed.
    const auto top = [&](int64_t column) {
        return product.is_symmetric ? std::max<int64_t>(0, first_column + column - first_row) : 0;
    };
    if (top(0) >= rows) return;
    const bool is_left_laid_out = is_laid_out(product.left, product.length);
    for (int64_t word = 0; word < chunks.words; word += chunks.size) {
        const int64_t chunk_words = chunks.size_at(word), slab_words = chunk_words * SLAB;
        const uint32_t* left = chunk_of(product.left, chunks, first_row * SLAB, word);
        Distances distances = {LANES, SLAB * LANES};
        int64_t left_slab = slab_words;
        if (is_left_laid_out) {
            const int64_t row_words = product.left.row_stride / 2;
            left = (const uint32_t*)product.left.numbers + first_row * SLAB * row_words + word;
            distances = {row_words, LANES}, left_slab = SLAB * row_words;
        }
        const uint32_t* right = chunk_of(product.right, chunks, first_column * SLAB, word);
        // What comes next is read ahead, with each square as much as makes the whole in the end.
        const uint32_t *next_left = left + division.rows * slab_words, *next_chunk = right + division.columns * slab_words;
        const int64_t left_lines = is_left_laid_out ? 0 : parts_of(SLAB, columns), right_lines = parts_of(SLAB, rows);
        for (int64_t column = 0; column < columns; column++, right += slab_words) {
            const uint32_t* next_right = column + 1 < columns ? right + slab_words : next_chunk;
            for (int64_t row = top(column); row < rows; row++) {
                const uint32_t* its_left = left + row * left_slab;
                const Ahead ahead_left = {next_left + (column * rows + row) * left_lines * chunk_words, left_lines};
                const Ahead ahead_right = {next_right + row * right_lines * chunk_words, right_lines};
                float* square = sums + (column * rows + row) * SQUARE;
                if (word)
                    multiply_square<true>(its_left, distances, right, chunk_words, square, ahead_left, ahead_right, amx);
                else
                    multiply_square<false>(its_left, distances, right, chunk_words, square, ahead_left, ahead_right, amx);
            }
        }
    }
    const auto write_slab = product.format == FLOAT ? write<float> : write<Bfloat16>;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t its_columns = product.is_symmetric ? std::min(columns, first_row + row - first_column + 1) : columns;
        write_slab(product, sums + row * SQUARE, rows * SQUARE, (first_row + row) * SLAB, first_column * SLAB, its_columns);
    }
    if (!product.is_symmetric) return;
    for (int64_t column = 0; column < columns; column++) {
        const int64_t first = std::max<int64_t>(0, first_column + column - first_row + 1);  // Below the diagonal.
        for (int64_t row = first; row < rows; row++) transpose_square((Unit*)(sums + (column * rows + row) * SQUARE));
        if (first < rows)
            write_slab(product, sums + (column * rows + first) * SQUARE, SQUARE, (first_column + column) * SLAB,
                       (first_row + first) * SLAB, rows - first);
    }
}

}  // namespace
