// Runs the work of streams.
#include <chrono>
#include <cstdio>
#include <cstring>

#include "driver.h"

namespace emulator {

namespace {

constexpr std::size_t LONGEST_QUEUE = 1024;

bool overlap(const u8* a, std::size_t a_bytes, const u8* b, std::size_t b_bytes) { return a < b + b_bytes && b < a + a_bytes; }

bool touches(const Op& op, const u8* at, std::size_t bytes, bool writes) {
    if (op.kind == Op::Kind::Graph) {
        for (const Node& node : op.graph->nodes)
            if (touches(node.op, at, bytes, writes)) return true;
        return false;
    }
    // A kernel may be given pinned memory.
    if (op.kind == Op::Kind::Set) return writes && overlap(op.to, op.bytes, at, bytes);
    if (op.kind != Op::Kind::Copy) return false;
    if (writes) return overlap(op.to, op.bytes, at, bytes);
    return !op.from_staged && overlap(op.from, op.bytes, at, bytes);
}

CUresult result_of(Cause cause) {
    switch (cause) {
        case Cause::None: return CUDA_SUCCESS;
        case Cause::Address: return CUDA_ERROR_ILLEGAL_ADDRESS;
        case Cause::Alignment: return CUDA_ERROR_MISALIGNED_ADDRESS;
        case Cause::Deadlock: return CUDA_ERROR_LAUNCH_TIMEOUT;
        case Cause::Shape: return CUDA_ERROR_INVALID_VALUE;
        case Cause::Other: return CUDA_ERROR_LAUNCH_FAILED;
    }
    return CUDA_ERROR_LAUNCH_FAILED;
}

u64 now() {
    return static_cast<u64>(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

}  // namespace

u64 Driver::draw(u64 below) {
    u64 z = random += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (z ^ z >> 31) % below;
}

bool Driver::pinned(const void* at) const {
    if (const_cast<Memory&>(memory).pinned(at)) return true;
    auto after = registered.upper_bound(reinterpret_cast<std::size_t>(at));
    if (after == registered.begin()) return false;
    --after;
    return reinterpret_cast<std::size_t>(at) < after->first + after->second;
}

bool Driver::bare(const void* at) {
    const Allocation* found = memory.find(at);
    return found && found->bare;
}

bool Driver::pending(const u8* at, std::size_t bytes, bool writes) const {
    for (const Op& op : legacy.queue)
        if (touches(op, at, bytes, writes)) return true;
    for (const Stream* stream : streams)
        for (const Op& op : stream->queue)
            if (touches(op, at, bytes, writes)) return true;
    return false;
}

void Driver::fail(CUresult result, const std::string& text) {
    if (sticky != CUDA_SUCCESS) return;
    sticky = result;
    last_error = text;
    std::fprintf(stderr, "emulator: %s: %s\n", name_of(result), text.c_str());
}

std::shared_ptr<Marker> Driver::tail(Stream& stream) {
    Op op;
    op.kind = Op::Kind::Record;
    op.marker = std::make_shared<Marker>();
    op.marker->stream = &stream;
    stream.queue.push_back(op);
    return op.marker;
}

CUresult Driver::submit(Stream& stream, Op op) {
    op.stream = &stream;
    if (stream.capture) {
        Capture& capture = *stream.capture;
        if (capture.invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        const u32 index = static_cast<u32>(capture.body->nodes.size());
        capture.body->nodes.push_back(Node{std::move(op), capture.tails[&stream]});
        capture.tails[&stream] = {index};
        return CUDA_SUCCESS;
    }
    // The legacy stream and the blocking ones take turns.
    const auto follow = [&](Stream& other) {
        if (other.queue.empty() || &other == &stream) return;
        Op wait;
        wait.kind = Op::Kind::Wait;
        wait.marker = tail(other);
        stream.queue.push_back(wait);
    };
    if (&stream == &legacy) {
        for (Stream* other : streams)
            if (other->blocking) follow(*other);
    } else if (stream.blocking) {
        follow(legacy);
    }
    stream.queue.push_back(std::move(op));
    while (stream.queue.size() > LONGEST_QUEUE) run_one(stream);
    return CUDA_SUCCESS;
}

// Runs what the stream has first, and before it what that waits for.
bool Driver::run_one(Stream& stream) {
    if (stream.queue.empty()) return false;
    if (const Op& first = stream.queue.front(); first.kind == Op::Kind::Wait && !first.marker->done) {
        // What runs meanwhile may take this stream's first as well, so the next call looks again.
        run_until(std::shared_ptr<Marker>(first.marker));
        return true;
    }
    Op op = std::move(stream.queue.front());
    stream.queue.pop_front();
    execute(op);
    return true;
}

void Driver::run_others(const Stream& wanted) {
    std::vector<Stream*> ready;
    const auto consider = [&](Stream* other) {
        if (other == &wanted || other->queue.empty()) return;
        const Op& first = other->queue.front();
        if (first.kind != Op::Kind::Wait || first.marker->done) ready.push_back(other);
    };
    consider(&legacy);
    for (Stream* other : streams) consider(other);
    if (!ready.empty()) run_one(*ready[draw(ready.size())]);
}

CUresult Driver::run_until(const std::shared_ptr<Marker>& marker) {
    // Nothing of the others before, all of it, or a mixture.
    const u64 policy = draw(3);
    for (u64 i = 0; policy == 1 && i < 64; ++i) run_others(*marker->stream);
    while (!marker->done) {
        if (policy == 2 && draw(2) == 0) run_others(*marker->stream);
        if (marker->done) break;
        if (!run_one(*marker->stream)) {
            fail(CUDA_ERROR_ILLEGAL_STATE, "an event is waited for whose stream has gone");
            marker->done = true;
        }
    }
    return sticky;
}

CUresult Driver::run_stream(Stream& stream) {
    if (!stream.queue.empty()) run_until(tail(stream));
    return sticky;
}

CUresult Driver::run_all() {
    run_stream(legacy);
    for (Stream* stream : std::vector<Stream*>(streams.begin(), streams.end())) run_stream(*stream);
    return sticky;
}

void Driver::execute(Op& op) {
    if (op.kind == Op::Kind::Record) {
        op.marker->done = true;
        op.marker->nanoseconds = now();
        return;
    }
    if (sticky != CUDA_SUCCESS) return;
    switch (op.kind) {
        case Op::Kind::Record:
        case Op::Kind::Wait: return;
        case Op::Kind::Kernel: return execute_kernel(op);
        case Op::Kind::Copy: return execute_copy(op, op.watched ? &op.staged : nullptr);
        case Op::Kind::Set: return execute_set(op);
        case Op::Kind::Graph: return execute_graph(op);
        case Op::Kind::Host: return op.host(op.data);
        case Op::Kind::Reach: return memory.reach(*op.allocation);
        case Op::Kind::Free: {
            const std::string wrong = memory.release(*op.allocation);
            if (!wrong.empty()) fail(CUDA_ERROR_ILLEGAL_ADDRESS, wrong);
            return;
        }
    }
}

void Driver::execute_copy(const Op& op, const std::vector<u8>* snapshot) {
    const bool from_memory = op.direction != Direction::ToDevice || (!op.from_staged && memory.find(op.from));
    const bool to_memory = op.direction != Direction::ToHost || memory.find(op.to);
    std::string wrong = from_memory ? memory.check(op.from, op.bytes) : std::string();
    if (wrong.empty() && to_memory) wrong = memory.check(op.to, op.bytes);
    if (wrong.empty() && from_memory && !memory.find(op.from)->reachable) wrong = "the source is " + memory.describe(op.from);
    if (wrong.empty() && to_memory && !memory.find(op.to)->reachable) wrong = "the destination is " + memory.describe(op.to);
    if (!wrong.empty()) return fail(CUDA_ERROR_ILLEGAL_ADDRESS, "a copy of " + std::to_string(op.bytes) + " bytes, when it runs: " + wrong);
    if (snapshot && std::memcmp(op.from, snapshot->data(), op.bytes) != 0)
        return fail(CUDA_ERROR_ILLEGAL_STATE, "the host wrote to pinned memory while a copy of " + std::to_string(op.bytes) + " bytes from it was on its way");
    ++counters.copies[static_cast<int>(op.direction)];
    counters.bytes[static_cast<int>(op.direction)] += op.bytes;
    if (bare(op.to) || (!op.from_staged && bare(op.from))) return;
    std::memmove(op.to, op.from_staged ? op.staged.data() : op.from, op.bytes);
}

void Driver::execute_set(const Op& op) {
    std::string wrong = memory.check(op.to, op.bytes);
    if (wrong.empty() && !memory.find(op.to)->reachable) wrong = "the destination is " + memory.describe(op.to);
    if (!wrong.empty()) return fail(CUDA_ERROR_ILLEGAL_ADDRESS, "a set of " + std::to_string(op.bytes) + " bytes, when it runs: " + wrong);
    ++counters.sets;
    if (bare(op.to)) return;
    for (std::size_t i = 0; i < op.bytes; i += op.width) std::memcpy(op.to + i, &op.value, op.width);
}

void Driver::execute_kernel(Op op) {
    ++counters.launches[op.launch.kernel->name];
    if (dry) return recorded.push_back(std::move(op));
    op.launch.args = op.args.data();
    choose_order(op.launch);
    const Failure failure = run(op.launch);
    if (failure.cause != Cause::None) fail(result_of(failure.cause), failure.text);
}

void Driver::execute_graph(const Op& op) {
    ++counters.graph_launches;
    const std::vector<Node>& nodes = op.graph->nodes;
    std::vector<u32> ready, missing(nodes.size());
    std::vector<std::vector<u32>> behind(nodes.size());
    for (u32 i = 0; i < nodes.size(); ++i) {
        missing[i] = static_cast<u32>(nodes[i].after.size());
        for (u32 earlier : nodes[i].after) behind[earlier].push_back(i);
        if (missing[i] == 0) ready.push_back(i);
    }
    while (!ready.empty() && sticky == CUDA_SUCCESS) {
        const u64 chosen = ready.size() == 1 ? 0 : draw(ready.size());
        const u32 index = ready[chosen];
        ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(chosen));
        const Op& node = nodes[index].op;
        if (node.kind == Op::Kind::Kernel) execute_kernel(node);
        else if (node.kind == Op::Kind::Copy) execute_copy(node, op.snapshots[index].empty() ? nullptr : &op.snapshots[index]);
        else if (node.kind == Op::Kind::Set) execute_set(node);
        else if (node.kind == Op::Kind::Host) node.host(node.data);
        for (u32 next : behind[index])
            if (--missing[next] == 0) ready.push_back(next);
    }
}

}  // namespace emulator
