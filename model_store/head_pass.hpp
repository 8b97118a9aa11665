/* The score head as one pass over candidates, several at a time, side by side in a register.
 *
 * ONNX Runtime runs the head's graph step by step, each over all candidates, and writes some
 * megabyte of numbers in between. Here a few candidates go through all steps, and what is in
 * between stays in registers and in a core's first cache. A candidate's sums are made in the same
 * order wherever it stands and whatever stands beside it.
 *
 * N candidates  K blocks  H attention units  D user and item width  E hidden units
 */

#pragma once

#include "lent_array.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

/* What GCC and Clang have in common: vectors of any width, and functions for one processor. */
#define INLINE inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

namespace head {

using lent::CACHE_LINE;
using lent::fetch;

constexpr long MOST_ROWS = 8; /* of a matrix that are gone through together */

/* What a head's numbers are, see head_weights.py. */
struct Head {
    long units = 0;   /* H */
    long width = 0;   /* D */
    long hidden = 0;  /* E */
    float bias = 0.0f;
    std::vector<float> key;         /* [H, D] */
    std::vector<float> score;       /* [D, H], times log2(e): what follows is a power of two */
    std::vector<float> user;        /* [E, D], and rows of zeros behind it, to go through several */
    std::vector<float> interaction; /* the same, or nothing */
    std::vector<float> output;      /* [E] */

    long
    row() const
    {
        return units + hidden + (interaction.empty() ? 0 : width);
    }
};

/* Candidates of one user. */
struct Job {
    const float *profile; /* [K, D] */
    long blocks;          /* K */
    const float *table;   /* [any, R] */
    long stride;          /* R */
    const std::int64_t *slots; /* [N] which of its rows; nothing for its first N */
    long count;           /* N */
    float *logits;        /* [N] */

    const float *
    candidate(long place) const
    {
        const long last = std::min(place, count - 1);
        return table + (slots ? slots[last] : last) * stride;
    }
};

template <int LANES> struct Simd {
    typedef float Floats __attribute__((vector_size(4 * LANES)));
    typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4)));
    typedef std::int32_t Whole __attribute__((vector_size(4 * LANES)));
};

/* How a head is gone through: LANES candidates in a register, GROUPS registers of them;
 * FEATURES of the user, and ROWS hidden units, at a time. */
template <int LANES, int GROUPS, int FEATURES, int ROWS> class Pass {
    using Floats = typename Simd<LANES>::Floats;
    using Whole = typename Simd<LANES>::Whole;
    static constexpr long WIDE = LANES * GROUPS;
    static constexpr int TOGETHER = 7; /* blocks, beside the first one */
    static_assert(ROWS <= MOST_ROWS);

public:
    static INLINE long
    room(const Head &head, long blocks)
    {
        const long keys = (blocks * head.units + LANES - 1) / LANES * LANES;
        return keys + (head.row() + blocks * head.units + 2 * head.width + 1) * WIDE;
    }

    INLINE
    Pass(const Head &head, const Job &job, float *space)
        : head_(head), job_(job), keys_(space),
          row_(keys_ + (job.blocks * head.units + LANES - 1) / LANES * LANES),
          units_(row_ + head.row() * WIDE), user_(units_ + job.blocks * head.units * WIDE),
          mixed_(user_ + head.width * WIDE), logits_(mixed_ + head.width * WIDE)
    {
    }

    INLINE void
    run() const
    {
        make_keys();
        for (long first = 0; first < job_.count; first += WIDE) {
            take_rows(first);
            start_logits();
            for (int group = 0; group < GROUPS; group++) {
                make_units(group);
                make_user(group);
            }
            if (!head_.interaction.empty()) {
                mix();
            }
            add_hidden();
            const long count = std::min(WIDE, job_.count - first);
            std::memcpy(job_.logits + first, logits_, static_cast<size_t>(count) * sizeof(float));
        }
    }

private:
    static INLINE Floats
    load(const float *from)
    {
        return *reinterpret_cast<const Floats *>(from);
    }

    static INLINE void
    store(float *to, Floats values)
    {
        *reinterpret_cast<Floats *>(to) = values;
    }

    static INLINE Floats
    all(float value)
    {
        return Floats{} + value;
    }

    /* NaN stays. */
    static INLINE Floats
    positive(Floats values)
    {
        return values < 0.0f ? Floats{} : values;
    }

    /* 2 to the power of numbers between -126 and 127: to the whole part by its exponent, to what
     * is left, at most a half, by a polynomial; the error is at most 2e-7 of it. Beyond, where no
     * head that has its numbers written down comes with profiles out of its layer norm (see
     * score_range in training/models/score_head.py), the exponent would wrap around. */
    static INLINE Floats
    power_of_two(Floats values)
    {
        const Floats whole = values + 12582912.0f; /* 1.5 * 2**23: of such, all are whole */
        const Floats left = values - (whole - 12582912.0f);
        Floats found = all(0.001326472731307149f);
        found = found * left + 0.009671512991189957f;
        found = found * left + 0.05550733581185341f;
        found = found * left + 0.24022242426872253f;
        found = found * left + 0.6931470036506653f;
        found = found * left + 1.0f;
        const Whole exponent = reinterpret_cast<Whole>(whole) << 23;
        return reinterpret_cast<Floats>(reinterpret_cast<Whole>(found) + exponent);
    }

    /* W3 u of every block. */
    INLINE void
    make_keys() const
    {
        for (long block = 0; block < job_.blocks; block++) {
            for (long unit = 0; unit < head_.units; unit++) {
                keys_[block * head_.units + unit] = product(
                    job_.profile + block * head_.width, head_.key.data() + unit * head_.width);
            }
        }
    }

    INLINE float
    product(const float *one, const float *other) const
    {
        using Loose = typename Simd<LANES>::Loose;
        Floats sums{};
        long at = 0;
        for (; at + LANES <= head_.width; at += LANES) {
            sums += Floats(*reinterpret_cast<const Loose *>(one + at)) *
                    Floats(*reinterpret_cast<const Loose *>(other + at));
        }
        float sum = 0.0f;
        UNROLLED for (int lane = 0; lane < LANES; lane++) {
            sum += sums[lane];
        }
        for (; at < head_.width; at++) {
            sum += one[at] * other[at];
        }
        return sum;
    }

    /* Puts candidates side by side; the last one again where there are no more. */
    INLINE void
    take_rows(long first) const
    {
        const long length = head_.row();
        const float *rows[WIDE];
        UNROLLED for (long lane = 0; lane < WIDE; lane++) {
            rows[lane] = job_.candidate(first + lane);
            /* The next ones are on their way meanwhile. */
            const float *next = job_.candidate(first + WIDE + lane);
            for (long at = 0; at < length; at += CACHE_LINE / 4) {
                fetch(next + at);
            }
        }
        for (long at = 0; at < length; at++) {
            UNROLLED for (long lane = 0; lane < WIDE; lane++) {
                row_[at * WIDE + lane] = rows[lane][at];
            }
        }
    }

    INLINE void
    start_logits() const
    {
        UNROLLED for (int group = 0; group < GROUPS; group++) {
            store(logits_ + group * LANES, all(head_.bias));
        }
    }

    /* The attention's units of every block but the first, less those of the first, whose score
     * is the one that the softmax subtracts. */
    INLINE void
    make_units(int group) const
    {
        Floats poison{};
        for (long unit = 0; unit < head_.units; unit++) {
            const Floats query = load(row_ + unit * WIDE + group * LANES);
            const Floats first = positive(query + keys_[unit]);
            poison += first * 0.0f;
            for (long block = 1; block < job_.blocks; block++) {
                const long at = block * head_.units + unit;
                const Floats value = positive(query + keys_[at]);
                store(units_ + at * WIDE + group * LANES, value - first);
            }
        }
        /* NaN where a unit is not finite: its powers of two would mean nothing. */
        float *logits = logits_ + group * LANES;
        store(logits, load(logits) + poison);
    }

    /* The blocks' average, each feature with weights of its own (equations 9 and 10). */
    INLINE void
    make_user(int group) const
    {
        long feature = 0;
        for (; feature + FEATURES <= head_.width; feature += FEATURES) {
            average<FEATURES>(group, feature);
        }
        for (; feature < head_.width; feature++) {
            average<1>(group, feature);
        }
    }

    template <int COUNT>
    INLINE void
    average(int group, long feature) const
    {
        Floats sums[COUNT], weights[COUNT];
        UNROLLED for (int each = 0; each < COUNT; each++) {
            sums[each] = all(job_.profile[feature + each]);
            weights[each] = all(1.0f);
        }
        long block = 1;
        for (; block + TOGETHER <= job_.blocks; block += TOGETHER) {
            weigh<COUNT, TOGETHER>(group, feature, block, sums, weights);
        }
        for (; block < job_.blocks; block++) {
            weigh<COUNT, 1>(group, feature, block, sums, weights);
        }
        UNROLLED for (int each = 0; each < COUNT; each++) {
            store(user_ + (feature + each) * WIDE + group * LANES, sums[each] / weights[each]);
        }
    }

    template <int COUNT, int BLOCKS>
    INLINE void
    weigh(int group, long feature, long block, Floats (&sums)[COUNT], Floats (&weights)[COUNT]) const
    {
        const float *units = units_ + block * head_.units * WIDE + group * LANES;
        const float *score = head_.score.data() + feature * head_.units;
        Floats scores[COUNT][BLOCKS] = {};
        for (long unit = 0; unit < head_.units; unit++) {
            UNROLLED for (int at = 0; at < BLOCKS; at++) {
                const Floats value = load(units + (at * head_.units + unit) * WIDE);
                UNROLLED for (int each = 0; each < COUNT; each++) {
                    scores[each][at] += score[each * head_.units + unit] * value;
                }
            }
        }
        const float *values = job_.profile + block * head_.width + feature;
        UNROLLED for (int each = 0; each < COUNT; each++) {
            UNROLLED for (int at = 0; at < BLOCKS; at++) {
                const Floats weight = power_of_two(scores[each][at]);
                weights[each] += weight;
                sums[each] += weight * values[at * head_.width + each];
            }
        }
    }

    /* User times candidate. */
    INLINE void
    mix() const
    {
        const float *candidate = row_ + (head_.units + head_.hidden) * WIDE;
        for (long at = 0; at < head_.width * WIDE; at += LANES) {
            store(mixed_ + at, load(user_ + at) * load(candidate + at));
        }
    }

    INLINE void
    add_hidden() const
    {
        for (long first = 0; first < head_.hidden; first += ROWS) {
            Floats sums[ROWS][GROUPS] = {};
            multiply(head_.user.data() + first * head_.width, user_, sums);
            if (!head_.interaction.empty()) {
                multiply(head_.interaction.data() + first * head_.width, mixed_, sums);
            }
            add_halves(first, sums);
        }
    }

    INLINE void
    multiply(const float *matrix, const float *values, Floats (&sums)[ROWS][GROUPS]) const
    {
        for (long at = 0; at < head_.width; at++) {
            Floats side_by_side[GROUPS];
            UNROLLED for (int group = 0; group < GROUPS; group++) {
                side_by_side[group] = load(values + at * WIDE + group * LANES);
            }
            UNROLLED for (int row = 0; row < ROWS; row++) {
                UNROLLED for (int group = 0; group < GROUPS; group++) {
                    sums[row][group] += matrix[row * head_.width + at] * side_by_side[group];
                }
            }
        }
    }

    /* Adds the candidates' halves, and what the output makes of it to the logits. */
    INLINE void
    add_halves(long first, const Floats (&sums)[ROWS][GROUPS]) const
    {
        const float *item = row_ + (head_.units + first) * WIDE;
        for (long row = 0; row < std::min<long>(ROWS, head_.hidden - first); row++) {
            UNROLLED for (int group = 0; group < GROUPS; group++) {
                const Floats half = load(item + row * WIDE + group * LANES);
                float *logits = logits_ + group * LANES;
                const Floats heard = head_.output[first + row] * positive(sums[row][group] + half);
                store(logits, load(logits) + heard);
            }
        }
    }

    const Head &head_;
    const Job &job_;
    float *keys_, *row_, *units_, *user_, *mixed_, *logits_;
};

} // namespace head
