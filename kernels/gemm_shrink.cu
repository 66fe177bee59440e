// The base's GEMM of few rows, and beside it the products of A of the same x: what a block of either takes to begin and to end is hidden by the others.
// Semantics: those of gemm and of shrink, the same bits. The last `shrinks` blocks along x make the products of A: they are small, and fill processors that
// the others have left. Each of the others is one of the outputs of the kernel in gemm.cu. Rows at most as many as a block of that takes.
// Blocks of 256 threads, and of the shared bytes of the one or of SHRINK_SHARED, whichever is more: grid (ceil(w.rows / outs) + shrinks).
#include "gemm_blocks.cuh"
#include "shrink.cuh"

template <class E, u32 ROWS>
DEVICE bool is_shrink(const GemmShrinkArgs& args) {
    const u32 others = grid_x() - args.shrinks;
    if (block_index_x() < others) return false;
    shrink<E, ROWS>(args.low_rank, {block_index_x() - others, args.shrinks});
    return true;
}

KERNEL_RESIDENT(gemm_shrink_rows8_bf16, 256, 3, GemmShrinkArgs) {
    if (!is_shrink<Bf16, 8>(args)) gemm_rows8<Bf16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_rows8_f16, 256, 3, GemmShrinkArgs) {
    if (!is_shrink<F16, 8>(args)) gemm_rows8<F16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_rows16_bf16, 256, 2, GemmShrinkArgs) {
    if (!is_shrink<Bf16, 16>(args)) gemm_rows16<Bf16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_rows16_f16, 256, 2, GemmShrinkArgs) {
    if (!is_shrink<F16, 16>(args)) gemm_rows16<F16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_rows32_bf16, 256, 2, GemmShrinkArgs) {
    if (!is_shrink<Bf16, 32>(args)) gemm_rows32<Bf16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_rows32_f16, 256, 2, GemmShrinkArgs) {
    if (!is_shrink<F16, 32>(args)) gemm_rows32<F16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_rows64_bf16, 256, 1, GemmShrinkArgs) {
    if (!is_shrink<Bf16, 64>(args)) gemm_rows64<Bf16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_rows64_f16, 256, 1, GemmShrinkArgs) {
    if (!is_shrink<F16, 64>(args)) gemm_rows64<F16>(args.gemm, block_index_x(), 0);
}
KERNEL_RESIDENT(gemm_shrink_tiles64_bf16, 256, 2, GemmShrinkArgs) {
    if (!is_shrink<Bf16, 64>(args)) gemm_tiles<Bf16, 64>(args.gemm, 0, block_index_x());
}
KERNEL_RESIDENT(gemm_shrink_tiles64_f16, 256, 2, GemmShrinkArgs) {
    if (!is_shrink<F16, 64>(args)) gemm_tiles<F16, 64>(args.gemm, 0, block_index_x());
}
