#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace emulator {

namespace {

constexpr std::size_t LARGEST_RANGE = std::size_t{1} << 42;
constexpr std::size_t SMALLEST_RANGE = std::size_t{1} << 32;
constexpr u8 EDGE = 0xc5;
constexpr u8 POISON = 0xff;

std::size_t page() {
    static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

// Whole pages, from the one that holds the first byte.
u8* first_page(const Allocation& a) { return reinterpret_cast<u8*>(reinterpret_cast<std::uintptr_t>(a.at) / page() * page()); }
std::size_t pages(const Allocation& a) { return (static_cast<std::size_t>(a.at + a.bytes - first_page(a)) + page() - 1) / page() * page(); }
std::size_t address(const void* at) { return reinterpret_cast<std::size_t>(at); }

}  // namespace

// A host may limit the addresses of a process.
bool Memory::reserve() {
    for (std::size_t bytes = LARGEST_RANGE; bytes >= SMALLEST_RANGE; bytes /= 4) {
        void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED) continue;
        begin_ = next_ = static_cast<u8*>(range);
        end_ = next_ + bytes;
        return true;
    }
    std::perror("emulator: no range of addresses for the device's memory");
    return false;
}

u8* Memory::allocate(std::size_t bytes, Kind kind, bool reachable) {
    if (!next_ && !reserve()) return nullptr;
    const std::size_t rounded = (bytes + 15) / 16 * 16;
    const std::size_t whole = (rounded + page() - 1) / page() * page();
    if (static_cast<std::size_t>(end_ - next_) < whole + 2 * page()) {
        std::fprintf(stderr, "emulator: the range of addresses is used up, and none is used twice\n");
        return nullptr;
    }
    u8* end = next_ + page() + whole;
    next_ = end;
    Allocation made{end - rounded, bytes, kind, false, false, false, kind == Kind::Device && bytes > largest_};
    Allocation& kept = allocations_[address(made.at)] = made;
    live_[kind == Kind::Pinned] += bytes;
    ++count_[kind == Kind::Pinned];
    in_use_[address(made.at)] = &kept;
    if (reachable) reach(kept);
    return made.at;
}

void Memory::reach(Allocation& a) {
    a.reachable = true;
    if (a.bare) return;
    if (mprotect(first_page(a), pages(a), PROT_READ | PROT_WRITE) != 0) {
        std::perror("emulator: cannot put memory of the device within reach");
        std::abort();
    }
    std::memset(first_page(a), EDGE, pages(a));
    std::memset(a.at, POISON, a.bytes);
}

std::string Memory::check_edge(const Allocation& a) const {
    static const std::vector<u8> edge(page() + 16, EDGE);
    if (!a.reachable || a.freed || a.bare) return {};
    const u8* begin = first_page(a);
    const u8* end = a.at + a.bytes;
    if (std::memcmp(begin, edge.data(), static_cast<std::size_t>(a.at - begin)) != 0)
        return "something wrote to the bytes before an allocation of " + std::to_string(a.bytes);
    if (std::memcmp(end, edge.data(), static_cast<std::size_t>(begin + pages(a) - end)) != 0)
        return "something wrote behind the end of an allocation of " + std::to_string(a.bytes) + " bytes";
    return {};
}

std::string Memory::release(Allocation& a) {
    const std::string wrong = check_edge(a);
    a.freed = true;
    // A new mapping in its place gives the pages back.
    if (mmap(first_page(a), pages(a), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        std::perror("emulator: cannot take memory of the device out of reach");
    live_[a.kind == Kind::Pinned] -= a.bytes;
    --count_[a.kind == Kind::Pinned];
    in_use_.erase(address(a.at));
    return wrong;
}

void Memory::release_all() {
    while (!in_use_.empty()) release(*in_use_.begin()->second);
}

Allocation* Memory::find(const void* at) {
    auto after = allocations_.upper_bound(address(at));
    if (after == allocations_.begin()) return nullptr;
    Allocation& found = std::prev(after)->second;
    return address(at) <= address(found.at) + found.bytes ? &found : nullptr;
}

bool Memory::pinned(const void* at) {
    const Allocation* found = find(at);
    return found && found->kind == Kind::Pinned && !found->freed;
}

std::string Memory::describe(const void* at) {
    char text[256];
    auto after = allocations_.upper_bound(address(at));
    if (address(at) < 4096) return "a null pointer";
    if (!next_ || address(at) < address(begin_) || address(at) >= address(end_)) {
        std::snprintf(text, sizeof text, "%p, which is no memory of the device", at);
        return text;
    }
    const Allocation* before = after == allocations_.begin() ? nullptr : &std::prev(after)->second;
    if (after != allocations_.end() && (!before || address(at) >= address(before->at) + before->bytes + page())) {
        std::snprintf(text, sizeof text, "%zu bytes before an allocation of %zu", after->first - address(at), after->second.bytes);
        return text;
    }
    if (!before) return "memory that was never allocated";
    const std::size_t offset = address(at) - address(before->at);
    const char* state = before->freed ? "a freed allocation" : before->reachable ? "an allocation" : "an allocation that its stream has not yet made";
    std::snprintf(text, sizeof text, "byte %zu of %s of %zu bytes%s", offset, state, before->bytes, offset >= before->bytes ? " (behind its end)" : "");
    return text;
}

std::string Memory::check(const void* at, std::size_t bytes) {
    Allocation* found = find(at);
    if (!found || found->freed) return "not memory in use: " + describe(at);
    const std::size_t offset = address(at) - address(found->at);
    if (bytes > found->bytes - offset)
        return "out of bounds: " + std::to_string(bytes) + " bytes from byte " + std::to_string(offset) + " of an allocation of " + std::to_string(found->bytes);
    return {};
}

std::string Memory::check_edges() {
    for (const auto& entry : in_use_) {
        const std::string wrong = check_edge(*entry.second);
        if (!wrong.empty()) return wrong;
    }
    return {};
}

}  // namespace emulator
