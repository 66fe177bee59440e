// Where keys and values lie: see `KvLayer` in abi.cuh.
#pragma once
#include "rows.cuh"

// A place of the cache.
struct Place {
    u32 block;
    u32 offset;
    u32 block_size;
};

DEVICE Place place_of(u32 place, u32 block_size) { return {place / block_size, place % block_size, block_size}; }

// The block of a KV head, in numbers from the start of K or of V.
DEVICE u64 head_of(const KvLayer& kv, u32 block, u32 head, u32 block_size) {
    return (static_cast<u64>(block) * kv.kv_heads + head) * block_size * kv.head_dim;
}

// `head_dim` numbers of K.
template <class T>
DEVICE typename T::Bits* keys(const KvLayer& kv, const Place& place, u32 head) {
    const u64 at = head_of(kv, place.block, head, place.block_size) + static_cast<u64>(place.offset) * kv.head_dim;
    return static_cast<typename T::Bits*>(kv.k) + at;
}

// One number of V. Eight places of a number lie together, or all of a smaller block.
template <class T>
DEVICE typename T::Bits* value_at(const KvLayer& kv, const Place& place, u32 head, u32 number) {
    const u32 together = place.block_size < 8 ? place.block_size : 8;
    const u64 first = head_of(kv, place.block, head, place.block_size) + static_cast<u64>(place.offset / together) * together * kv.head_dim;
    return static_cast<typename T::Bits*>(kv.v) + first + number * together + place.offset % together;
}
