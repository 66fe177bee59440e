// Calls that capture what goes to a stream, and replay it.
#include <cstring>

#include "driver.h"

using namespace emulator;

namespace {

// Whether every last node of every stream comes before those of the origin.
bool joined(const Capture& capture) {
    std::vector<u32> left;
    if (auto found = capture.tails.find(capture.origin); found != capture.tails.end()) left = found->second;
    std::set<u32> seen(left.begin(), left.end());
    while (!left.empty()) {
        const u32 node = left.back();
        left.pop_back();
        for (u32 earlier : capture.body->nodes[node].after)
            if (seen.insert(earlier).second) left.push_back(earlier);
    }
    for (const auto& entry : capture.tails)
        for (u32 node : entry.second)
            if (seen.count(node) == 0) return false;
    return true;
}

bool written_by(const GraphBody& body, const u8* at, std::size_t bytes) {
    for (const Node& node : body.nodes)
        if (node.op.to && node.op.to < at + bytes && at < node.op.to + node.op.bytes) return true;
    return false;
}

bool read_by(const GraphBody& body, const u8* at, std::size_t bytes) {
    for (const Node& node : body.nodes)
        if (node.op.kind == Op::Kind::Copy && node.op.from < at + bytes && at < node.op.from + node.op.bytes) return true;
    return false;
}

}  // namespace

EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
    const Call call("cuStreamBeginCapture");
    if (call.refused()) return call.refused();
    Driver& d = driver();
    Stream* stream = d.stream(handle);
    if (!stream) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream == &d.legacy) return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot capture");
    if (stream->capture) return call.wrong(CUDA_ERROR_ILLEGAL_STATE, "the stream captures already");
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->id = ++d.captures;
    stream->capture->tails[stream];
    d.active.insert(stream->capture);
    return call.done();
}

EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    const Call call("cuStreamEndCapture");
    *graph = nullptr;
    if (call.refused()) return call.refused();
    Driver& d = driver();
    Stream* stream = d.stream(handle);
    if (!stream) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (!stream->capture) return call.wrong(CUDA_ERROR_ILLEGAL_STATE, "the stream does not capture");
    const std::shared_ptr<Capture> capture = stream->capture;
    if (capture->origin != stream) return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began on another stream");
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id())
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread");
    d.active.erase(capture);
    const auto leave = [&](Stream* member) {
        if (member->capture == capture) member->capture = nullptr;
    };
    for (Stream* member : d.streams) leave(member);
    if (capture->invalid) return call.wrong(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "something in the capture failed");
    if (!joined(*capture)) return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "work of another stream was not joined");
    ++d.counters.captures;
    *graph = *d.graphs.insert(new Graph{capture->body}).first;
    return call.done();
}

EXPORT CUresult cuStreamIsCapturing(CUstream handle, int* status) {
    const Call call("cuStreamIsCapturing");
    if (call.refused()) return call.refused();
    Stream* stream = driver().stream(handle);
    if (!stream) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return call.done();
}

EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream handle, int* status, u64* id, CUgraph* graph, const void** dependencies, std::size_t* count) {
    const CUresult result = cuStreamIsCapturing(handle, status);
    if (result != CUDA_SUCCESS) return result;
    if (id) *id = *status ? driver().stream(handle)->capture->id : 0;
    if (graph) *graph = nullptr;
    if (dependencies) *dependencies = nullptr;
    if (count) *count = 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
    thread_local int kept = CU_STREAM_CAPTURE_MODE_GLOBAL;
    const int before = kept;
    kept = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

// --- graphs -------------------------------------------------------------------------------------------------------------

// Nodes as far as anyone may count them: their handles are null.
EXPORT CUresult cuGraphGetNodes(CUgraph graph, void** nodes, std::size_t* count) {
    const Call call("cuGraphGetNodes");
    if (call.refused()) return call.refused();
    if (driver().graphs.count(graph) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such graph");
    const std::size_t all = graph->body->nodes.size();
    for (std::size_t i = 0; nodes && i < *count && i < all; ++i) nodes[i] = nullptr;
    *count = all;
    return call.done();
}

EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    const Call call("cuGraphDestroy");
    if (call.refused()) return call.refused();
    if (driver().graphs.erase(graph) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such graph");
    delete graph;
    return call.done();
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, u64 flags) {
    const Call call("cuGraphInstantiate");
    if (call.refused()) return call.refused();
    if (driver().graphs.count(graph) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such graph");
    // Automatic frees and device launches exclude each other.
    if ((flags & 1) && (flags & 4)) return call.wrong(CUDA_ERROR_INVALID_VALUE, "flags that exclude each other");
    *exec = *driver().execs.insert(new GraphExec{std::make_shared<GraphBody>(*graph->body)}).first;
    return call.done();
}
EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec* exec, CUgraph graph, void**, char*, std::size_t) { return cuGraphInstantiateWithFlags(exec, graph, 0); }

EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec) {
    const Call call("cuGraphExecDestroy");
    if (call.refused()) return call.refused();
    if (driver().execs.erase(exec) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such graph");
    delete exec;
    return call.done();
}

EXPORT CUresult cuGraphUpload(CUgraphExec exec, CUstream) {
    const Call call("cuGraphUpload");
    if (call.refused()) return call.refused();
    if (driver().execs.count(exec) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such graph");
    return call.done();
}

EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    const Call call("cuGraphLaunch");
    if (call.refused()) return call.refused();
    Driver& d = driver();
    Stream* stream = d.stream(handle);
    if (!stream) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (d.execs.count(exec) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "no such graph");
    if (stream->capture) {
        invalidate(*stream->capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the emulator captures no graphs in graphs");
    }
    const GraphBody& body = *exec->body;
    Op op;
    op.kind = Op::Kind::Graph;
    op.graph = exec->body;
    op.snapshots.resize(body.nodes.size());
    for (std::size_t i = 0; i < body.nodes.size(); ++i) {
        const Op& node = body.nodes[i].op;
        if (node.kind != Op::Kind::Copy || !d.pinned(node.from)) continue;
        if (d.pending(node.from, node.bytes, true) || written_by(body, node.from, node.bytes)) continue;
        op.snapshots[i].assign(node.from, node.from + node.bytes);
    }
    // Until the copy has run, its destination holds nothing that anyone may use.
    for (const Node& node : body.nodes)
        if (node.op.kind == Op::Kind::Copy && d.pinned(node.op.to) && !d.pending(node.op.to, node.op.bytes, false) && !read_by(body, node.op.to, node.op.bytes))
            std::memset(node.op.to, 0xff, node.op.bytes);
    d.submit(*stream, std::move(op));
    return call.done();
}
