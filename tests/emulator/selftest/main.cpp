// Runs every test, or the ones that are named. Ends with 1 if any failed.
#include "check.h"

#include <cstring>

namespace selftest {

namespace {
int failures = 0;
}

Test::Test(const char* name, void (*body)()) : name(name), body(body) { tests().push_back(*this); }

std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

void failed(const char* file, int line, const std::string& text) {
    ++failures;
    std::printf("  %s:%d: %s\n", file, line, text.c_str());
}

}  // namespace selftest

int main(int count, char** names) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    int bad = 0, run = 0;
    for (const selftest::Test& test : selftest::tests()) {
        bool wanted = count == 1;
        for (int i = 1; i < count; ++i) wanted |= std::strcmp(names[i], test.name) == 0;
        if (!wanted) continue;
        const int before = selftest::failures;
        test.body();
        const bool good = selftest::failures == before;
        std::printf("%s %s\n", good ? "ok  " : "FAIL", test.name);
        bad += !good;
        ++run;
    }
    std::printf("%d tests, %d failed\n", run, bad);
    return bad > 0 || run == 0;
}
