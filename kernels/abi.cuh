// What the host and the kernels agree on: the memory of an uploaded step, the table of deltas, and the arguments of every
// kernel. `src/ops/cuda/abi.rs` says the same in Rust; a test compares the sizes with those in the PTX.
//
// A kernel takes one struct by value. Pointers are device addresses. Rows, ids and places are u32; what may be absent is
// i32 with -1. Strides count numbers, not bytes.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

// --- sizes that grids are made of ------------------------------------------------------------------------------------
// `src/ops/cuda/sizes.rs` has the same names and values, which a test compares. Kernels assert what they make of them.

constexpr u32 ROWS_OF_GROUP = 64;   // of a Group, at most
constexpr u32 ROWS_OF_ITEM = 64;    // of an AttentionItem, at most
constexpr u32 PLANE_INPUTS = 1024;  // A x is summed in planes of so many inputs each, which expand adds up in ascending order
constexpr u32 SPLIT_PLACES = 256;   // KV indices that a split of attention walks

// What a block of a GEMM takes at once, and its shared bytes.
struct GemmBlock {
    u32 rows;
    u32 outs;
    u32 shared;
};

constexpr GemmBlock GEMM_ROWS8 = {8, 16, 49152};
constexpr GemmBlock GEMM_ROWS16 = {16, 32, 98304};
constexpr GemmBlock GEMM_ROWS32 = {32, 16, 98304};
constexpr GemmBlock GEMM_ROWS64 = {64, 32, 196608};
constexpr GemmBlock GEMM_TILES64 = {64, 128, 73728};
constexpr GemmBlock GEMM_TILES = {128, 128, 98304};
constexpr GemmBlock GEMM_F32 = {64, 64, 8704};
constexpr GemmBlock EXPERTS_ROWS = {32, 32, 98304};  // 16 outputs of gate and as many of up, or 32 of down

constexpr u32 SHRINK_RANKS = 16;  // of an item of few rows
constexpr u32 SHRINK_SHARED = 69680;
constexpr u32 SHRINK_SHARED_F32 = 12848;
constexpr u32 EXPAND_COLUMNS = 128;   // that blocks share y by
constexpr u32 EXPAND_SHARED = 41088;  // or more: see LowRankArgs::shared
constexpr u32 EXPAND_SHARED_F32 = 8704;

constexpr u32 NORM_SHARED = 32;

constexpr u32 ROTATE_SHARED = 32768;  // inputs of rows on their way; no block of a rotation has more

constexpr u32 ATTENTION_PART = 64;           // numbers of a head that a warp keeps
constexpr u32 ATTENTION_PAIRS = 16;          // rows and heads of a warp
constexpr u32 ATTENTION_WARPS = 8;           // of a block, at most
constexpr u32 ATTENTION_WARP_SHARED = 4096;  // of each warp, where a head has several parts
constexpr u32 PREFILL_PAIRS = 128;           // rows and heads of a block of attention_prefill
constexpr u32 PREFILL_HEAD_DIM = 128;        // of a head, at most
constexpr u32 PREFILL_NUMBER_SHARED = 384;   // for each number of a head

constexpr u32 SAMPLE_BLOCK = 512;        // ids of a block of sums
constexpr u32 SAMPLE_BLOCK_SHARED = 16;  // of each
constexpr u32 SAMPLE_SHARED = 24976;     // beside them

// --- the step ---------------------------------------------------------------------------------------------------------

// Up to ROWS_OF_GROUP rows of one adapter: `order[first .. first + len]` of their row set.
struct Group {
    u32 first;
    u32 len;
    u32 slot;
    u32 pad;
};

// Rows that an op works on: all of a step, or one group of its sampled rows. Row i of a buffer is row i of these.
struct RowSet {
    u32 count;
    u32 groups;
    const i32* slots;    // [count] adapter slot, -1 is the base
    const u32* sources;  // [count] row of the step
    const u32* order;    // rows that have an adapter, by slot, ascending within it
    const Group* group;  // [groups]
};

// Consecutive rows of one sequence, all that one walk over its KV serves. A sequence with more rows has several.
struct AttentionItem {
    u32 row;        // first row
    u32 rows;       // how many
    u32 position;   // KV index of the first; the others follow
    u32 blocks;     // where the sequence's block table begins in Step::blocks
};

struct Step {
    u32 rows;
    u32 items;
    const i32* ids;            // [rows] token id, -1 for prompt embeddings
    const u32* positions;      // [rows] KV index
    const u32* rope_rows;      // [rows] row of the rotary tables
    const u32* kv_places;      // [rows] block * block_size + offset
    const u32* blocks;         // block tables, one behind the other
    const AttentionItem* item; // [items]
};

// --- deltas -----------------------------------------------------------------------------------------------------------

// y[columns] += scaling * B(Ax). `first_rank` is the sum of the ranks before it at its site in its slot.
struct Pair {
    const void* a;  // [rank, in], rows `a_stride` apart; [vocab, rank] for an embedding
    const void* b;  // [columns, rank], rows `b_stride` apart
    u32 rank;
    u32 first_rank;
    u32 a_stride;
    u32 b_stride;
    u32 column;     // first output column
    u32 columns;    // how many
    f32 scaling;
    u32 a_rows;     // of an embedding its tokens
};

// A scale, a bias, a gain or the weight of a head for some columns.
struct ColumnVector {
    const f32* values;  // [columns]; of a head [columns, in]
    u32 column;
    u32 columns;
};

// y = c1 ∘ y + c2 ∘ rot(y) for some columns: of every `group` of them the first half y1 and the second half y2 turn together,
// rot(y) = (−y2, y1).
struct ColumnRotation {
    const f32* c;   // [2, columns]: c1, then c2
    u32 column;
    u32 columns;
    u32 group;
    u32 pad;
};

// y[columns] += S x, of which only what is not zero is kept, row by row, inputs ascending.
struct Sparse {
    const u32* starts;   // [columns + 1] where each row begins in the lists
    const u32* inputs;   // [count]
    const void* values;  // [count]
    u32 column;
    u32 columns;
    u32 count;
    u32 pad;
};

// Rows of a matrix in place of the base's.
struct ReplacedRows {
    const u32* ids;    // [count] rows of the base's matrix, ascending
    const void* rows;  // [count, in], `stride` numbers apart
    u32 count;
    u32 stride;
};

// x = x R, where R has square blocks along its diagonal, up to the order of the inputs: `interleaved` blocks share so many times
// `size` consecutive inputs, first the first halves of all of them, size / 2 inputs each, then their second halves.
struct Rotation {
    const f32* blocks;  // [size, size] each, `stride` numbers apart
    u32 size;           // inputs of a block
    u32 interleaved;
    u32 stride;         // 0: one block is there for all
    u32 pad;
};

// A sum of x, the residual stream, and h, what a block adds to it.
struct Blend {
    f32 of_x;
    f32 of_h;
};

// What is between the matrices of the pair that its site has too, and what x and h become before the sum.
struct Bottleneck {
    const f32* down_bias;  // [rank]
    const f32* up_bias;    // [hidden]
    Blend reads;
    Blend stream;
    Blend branch;
    u32 non_linearity;     // as `bend` of rows.cuh numbers them
    f32 slope;             // of a leaky relu
};

// y[columns] = D x, or y[columns] += scaling * D x. The matrices of one site in one slot cover other columns each.
struct DenseMatrix {
    const void* d;  // [columns, in], rows `stride` apart
    u32 stride;
    u32 column;
    u32 columns;
    u32 replaces;   // 1: the product takes the place of y
    f32 scaling;
    u32 pad;
};

// Entries of one site in one slot.
struct SiteEntries {
    u32 pair;      // first, in SlotEntries::pairs
    u32 pairs;
    u32 vector;    // first, in SlotEntries::vectors
    u32 vectors;
    u32 column_rotation;   // first, in SlotEntries::column_rotations
    u32 column_rotations;
    u32 sparse;     // first, in SlotEntries::sparse
    u32 sparses;
    u32 replaced;  // in SlotEntries::replaced
    u32 replaces;  // 1: it is there
    u32 rotation;  // first, in SlotEntries::rotations
    u32 rotations;
    u32 bottleneck;  // first, in SlotEntries::bottlenecks
    u32 bottlenecks;
    u32 matrix;   // first, in SlotEntries::dense
    u32 matrices;
    u32 expert;   // first, in SlotEntries::expert_starts
    u32 experts;  // those up to the last with a pair; where pairs of the last end follows
};

// All of one slot, by site.
struct SlotEntries {
    const SiteEntries* sites;  // [count]; sites behind the last have none
    const Pair* pairs;
    const ColumnVector* vectors;
    const ColumnRotation* column_rotations;
    const Sparse* sparse;
    const ReplacedRows* replaced;
    const Rotation* rotations;
    const Bottleneck* bottlenecks;
    const DenseMatrix* dense;
    const u32* expert_starts;  // where the pairs of each expert of a site begin, in `pairs`
    u32 count;
    u32 vocab;                 // tokens of the vocabulary; 0 where it is the base's
};

// Deltas at one site. `slots[slot]` is null where the slot is empty.
struct SiteTable {
    const SlotEntries* const* slots;
    u32 site;
    u32 pad;
};

// --- buffers ----------------------------------------------------------------------------------------------------------

// f32 rows, and beside them the rows as GEMMs read them (rounded to the compute dtype) where the buffer has that form.
struct Rows {
    f32* values;   // [rows, cols]
    void* input;   // [rows, input_stride], or null; columns from cols to input_stride are zero
    u32 cols;
    u32 input_stride;  // a multiple of 8
};

// A matrix [rows, cols], row-major; columns from cols to stride are zero, so that 16-byte loads need no edge.
struct Matrix {
    const void* values;
    u32 rows;
    u32 cols;
    u32 stride;  // a multiple of 8 numbers
    u32 pad;
};

// --- arguments: rows in, rows out (rows.cu) ---------------------------------------------------------------------------

// One block a row: embed, embedding_low_rank
struct EmbedArgs {
    const Step* step;
    Matrix table;
    Rows y;
    f32 scale;
    u32 pad;
};

struct CopyRowsArgs {
    Rows x;
    Rows y;
    u32 first;   // of x
    u32 start;   // of y
    u32 count;
    u32 pad;
};

struct KeptRowsArgs {  // keep_rows (y is what is kept), recall_rows (x is)
    const Step* step;
    Rows x;
    Rows y;
};

struct RowsArgs {  // gather_rows (y from x), add (y += x), gated_activation (y from x), round_rows (the input form of x)
    const RowSet* rows;
    Rows x;
    Rows y;
    u32 activation;  // 0 silu, 1 gelu tanh, 2 gelu erf
    u32 pad;
};

struct NormArgs {  // rms_norm, rms_norm_heads (x is y there)
    const RowSet* rows;
    Rows x;
    Rows y;
    const f32* weight;
    SiteTable gains;   // slots is null where no row has a gain
    f32 eps;
    u32 first;      // heads: first column
    u32 heads;
    u32 head_dim;
};

struct VectorArgs {  // add_bias (vector), softcap (number), scale_rows, bias_rows, rotate_outputs (deltas), scale_input, head_rows (deltas, x to y), layer_norm_rows (deltas, number)
    const RowSet* rows;
    Rows x;
    Rows y;
    const f32* vector;
    SiteTable deltas;
    f32 number;
    u32 pad;
};

struct SparseArgs {  // sparse
    const RowSet* rows;
    SiteTable deltas;
    Rows x;
    Rows y;
};

struct RotateArgs {  // rotate_input
    const RowSet* rows;
    Rows x;
    Rows y;            // may be x
    SiteTable deltas;
    u32 turn;          // which of the rotations of a slot; the first takes rows without any along
    u32 pad;
};

// Rows `first .. first + rows` of a step, which become one.
struct PoolSpan {
    u32 first;
    u32 rows;
    const f32* onto;  // the sum that they go on from, as wide as they are; null: it begins with the first of them
};

struct PoolArgs {
    const RowSet* rows;
    Rows x;
    Rows y;
    const PoolSpan* spans;  // of each row of y
};

struct BlendArgs {  // blend_rows
    const RowSet* rows;
    SiteTable deltas;
    Rows x;
    Rows h;
    Rows v;
};

struct EmbedLowRankArgs {  // embedding_low_rank, replace_embeddings
    const Step* step;
    const RowSet* rows;
    SiteTable deltas;
    Rows y;
    f32 scale;
    u32 pad;
};

// --- matrices (gemm.cu, lora.cu) --------------------------------------------------------------------------------------

struct GemmArgs {
    const RowSet* rows;
    Rows x;
    Matrix w;        // [out, in]
    Rows y;          // columns column .. column + w.rows
    u32 column;
    u32 pad;
};

struct ReplaceColumnsArgs {
    const RowSet* rows;
    SiteTable deltas;
    Rows x;
    Rows y;
};

struct DenseArgs {
    const RowSet* rows;
    SiteTable deltas;
    Rows x;
    Rows y;
};

struct LowRankArgs {  // shrink writes v, expand reads it; bend_shrunk makes one plane of it in between
    const RowSet* rows;
    SiteTable deltas;
    Rows x;
    f32* v;          // [planes][rows of the set][v_stride]: sums of A x, a plane for every PLANE_INPUTS inputs
    u32 v_stride;    // the largest sum of ranks of a slot at a site, or more
    u32 v_rows;      // rows of a plane
    Rows y;
    u32 shared;      // bytes of the block's shared memory: expand keeps as many rows of A x there as fit
    u32 planes;      // of v
};

struct GemmShrinkArgs {  // both of the same rows and x
    GemmArgs gemm;
    LowRankArgs low_rank;
    u32 shrinks;     // the last blocks along x make products of A, the others multiply the base's weight
    u32 pad;
};

// --- experts (experts.cu) ---------------------------------------------------------------------------------------------

struct Expert {
    const void* gate_up;  // [2 * inner, hidden]: gate, then up
    const void* down;     // [hidden, inner]
};

// A row and an expert that it chose are a pair. Pairs lie by expert, ascending, and by row within one. A group is up to
// `rows_of_group` pairs of the expert `slot`.
struct ExpertsArgs {  // of all kernels: route_experts, group_experts, gemm_gate_up, gemm_down, combine_experts
    const RowSet* rows;
    Rows logits;            // [rows, experts]
    Rows x;                 // [rows, hidden]
    Rows y;                 // [rows, hidden]
    const Expert* experts;
    u32* chosen;            // [rows][each] experts of a row, ascending
    f32* weights;           // [rows][each] of them in the row's sum
    u32* pairs;             // [rows][each] pair of each
    u32* order;             // [pairs] row of each
    u32* groups;            // how many there are
    Group* group;           // [groups]
    Rows activated;         // [pairs, inner]: values in f32, else the input form alone
    Rows outputs;           // [pairs, hidden]
    u32 each;               // experts of a row
    u32 rows_of_group;
    u32 gate_up_stride;
    u32 down_stride;
    u32 activation;         // as in RowsArgs
    u32 renormalise;        // 1: weights are divided by their sum
};

// The pairs of matrices that the adapter of a row has for an expert. Their `first_rank` is a multiple of 8.
struct ExpertPairs {
    const Pair* first;
    u32 count;
    u32 pad;
};

// Pairs of up to ROWS_OF_GROUP rows of one adapter with one expert: `list[first .. first + len]`. None where `len` is 0.
struct ExpertGroup {
    u32 first;
    u32 len;
    u32 slot;
    u32 expert;
};

struct ExpertDeltasArgs {  // of group_expert_deltas, shrink_experts, and of gemm_gate_up and gemm_down with deltas
    ExpertsArgs experts;
    SiteTable gate_up;            // slots is null where no row has any
    SiteTable down;
    ExpertPairs* of_gate_up;      // [pairs]
    ExpertPairs* of_down;         // [pairs]
    u32* list;                    // [pairs of rows that have an adapter] by group of the row set, expert and row
    ExpertGroup* group;           // [as many]
    void* v;                      // [pairs, v_stride]: A x, rounded; of gate and up, then of down
    u32 v_stride;                 // a multiple of 8
    u32 is_down;                  // 1: shrink_experts reads what down reads
};

// --- attention (attention.cu) -----------------------------------------------------------------------------------------

// K of one layer: [block][kv head][place][head_dim]; V: [block][kv head][place / 8][head_dim][8 places], so that both are read in
// 16-byte pieces along what a product sums over. A block of fewer than 8 places has [head_dim][block_size].
struct KvLayer {
    void* k;
    void* v;
    u32 kv_heads;
    u32 head_dim;
    u32 block_size;  // places of a block, a power of two
    u32 pad;
};

struct RopeArgs {
    const Step* step;
    Rows qkv;
    KvLayer kv;
    const f32* cos;  // [rope rows, half]
    const f32* sin;
    u32 heads;
    u32 half;
};

struct AttentionArgs {
    const Step* step;
    Rows qkv;
    KvLayer kv;
    Rows y;
    u32 heads;
    u32 window;    // 0 sees everything
    f32 scale;
    f32 softcap;   // 0 for none
    // Where splits of one query's KV are kept until they are combined: [rows][heads][splits] of (max, sum, head_dim numbers).
    f32* partial;
    u32 splits;    // 1: one block walks all of a query's KV and needs no `partial`
    u32 pad;
};

struct CopyBlockArgs {
    u8* k;             // of all layers, `layer_bytes` apart
    u8* v;
    u64 layer_bytes;
    u64 block_bytes;
    u32 source;
    u32 target;
};

struct WritePagesArgs {
    KvLayer kv;
    Rows k;
    Rows v;
    const u32* blocks;
    u32 count;
    u32 pad;
};

// --- sampling (sample.cu) ---------------------------------------------------------------------------------------------

struct IdNumber {
    u32 id;
    f32 number;
};

struct IdCount {
    u32 id;
    u32 count;
};

// What is wanted of one row of logits. Ranges are in the lists of SampleArgs.
struct OutputSpec {
    u32 scored;          // 1: score `target`, choose nothing
    u32 target;
    f32 temperature;     // 0 is greedy
    u32 top_k;           // 0 keeps all
    f32 top_p;
    f32 min_p;
    f64 uniform;         // the draw, in [0, 1)
    f32 repetition_penalty;
    f32 presence_penalty;
    f32 frequency_penalty;
    i32 top;             // alternatives to report; -1 reports no log-probabilities
    u32 biases;
    u32 biases_end;
    u32 banned;
    u32 banned_end;
    u32 counts;
    u32 counts_end;
};

struct Sampled {
    u32 non_finite;    // 1: the row has no token
    u32 token;
    f32 logprob;
    u32 alternatives;  // how many of SampleArgs::alternatives are written, best first
};

// What is wanted of all sampled rows of a step, and the lists that this points into.
struct SampleLists {
    const OutputSpec* outputs;
    const IdNumber* biases;
    const u32* banned;
    const IdCount* counts;
};

struct SampleArgs {  // sample, sample_own
    const RowSet* rows;
    Rows logits;              // not changed
    Rows added;               // sample_own: of tokens behind those of the base
    const SlotEntries* const* slots;  // sample_own: which vocabulary rows have
    const SampleLists* lists;
    f32* scratch;               // [rows, 2 * widest]
    Sampled* sampled;           // [count]
    IdNumber* alternatives;     // [count, most]
    u32 most;
    u32 vocab;                  // the base's
    u32 widest;                 // of any row, or more
    u32 first;                  // the output of row 0
};
