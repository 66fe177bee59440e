// Which experts a row chooses, and how pairs of rows and experts come to lie in groups.
#pragma once
#include "gemm_rows.cuh"

// Where a logit stands among those of its row: a higher one before a lower one, of equal ones the lower index first, and what
// is no number last. No two of a row are alike, and none is 0.
DEVICE u64 standing(f32 logit, u32 expert) {
    const u32 bits = bits_of(logit == 0.0f ? 0.0f : logit);
    const u32 ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(logit == logit ? ascending : 0) << 32 | ~expert;
}

DEVICE u32 expert_at(u64 standing) { return ~static_cast<u32>(standing); }

// The highest below `bound`, by the lanes of a warp.
DEVICE u64 highest_below(const f32* logits, u32 experts, u64 bound) {
    u64 highest = 0;
    for (u32 expert = lane(); expert < experts; expert += WARP) {
        const u64 own = standing(logits[expert], expert);
        if (own < bound && own > highest) highest = own;
    }
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        const u64 other = shuffle_xor(highest, mask);
        highest = other > highest ? other : highest;
    }
    return highest;
}

// The experts of a row and their weights, by a warp.
DEVICE void route_row(const ExpertsArgs& args, u32 row) {
    const u32 experts = args.logits.cols;
    const f32* logits = args.logits.values + static_cast<u64>(row) * experts;
    u64 lowest = highest_below(logits, experts, ~0ull);
    const f32 max = logits[expert_at(lowest)];
    f32 sum = 0.0f;
    for (u32 expert = lane(); expert < experts; expert += WARP) sum += exp_of(logits[expert] - max);
    sum = warp_sum(sum);
    const auto share = [&](u32 expert) { return exp_of(logits[expert] - max) / sum; };
    f32 total = share(expert_at(lowest));
    for (u32 i = 1; i < args.each; i++) {
        lowest = highest_below(logits, experts, lowest);
        total += share(expert_at(lowest));
    }
    if (args.renormalise == 0) total = 1.0f;
    u32 place = row * args.each;
    for (u32 first = 0; first < experts; first += WARP) {
        const u32 expert = first + lane();
        const bool chosen = expert < experts && standing(logits[expert], expert) >= lowest;
        const u32 lanes = lanes_where(chosen);
        const u32 own = place + count_bits(lanes & ((1u << lane()) - 1));
        if (chosen) {
            args.chosen[own] = expert;
            args.weights[own] = share(expert) / total;
        }
        place += count_bits(lanes);
    }
}

// What the block of one expert knows of all.
struct Grouping {
    u32 first;   // its first pair
    u32 groups;  // groups before its own
};

// Some consecutive choices, for one warp of the block.
struct Run {
    u32 first;
    u32 end;
};

DEVICE Run run_of_warp(u32 choices) {
    const u32 warps = block_threads() / WARP, of_warp = ceil_div(choices, warps * WARP) * WARP;
    return Run{least(warp() * of_warp, choices), least((warp() + 1) * of_warp, choices)};
}

// Calls `visit(choice, found, lanes)` for every choice of a run: `found` is the expert, none for lanes behind the end, and `lanes` are
// those that have found `expert`.
template <class Visit>
DEVICE void each_choice(const u32* chosen, const Run& run, u32 expert, const Visit& visit) {
    for (u32 first = run.first; first < run.end; first += WARP) {
        const u32 choice = first + lane();
        const u32 found = choice < run.end ? chosen[choice] : ~0u;
        visit(choice, found, lanes_where(found == expert));
    }
}

// Where the pairs and the groups of `expert` begin, by counts of all; the lanes of a warp.
DEVICE Grouping grouping_of(const u32* counts, u32 expert, u32 rows_of_group) {
    Grouping before{0, 0};
    for (u32 other = lane(); other < expert; other += WARP) {
        before.first += counts[other];
        before.groups += ceil_div(counts[other], rows_of_group);
    }
    return Grouping{warp_sum(before.first), warp_sum(before.groups)};
}

// The groups of `count` pairs of an expert, by the threads of the block.
DEVICE void write_groups(const ExpertsArgs& args, const Grouping& own, u32 expert, u32 count) {
    const u32 groups = ceil_div(count, args.rows_of_group);
    for (u32 i = thread_index(); i < groups; i += block_threads()) {
        const u32 done = i * args.rows_of_group;
        args.group[own.groups + i] = Group{own.first + done, least(args.rows_of_group, count - done), expert, 0};
    }
    if (expert == args.logits.cols - 1 && thread_index() == 0) *args.groups = own.groups + groups;
}
