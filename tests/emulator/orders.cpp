// Which order a launch is run in.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "machine.h"

namespace emulator {

namespace {

struct Settings {
    std::atomic<Orders> orders;
    std::atomic<u64> seed;
    std::atomic<u64> launches{0};

    Settings() : orders(Orders::Rotating), seed(0) {
        const char* const names[] = {"rotating", "ascending", "descending", "random"};
        if (const char* said = std::getenv("EMULATOR_ORDER")) {
            int found = -1;
            for (int i = 0; i < 4; ++i)
                if (std::strcmp(said, names[i]) == 0) found = i;
            if (found < 0) {
                std::fprintf(stderr, "emulator: EMULATOR_ORDER is %s, not rotating, ascending, descending or random\n", said);
                std::abort();
            }
            orders = static_cast<Orders>(found);
        }
        if (const char* said = std::getenv("EMULATOR_SEED")) seed = std::strtoull(said, nullptr, 10);
    }
};

Settings& settings() {
    static Settings kept;
    return kept;
}

}  // namespace

void set_orders(Orders orders, u64 seed) {
    settings().orders = orders;
    settings().seed = seed;
    settings().launches = 0;
}

void choose_order(Launch& launch) {
    const u64 turn = settings().launches++;
    launch.seed = settings().seed + turn;
    switch (settings().orders.load()) {
        case Orders::Rotating:
            launch.order = static_cast<Order>(turn % 3);
            launch.backwards = turn % 2 == 1;
            break;
        case Orders::Ascending:
            launch.order = Order::Ascending;
            launch.backwards = false;
            break;
        case Orders::Descending:
            launch.order = Order::Descending;
            launch.backwards = true;
            break;
        case Orders::Random:
            launch.order = Order::Random;
            launch.backwards = turn % 2 == 1;
            break;
    }
}

std::string launch(const char* name, u32 x, u32 y, u32 z, u32 threads, u32 shared, const void* args, std::size_t bytes) {
    const Kernel* kernel = find_kernel(name);
    if (!kernel) return std::string("no kernel is called ") + name;
    if (kernel->bytes != bytes)
        return std::string("kernel ") + name + " takes " + std::to_string(kernel->bytes) + " bytes of arguments, not " + std::to_string(bytes);
    Launch launch{kernel, args, {x, y, z}, threads, shared, Order::Ascending, false, 0};
    choose_order(launch);
    catch_faults(nullptr);
    return run(launch).text;
}

}  // namespace emulator
