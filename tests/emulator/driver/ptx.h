// What the emulated driver reads of PTX text.
#pragma once
#include <string>
#include <vector>

#include "../machine.h"

namespace emulator {

struct Entry {
    std::string name;
    std::vector<u32> parameters;  // bytes of each
    u32 threads = 0;              // .maxntid, 0 where there is none
};

struct Ptx {
    int major = 0;  // of the language
    int minor = 0;
    int target = 0;  // 80 for sm_80
    std::vector<Entry> entries;
};

// Empty, or what cannot be read.
std::string read_ptx(const std::string& text, Ptx& ptx);

}  // namespace emulator
