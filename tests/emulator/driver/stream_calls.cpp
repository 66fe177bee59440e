// Calls about streams and events.
#include <algorithm>

#include "driver.h"

using namespace emulator;

namespace {

constexpr u64 CHECKS_EVERY = 16;

// What a wait of the host ends with: now and then a look at what no page guards.
CUresult waited(const Call& call) {
    Driver& d = driver();
    if (++d.counters.synchronisations % CHECKS_EVERY == 0 && d.sticky == CUDA_SUCCESS)
        if (const std::string wrong = d.memory.check_edges(); !wrong.empty()) d.fail(CUDA_ERROR_ILLEGAL_ADDRESS, wrong);
    return call.done();
}

Event* event_of(CUevent handle) { return driver().events.count(handle) ? handle : nullptr; }

}  // namespace

EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    const Call call("cuStreamCreate");
    if (call.refused()) return call.refused();
    *stream = *driver().streams.insert(new Stream{(flags & 1) == 0, {}, nullptr}).first;
    return call.done();
}
EXPORT CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }

EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
    const Call call("cuStreamDestroy");
    if (call.refused()) return call.refused();
    Driver& d = driver();
    if (d.streams.count(handle) == 0) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (handle->capture) {
        invalidate(*handle->capture);
        d.active.erase(handle->capture);
        call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the stream captures");
    }
    d.run_stream(*handle);
    d.streams.erase(handle);
    delete handle;
    return call.done();
}

EXPORT CUresult cuStreamSynchronize(CUstream handle) {
    const Call call("cuStreamSynchronize");
    if (call.refused()) return call.refused();
    Stream* stream = driver().stream(handle);
    if (!stream) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream->capture) {
        invalidate(*stream->capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the stream captures");
    }
    // What the legacy stream stands for includes the blocking ones.
    if (stream == &driver().legacy)
        for (Stream* other : std::vector<Stream*>(driver().streams.begin(), driver().streams.end()))
            if (other->blocking) driver().run_stream(*other);
    driver().run_stream(*stream);
    return waited(call);
}

EXPORT CUresult cuStreamQuery(CUstream handle) {
    const Call call("cuStreamQuery");
    if (call.refused()) return call.refused();
    Stream* stream = driver().stream(handle);
    if (!stream) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream->capture) {
        invalidate(*stream->capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the stream captures");
    }
    if (stream->queue.empty()) return call.done();
    driver().run_one(*stream);  // so that a loop of queries ends
    return driver().sticky == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : driver().sticky;
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
    const Call call("cuStreamWaitEvent");
    if (call.refused()) return call.refused();
    Driver& d = driver();
    Stream* stream = d.stream(handle);
    Event* event = event_of(event_handle);
    if (!stream || !event) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream or event");
    if (event->capture) {
        if (d.active.count(event->capture) == 0) return call.wrong(CUDA_ERROR_INVALID_VALUE, "the event belongs to a capture that has ended");
        if (stream->capture && stream->capture != event->capture) {
            invalidate(*stream->capture);
            invalidate(*event->capture);
            return call.wrong(CUDA_ERROR_STREAM_CAPTURE_MERGE, "the event belongs to another capture");
        }
        if (stream == &d.legacy) return call.wrong(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy default stream cannot capture");
        stream->capture = event->capture;
        std::vector<u32>& tails = event->capture->tails[stream];
        for (u32 node : event->tails)
            if (std::find(tails.begin(), tails.end(), node) == tails.end()) tails.push_back(node);
        return call.done();
    }
    if (!event->marker) return call.done();
    if (stream->capture) {
        invalidate(*stream->capture);
        return call.wrong(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "the event was recorded outside the capture");
    }
    Op op;
    op.kind = Op::Kind::Wait;
    op.marker = event->marker;
    d.submit(*stream, std::move(op));
    return call.done();
}

EXPORT CUresult cuLaunchHostFunc(CUstream handle, void (*function)(void*), void* data) {
    const Call call("cuLaunchHostFunc");
    if (call.refused()) return call.refused();
    Stream* stream = driver().stream(handle);
    if (!stream) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    Op op;
    op.kind = Op::Kind::Host;
    op.host = function;
    op.data = data;
    return driver().submit(*stream, std::move(op));
}

// --- events -------------------------------------------------------------------------------------------------------------

EXPORT CUresult cuEventCreate(CUevent* event, unsigned flags) {
    const Call call("cuEventCreate");
    if (call.refused()) return call.refused();
    Event* made = new Event;
    made->timed = (flags & 2) == 0;
    driver().events.insert(made);
    *event = made;
    return call.done();
}

EXPORT CUresult cuEventDestroy_v2(CUevent handle) {
    const Call call("cuEventDestroy");
    if (call.refused()) return call.refused();
    if (driver().events.erase(handle) == 0) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such event");
    delete handle;
    return call.done();
}

EXPORT CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    const Call call("cuEventRecord");
    if (call.refused()) return call.refused();
    Stream* stream = driver().stream(stream_handle);
    Event* event = event_of(handle);
    if (!stream || !event) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such stream or event");
    event->capture = stream->capture;
    event->tails.clear();
    if (stream->capture) {
        event->marker = nullptr;
        event->tails = stream->capture->tails[stream];
        return call.done();
    }
    Op op;
    op.kind = Op::Kind::Record;
    op.marker = std::make_shared<Marker>();
    op.marker->stream = stream;
    event->marker = op.marker;
    driver().submit(*stream, std::move(op));
    return call.done();
}
EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned) { return cuEventRecord(event, stream); }

EXPORT CUresult cuEventQuery(CUevent handle) {
    const Call call("cuEventQuery", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    Event* event = event_of(handle);
    if (!event) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such event");
    if (event->capture) return call.wrong(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture");
    if (!event->marker || event->marker->done) return call.done();
    driver().run_one(*event->marker->stream);  // so that a loop of queries ends
    return driver().sticky == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : driver().sticky;
}

EXPORT CUresult cuEventSynchronize(CUevent handle) {
    const Call call("cuEventSynchronize", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    Event* event = event_of(handle);
    if (!event) return call.wrong(CUDA_ERROR_INVALID_HANDLE, "no such event");
    if (event->capture) return call.wrong(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture");
    if (event->marker) driver().run_until(event->marker);
    return waited(call);
}

EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    const Call call("cuEventElapsedTime", Call::UnsafeInCapture);
    if (call.refused()) return call.refused();
    if (!event_of(start) || !event_of(end) || !start->marker || !end->marker || !start->timed || !end->timed)
        return call.wrong(CUDA_ERROR_INVALID_HANDLE, "an event that was not recorded, or that takes no time");
    if (!start->marker->done || !end->marker->done) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>(static_cast<double>(end->marker->nanoseconds) - static_cast<double>(start->marker->nanoseconds)) / 1e6f;
    return call.done();
}
EXPORT CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) { return cuEventElapsedTime(milliseconds, start, end); }
