// Changes from one stack to another without a system call.
#pragma once

namespace emulator {

// A stack that does not run, and what its owner needs to run it again.
struct Context {
    void* place = nullptr;
};

// Makes a context that begins with `entry`, which must not return, on a stack that ends before `top`.
void prepare(Context& context, unsigned char* bottom, unsigned char* top, void (*entry)());

// Leaves what runs now in `from` and goes on with `to`.
void change(Context& from, const Context& to);

}  // namespace emulator
