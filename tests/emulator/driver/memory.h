// The memory of the emulated device, and pinned memory of the host. Every allocation ends at a page that nobody may touch, and
// an address is used once: what was freed stays out of reach.
#pragma once
#include <cstddef>
#include <map>
#include <string>

#include "../machine.h"

namespace emulator {

enum class Kind : u8 { Device, Pinned };

struct Allocation {
    u8* at;
    std::size_t bytes;
    Kind kind;
    bool reachable;  // false until an allocation on a stream has been carried out
    bool freed;      // what touches it is an error
    bool leaving;    // a free of it waits on a stream
    bool bare;       // an address without memory
};

class Memory {
  public:
    // Null when the host or the range of addresses has no more. The bytes are 0xff.
    u8* allocate(std::size_t bytes, Kind kind, bool reachable);
    // Puts the bytes within reach, filled with 0xff.
    void reach(Allocation& allocation);
    // What is wrong with the bytes around it, else empty.
    std::string release(Allocation& allocation);

    // The allocation that holds `at`, or whose end is just before it; also one that was freed. Null if there never was one.
    Allocation* find(const void* at);
    // Empty if all of it is in one allocation that is in use, else what is wrong.
    std::string check(const void* at, std::size_t bytes);
    bool pinned(const void* at);
    std::string describe(const void* at);
    void release_all();
    // Allocations on the device of more bytes are bare from now on.
    void keep_bare(std::size_t largest) { largest_ = largest; }
    // Looks at the bytes around every allocation.
    std::string check_edges();

    u64 live_bytes(Kind kind) const { return live_[kind == Kind::Pinned]; }
    u64 live_allocations(Kind kind) const { return count_[kind == Kind::Pinned]; }

  private:
    bool reserve();
    std::string check_edge(const Allocation& allocation) const;

    std::map<std::size_t, Allocation> allocations_;  // by their first address, also those that were freed
    std::map<std::size_t, Allocation*> in_use_;
    u8* begin_ = nullptr;  // of the range that allocations are taken from
    u8* next_ = nullptr;
    u8* end_ = nullptr;
    std::size_t largest_ = ~std::size_t{0};
    u64 live_[2] = {};
    u64 count_[2] = {};
};

}  // namespace emulator
