// What a slot has at a site.
#pragma once
#include "device.cuh"

// Entries of one kind, in order.
template <class Entry>
struct Entries {
    const Entry* first;
    u32 count;
};

typedef Entries<ColumnVector> Vectors;
typedef Entries<Pair> Pairs;
typedef Entries<ColumnRotation> ColumnRotations;
typedef Entries<Sparse> SparseMatrices;
typedef Entries<DenseMatrix> Matrices;
typedef Entries<Rotation> Rotations;

// Null for the base, for an empty slot, and for one that has nothing at the site or behind it.
DEVICE const SlotEntries* entries_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = deltas.slots && slot >= 0 ? deltas.slots[slot] : nullptr;
    return entries && deltas.site < entries->count ? entries : nullptr;
}

DEVICE Vectors vectors_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return {nullptr, 0};
    const SiteEntries site = entries->sites[deltas.site];
    return {entries->vectors + site.vector, site.vectors};
}

DEVICE Pairs pairs_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return {nullptr, 0};
    const SiteEntries site = entries->sites[deltas.site];
    return {entries->pairs + site.pair, site.pairs};
}

// Those of an expert, at a site that all experts of a layer share.
DEVICE Pairs pairs_of_expert(const SiteTable& deltas, i32 slot, u32 expert) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return {nullptr, 0};
    const SiteEntries site = entries->sites[deltas.site];
    if (expert >= site.experts) return {nullptr, 0};
    const u32* starts = entries->expert_starts + site.expert + expert;
    return {entries->pairs + starts[0], starts[1] - starts[0]};
}

DEVICE ColumnRotations column_rotations_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return {nullptr, 0};
    const SiteEntries site = entries->sites[deltas.site];
    return {entries->column_rotations + site.column_rotation, site.column_rotations};
}

DEVICE SparseMatrices sparse_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return {nullptr, 0};
    const SiteEntries site = entries->sites[deltas.site];
    return {entries->sparse + site.sparse, site.sparses};
}

// Null where a slot has none at the site.
DEVICE const ReplacedRows* replaced_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return nullptr;
    const SiteEntries site = entries->sites[deltas.site];
    return site.replaces != 0 ? entries->replaced + site.replaced : nullptr;
}

DEVICE Rotations rotations_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return {nullptr, 0};
    const SiteEntries site = entries->sites[deltas.site];
    return {entries->rotations + site.rotation, site.rotations};
}

// Null where the slot has no bottleneck at the site.
DEVICE const Bottleneck* bottleneck_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return nullptr;
    const SiteEntries site = entries->sites[deltas.site];
    return site.bottlenecks > 0 ? entries->bottlenecks + site.bottleneck : nullptr;
}

DEVICE Matrices matrices_of(const SiteTable& deltas, i32 slot) {
    const SlotEntries* entries = entries_of(deltas, slot);
    if (!entries) return {nullptr, 0};
    const SiteEntries site = entries->sites[deltas.site];
    return {entries->dense + site.matrix, site.matrices};
}
