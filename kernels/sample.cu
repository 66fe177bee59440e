// Choosing tokens on the device. The definition is `sampler::Sampler`; what is summed in one order there is summed in that order here.
#include "sample_select.cuh"

// Candidates for a nucleus that are sorted without looking for its border, as on the host.
constexpr u32 FEW = 1024;
// Masses of weights are integers: weights are at most 1, and rows have fewer than 2^19 ids.
constexpr f32 MASS_OF_ONE = 17592186044416.0f;  // 2^44

// Extreme parameters may overflow; such a score stays comparable.
DEVICE f32 finite_score(f32 score) {
    constexpr f32 LARGEST = 3.40282346638528859812e38f;
    if (score != score) return -LARGEST;
    return score > LARGEST ? LARGEST : score < -LARGEST ? -LARGEST : score;
}

DEVICE f32 penalized(f32 score, u32 count, const OutputSpec& spec) {
    const f32 repeated = score < 0.0f ? score * spec.repetition_penalty : score / spec.repetition_penalty;
    const f32 presence = count > 0 ? spec.presence_penalty : 0.0f;
    return finite_score(finite_score(repeated) - static_cast<f32>(count) * spec.frequency_penalty - presence);
}

DEVICE bool is_untouched(const OutputSpec& spec) {
    return spec.biases == spec.biases_end && spec.banned == spec.banned_end && spec.counts == spec.counts_end;
}

// A row of logits, of `vocab` tokens, with room for twice as many numbers. Where tokens are added to the base's, the logits themselves lie in
// the first half of it, until something else does.
struct Row {
    u32 index;
    u32 vocab;
    const f32* logits;
    f32* scratch;
};

// The logits with bias, penalties and bans applied, in this order. No id is in a list twice.
DEVICE void adjust(const SampleArgs& args, const OutputSpec& spec, const Row& row, f32* scores) {
    for (u32 id = thread_index(); id < row.vocab; id += SAMPLE_THREADS) scores[id] = row.logits[id];
    block_sync();
    for (u32 i = spec.biases + thread_index(); i < spec.biases_end; i += SAMPLE_THREADS) {
        const IdNumber bias = args.lists->biases[i];
        if (bias.id < row.vocab) scores[bias.id] = finite_score(scores[bias.id] + bias.number);
    }
    block_sync();
    for (u32 i = spec.counts + thread_index(); i < spec.counts_end; i += SAMPLE_THREADS) {
        const IdCount seen = args.lists->counts[i];
        if (seen.id < row.vocab) scores[seen.id] = penalized(scores[seen.id], seen.count, spec);
    }
    block_sync();
    for (u32 i = spec.banned + thread_index(); i < spec.banned_end; i += SAMPLE_THREADS) {
        if (args.lists->banned[i] < row.vocab) scores[args.lists->banned[i]] = f32_of_bits(MINUS_INFINITY);
    }
    block_sync();
}

// Which of a row's weights may be drawn.
struct Drawable {
    f32 floor;
    Border border;  // of those equal to its key, ids up to its last
};

DEVICE f32 drawable(const Drawable& which, const f32* weights, u32 id) {
    const f32 weight = weights[id];
    const bool left_out = bits_of(weight) == which.border.key && id > which.border.last;
    return weight >= which.floor && !left_out ? weight : 0.0f;
}

// The id at which the running sum of a block of weights exceeds what is left, from Desk::weights, by one thread.
DEVICE u32 walk(u32 count, u32 first, f64 left) {
    u32 found = first;
    for (u32 i = 0; i < count; i++) {
        const f32 weight = desk().weights[i];
        if (weight > 0.0f) {
            found = first + i;
            left -= static_cast<f64>(weight);
            if (left < 0.0) break;
        }
    }
    return found;
}

// Inverse CDF in ascending id order over the blocks' sums, then over one block. `otherwise` where every weight is zero.
DEVICE u32 draw(const f32* weights, u32 count, const Drawable& which, f64 total, f64 uniform, u32 otherwise) {
    const u32 blocks = blocks_of(count);
    const f64 target = uniform * total;
    u64 first = NO_RANK, last = NO_RANK;
    for (u32 block = thread_index(); block < blocks; block += SAMPLE_THREADS) {
        const f64 sum = block_sums()[block];
        if (sum > 0.0) {
            last = ~static_cast<u64>(block) - 1;
            if (first == NO_RANK && target < block_sums()[blocks + block] + sum) first = block;
        }
    }
    first = block_least(first);
    last = block_least(last);
    if (last == NO_RANK) return otherwise;
    const u32 block = static_cast<u32>(first != NO_RANK ? first : ~(last + 1));
    const u32 begin = block * SUM_BLOCK, length = count - begin < SUM_BLOCK ? count - begin : SUM_BLOCK;
    for (u32 i = thread_index(); i < length; i += SAMPLE_THREADS) desk().weights[i] = drawable(which, weights, begin + i);
    block_sync();
    if (thread_index() == 0) desk().number = walk(length, begin, target - block_sums()[blocks + block]);
    block_sync();
    return desk().number;
}

// How many of the first `count` weights of the desk, best first, it takes to reach the goal, by one thread.
DEVICE u32 reach(u32 count, f64 goal) {
    f64 sum = 0.0;
    for (u32 i = 0; i < count; i++) {
        sum += static_cast<f64>(desk().weights[i]);
        if (sum >= goal) return i + 1;
    }
    return count;
}

DEVICE f64 sum_of_desk(u32 count) {
    f64 sum = 0.0;
    for (u32 i = 0; i < count; i++) sum += static_cast<f64>(desk().weights[i]);
    return sum;
}

// The draw from sorted candidates, by one thread: in ascending ids, keys are (id, weight).
DEVICE u32 draw_by_id(u32 count, f64 uniform) {
    f64 total = 0.0;
    for (u32 i = 0; i < count; i++) total += static_cast<f64>(f32_of_bits(static_cast<u32>(desk().keys[i])));
    f64 left = uniform * total;
    u32 last = static_cast<u32>(desk().keys[0] >> 32);
    for (u32 i = 0; i < count; i++) {
        const f32 weight = f32_of_bits(static_cast<u32>(desk().keys[i]));
        const u32 id = static_cast<u32>(desk().keys[i] >> 32);
        left -= static_cast<f64>(weight);
        if (left < 0.0) return id;
        if (weight > 0.0f) last = id;
    }
    return last;
}

// Draws from candidates that are sorted by rank, their weights on the desk: of those that top-p keeps, of these that min-p keeps.
// `goal` is the mass that top-p keeps, below zero to be taken from the candidates themselves.
DEVICE u32 draw_from_candidates(u32 count, f64 goal, const OutputSpec& spec) {
    if (thread_index() == 0) {
        u32 kept = count;
        if (spec.top_p < 1.0f) kept = reach(count, goal >= 0.0 ? goal : static_cast<f64>(spec.top_p) * sum_of_desk(count));
        desk().before[0] = kept > 0 ? kept : 1;
        desk().number = 1;
    }
    block_sync();
    const u32 kept = desk().before[0];
    for (u32 i = thread_index(); i < kept; i += SAMPLE_THREADS) {
        const bool likely = desk().weights[i] >= spec.min_p;
        if (likely && (i + 1 == kept || !(desk().weights[i + 1] >= spec.min_p))) desk().number = i + 1;
    }
    block_sync();
    const u32 drawn = desk().number;
    for (u32 i = thread_index(); i < drawn; i += SAMPLE_THREADS) {
        desk().keys[i] = static_cast<u64>(static_cast<u32>(desk().keys[i])) << 32 | bits_of(desk().weights[i]);
    }
    sort_keys(drawn);
    if (thread_index() == 0) desk().number = draw_by_id(drawn, spec.uniform);
    block_sync();
    return desk().number;
}

// Top-p and min-p over the weights of a row, `total` in all, and the draw.
DEVICE u32 draw_from_row(u32 vocab, const OutputSpec& spec, const f32* weights, u32* list, f64 total, u32 otherwise) {
    Drawable which{spec.min_p, Border{~0u, ~0u}};
    if (spec.top_p < 1.0f) {
        const f64 goal = static_cast<f64>(spec.top_p) * total;
        // What is lighter weighs, all together, a little less than what the nucleus leaves out: it does without it.
        const f32 floor = static_cast<f32>(0.999 * (total - goal) / static_cast<f64>(vocab));
        const auto holds = [&](u32 id) { return weights[id] >= floor; };
        const u32 held = count_where(vocab, holds);
        if (held <= FEW) {
            put_where(vocab, holds, [&](u32 place, u32 id) { desk().keys[place] = rank_of(weights[id], id); });
            sort_keys(held);
            for (u32 i = thread_index(); i < held; i += SAMPLE_THREADS) desk().weights[i] = score_of_rank(desk().keys[i]);
            block_sync();
            return draw_from_candidates(held, goal, spec);
        }
        put_where(vocab, holds, [&](u32 place, u32 id) { list[place] = id; });
        const auto key = [&](u32 id) { return bits_of(weights[id]); };
        const auto mass = [](u32 bits) { return static_cast<u64>(f32_of_bits(bits) * MASS_OF_ONE); };
        const Range range{bits_of(floor), bits_of(1.0f) + 1};
        const Border border = border_of<u64, PROBES_OF_MASSES>(list, held, range, static_cast<u64>(goal * static_cast<f64>(MASS_OF_ONE)), key, mass);
        if (f32_of_bits(border.key) >= spec.min_p) which = Drawable{f32_of_bits(border.key), border};
    }
    if (which.floor > 0.0f) total = sum_blocks(vocab, [&](u32 id) { return drawable(which, weights, id); });
    return draw(weights, vocab, which, total, spec.uniform, otherwise);
}

// Temperature, top-k, top-p, min-p and the draw. `scores` are finite or minus infinity, the best of them finite; they may lie in the
// first half of the row's scratch.
DEVICE u32 choose(const OutputSpec& spec, const Row& row, const f32* scores, const Best& best) {
    const u32 likeliest = static_cast<u32>(best.rank);
    if (spec.temperature == 0.0f || spec.top_k == 1) return likeliest;
    const f32 most = score_of_rank(best.rank);
    f32* weights = row.scratch + row.vocab;
    Border border{0, ~0u};
    if (spec.top_k > 0 && spec.top_k < row.vocab) {
        const Selected selected = select_best(scores, row.vocab, spec.top_k, best, reinterpret_cast<u32*>(weights));
        if (!selected.many) {
            for (u32 i = thread_index(); i < selected.count; i += SAMPLE_THREADS) {
                desk().weights[i] = exp_nonpositive((score_of_rank(desk().keys[i]) - most) / spec.temperature);
            }
            block_sync();
            return draw_from_candidates(selected.count, -1.0, spec);
        }
        border = selected.border;
    }
    const f64 total = sum_blocks(row.vocab, [&](u32 id) {
        const f32 score = scores[id];
        const f32 weight = is_kept(border, ascending(score), id) ? exp_nonpositive((score - most) / spec.temperature) : 0.0f;
        weights[id] = weight;
        return weight;
    });
    return draw_from_row(row.vocab, spec, weights, reinterpret_cast<u32*>(row.scratch), total, likeliest);
}

// Log-probabilities of the token and of the best of the row: log-softmax of the logits as they are.
DEVICE Sampled report(const SampleArgs& args, const OutputSpec& spec, const Row& row, const Best& raw, u32 token) {
    Sampled sampled{0, token, 0.0f, 0};
    if (spec.top < 0) return sampled;
    const f32 most = score_of_rank(raw.rank);
    const f64 log_sum = static_cast<f64>(most) + log_of(sum_blocks(row.vocab, [&](u32 id) { return exp_nonpositive(row.logits[id] - most); }));
    sampled.logprob = token < row.vocab ? static_cast<f32>(static_cast<f64>(row.logits[token]) - log_sum) : f32_of_bits(MINUS_INFINITY);
    const u32 wanted = static_cast<u32>(spec.top) < args.most ? static_cast<u32>(spec.top) : args.most;
    if (wanted == 0) return sampled;
    u32* list = reinterpret_cast<u32*>(row.scratch + row.vocab);
    sampled.alternatives = select_best(row.logits, row.vocab, wanted < row.vocab ? wanted : row.vocab, raw, list).count;
    for (u32 i = thread_index(); i < sampled.alternatives; i += SAMPLE_THREADS) {
        const u64 rank = desk().keys[i];
        const u32 id = static_cast<u32>(rank);
        args.alternatives[static_cast<u64>(row.index) * args.most + i] = IdNumber{id, static_cast<f32>(static_cast<f64>(row.logits[id]) - log_sum)};
    }
    return sampled;
}

// How many logits a row has: the base's number, or that of its adapter's vocabulary.
DEVICE u32 vocabulary_of(const SampleArgs& args, u32 row) {
    const i32 slot = args.rows->slots[row];
    const SlotEntries* entries = slot >= 0 ? args.slots[slot] : nullptr;
    return entries && entries->vocab > 0 ? entries->vocab : args.vocab;
}

// The logits of the base, then those of the tokens added to them, to the row's scratch.
DEVICE void join_added(const SampleArgs& args, const Row& row) {
    const f32* base = args.logits.values + static_cast<u64>(row.index) * args.logits.cols;
    const f32* added = args.added.values + static_cast<u64>(row.index) * args.added.cols;
#pragma unroll 1
    for (u32 id = thread_index(); id < row.vocab; id += SAMPLE_THREADS) row.scratch[id] = id < args.vocab ? base[id] : added[id - args.vocab];
    block_sync();
}

template <bool OWN>
DEVICE Row row_of(const SampleArgs& args, u32 index) {
    f32* scratch = args.scratch + static_cast<u64>(index) * 2 * args.widest;
    const f32* base = args.logits.values + static_cast<u64>(index) * args.logits.cols;
    if (!OWN) return Row{index, args.vocab, base, scratch};
    const u32 vocab = vocabulary_of(args, index);
    return Row{index, vocab, vocab > args.vocab ? scratch : base, scratch};
}

// `OWN`: rows may have other vocabularies than the base's. Where none has, nothing of it is kept in registers.
template <bool OWN>
DEVICE void sample_row(const SampleArgs& args) {
    if (block_index_x() >= args.rows->count) return;
    const Row row = row_of<OWN>(args, block_index_x());
    const bool joined = OWN && row.logits == row.scratch;
    if (joined) join_added(args, row);
    const OutputSpec& spec = args.lists->outputs[args.first + row.index];
    const Best raw = best_of(row.logits, row.vocab);
    Best best = raw;
    const f32* scores = row.logits;
    if (raw.finite && spec.scored == 0 && !is_untouched(spec)) {
        adjust(args, spec, row, row.scratch);
        scores = row.scratch;
        best = best_of(scores, row.vocab);
    }
    Sampled sampled{1, 0, 0.0f, 0};
    if (raw.finite && best.rank != NO_RANK) {
        const u32 token = spec.scored != 0 ? spec.target : choose(spec, row, scores, best);
        if (joined && spec.top >= 0) {
            block_sync();  // what was chosen from has been read
            join_added(args, row);
        }
        sampled = report(args, spec, row, raw, token);
    }
    if (thread_index() == 0) args.sampled[row.index] = sampled;
}

// Semantics: for each row i of a group of sampled rows: what `sampler::Sampler` makes of row i of `logits` by its output, a token
// chosen or one scored. logits [count, vocab] f32. The logits are not changed.
// One block of 1024 threads a row, grid (rows at most); shared bytes SAMPLE_SHARED + SAMPLE_BLOCK_SHARED * ceil(widest / SAMPLE_BLOCK).
KERNEL(sample, 1024, SampleArgs) { sample_row<false>(args); }

// Semantics: as above, where a row of a slot with a vocabulary of its own has as many logits as that has tokens: fewer than the base's, or those
// of `added` [count, added.cols] behind them. All other rows have the bits of `sample`. The same grid and shared bytes.
KERNEL(sample_own, 1024, SampleArgs) { sample_row<true>(args); }
