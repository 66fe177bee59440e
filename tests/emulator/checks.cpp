// Called by the checks that the compiler puts into kernels (`-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero`): what the device would
// refuse or do otherwise than the host. The structs are as the compiler lays them out.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "machine.h"

namespace {

struct Place {
    const char* file;
    u32 line;
    u32 column;
};

struct Mismatch {
    Place place;
    const void* type;
    u8 log_alignment;
    u8 kind;
};

[[noreturn]] void report(emulator::Cause cause, const Place& place, const char* what, u64 value) {
    if (emulator::running.state) emulator::fail(cause, "%s:%u: %s (%llx)", place.file, place.line, what, value);
    std::fprintf(stderr, "emulator: %s:%u: %s (%llx) outside a kernel\n", place.file, place.line, what, value);
    std::abort();
}

}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1(const Mismatch* data, std::uintptr_t at) {
    report(emulator::Cause::Alignment, data->place, "an access that is not aligned to its type", at);
}
void __ubsan_handle_out_of_bounds(const Place* place, std::uintptr_t index) {
    report(emulator::Cause::Address, *place, "an index outside its array", index);
}
void __ubsan_handle_divrem_overflow(const Place* place, std::uintptr_t number, std::uintptr_t) {
    report(emulator::Cause::Other, *place, "an integer divided by zero", number);
}
void __ubsan_handle_shift_out_of_bounds(const Place* place, std::uintptr_t, std::uintptr_t by) {
    report(emulator::Cause::Other, *place, "a shift by as many bits as there are, or more", by);
}
}
