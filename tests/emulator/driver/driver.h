// What the emulated driver keeps: streams with the work that waits on them, events, captures and graphs.
//
// Work is lazy: it runs when the host waits for it, when its memory is wanted, or when its stream goes. Between the steps that the
// host waits for, other streams run as a seeded draw says, so that a dependency nobody expressed shows as wrong data.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "api.h"
#include "memory.h"

namespace emulator {

// A place in a stream that others wait for.
struct Marker {
    Stream* stream;
    bool done = false;
    u64 nanoseconds = 0;  // when it was passed
};

enum class Direction : u8 { ToDevice, ToHost, OnDevice };

struct alignas(16) Chunk {
    u8 bytes[16];
};

struct Op {
    enum class Kind : u8 { Kernel, Copy, Set, Wait, Record, Reach, Free, Host, Graph };
    Kind kind = Kind::Record;

    Launch launch{};
    std::vector<Chunk> args;
    const Stream* stream = nullptr;  // that it was given to

    u8* to = nullptr;
    const u8* from = nullptr;
    std::size_t bytes = 0;
    Direction direction = Direction::OnDevice;
    bool from_staged = false;  // pageable memory was read when the copy was asked for
    bool watched = false;      // pinned memory must still be what it was then
    std::vector<u8> staged;

    u32 value = 0;  // of a set, `width` bytes of it
    u32 width = 1;

    std::shared_ptr<Marker> marker;
    Allocation* allocation = nullptr;
    void (*host)(void*) = nullptr;
    void* data = nullptr;

    std::shared_ptr<const struct GraphBody> graph;
    std::vector<std::vector<u8>> snapshots;  // of the pinned sources of the graph's nodes; empty where none is watched
};

struct Node {
    Op op;
    std::vector<u32> after;  // nodes that come before
};

struct GraphBody {
    std::vector<Node> nodes;
};

struct Capture {
    Stream* origin;
    int mode;
    std::thread::id thread;
    u64 id;
    bool invalid = false;
    std::shared_ptr<GraphBody> body = std::make_shared<GraphBody>();
    std::map<Stream*, std::vector<u32>> tails;  // the last nodes of every stream that takes part
};

struct Stream {
    bool blocking;  // works in turn with the legacy default stream
    std::deque<Op> queue;
    std::shared_ptr<Capture> capture;
};

struct Event {
    std::shared_ptr<Marker> marker;  // null until it is recorded
    std::shared_ptr<Capture> capture;
    std::vector<u32> tails;
    bool timed = true;
};

struct Function {
    const Kernel* kernel;
    Module* module;
    u32 most_shared;
};

struct Module {
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Graph {
    std::shared_ptr<GraphBody> body;
};

struct GraphExec {
    std::shared_ptr<const GraphBody> body;
};

struct Link {
    std::string ptx;
    std::string image;
};

struct Pool {
    u64 threshold = 0;
};

struct Counters {
    std::map<std::string, u64> launches;
    u64 copies[3] = {};
    u64 bytes[3] = {};
    u64 sets = 0;
    u64 graph_launches = 0;
    u64 captures = 0;
    u64 synchronisations = 0;
    u64 allocations = 0;
    u64 assembled = 0;
};

// What the environment says of the device.
struct Properties {
    u64 memory;
    int devices;
    int major;
    int minor;
    int multiprocessors;
    int driver_version;
    u32 most_shared;
    u64 seed;
};

struct Driver {
    std::recursive_mutex lock;
    Properties properties;
    Memory memory;
    bool initialised = false;
    u32 retained = 0;
    CUresult sticky = CUDA_SUCCESS;
    std::string last_error;
    Counters counters;
    bool dry = false;
    std::vector<Op> recorded;  // launches of a dry run
    u64 random = 0;
    u64 captures = 0;
    u64 leaked = 0;

    Stream legacy{true, {}, nullptr};
    std::set<Stream*> streams;
    std::set<Event*> events;
    std::set<Module*> modules;
    std::set<Graph*> graphs;
    std::set<GraphExec*> execs;
    std::set<Pool*> pools;
    std::set<Link*> links;
    std::set<std::shared_ptr<Capture>> active;  // captures that have not ended
    std::map<std::size_t, std::size_t> registered;  // host memory that was pinned in place
    Pool default_pool;

    Driver();

    // Null for a handle that is not one.
    Stream* stream(CUstream handle);

    // To a stream, or into its capture.
    CUresult submit(Stream& stream, Op op);
    std::shared_ptr<Marker> tail(Stream& stream);
    CUresult run_until(const std::shared_ptr<Marker>& marker);
    CUresult run_stream(Stream& stream);
    CUresult run_all();
    bool run_one(Stream& stream);

    bool pinned(const void* at) const;
    // Whether it is an address of the device without memory.
    bool bare(const void* at);
    // Whether work that waits reads or writes any of these bytes.
    bool pending(const u8* at, std::size_t bytes, bool writes) const;
    void fail(CUresult result, const std::string& text);
    u64 draw(u64 below);
    void destroy_context();

  private:
    void run_others(const Stream& wanted);
    void execute(Op& op);
    void execute_copy(const Op& op, const std::vector<u8>* snapshot);
    void execute_set(const Op& op);
    void execute_kernel(Op op);
    void execute_graph(const Op& op);
};

Driver& driver();

// Shared memory that a block may ask for.
u32 shared_of(int major, int minor);

// One call of the interface: holds the lock, and refuses what cannot be done now.
class Call {
  public:
    enum : u32 { NoContext = 1, UnsafeInCapture = 2 };
    explicit Call(const char* name, u32 flags = 0);
    CUresult refused() const { return refused_; }
    // Says what is wrong, and returns the result.
    CUresult wrong(CUresult result, const std::string& text) const;
    // What the call returns if nothing more is wrong.
    CUresult done() const;

  private:
    std::unique_lock<std::recursive_mutex> held_;
    const char* name_;
    CUresult refused_ = CUDA_SUCCESS;
};

// The context that the calling thread works in, or null.
extern thread_local CUcontext current;
extern const CUcontext PRIMARY;

void invalidate(Capture& capture);
const char* name_of(CUresult result);

}  // namespace emulator
