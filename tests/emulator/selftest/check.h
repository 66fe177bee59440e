// The frame of the emulator's own tests.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

namespace selftest {

struct Test {
    const char* name;
    void (*body)();
    Test(const char* name, void (*body)());
};

std::vector<Test>& tests();
void failed(const char* file, int line, const std::string& text);

}  // namespace selftest

#define TEST(name)                                          \
    static void name();                                     \
    static const ::selftest::Test name##_test(#name, name); \
    static void name()

#define CHECK(holds)                                                            \
    do {                                                                        \
        if (!(holds)) ::selftest::failed(__FILE__, __LINE__, #holds);           \
    } while (false)

// `text` must name what is wrong.
#define CHECK_SAYS(text, part)                                                                       \
    do {                                                                                             \
        const std::string said = (text);                                                             \
        if (said.find(part) == std::string::npos)                                                    \
            ::selftest::failed(__FILE__, __LINE__, "\"" + said + "\" does not say \"" + part + "\""); \
    } while (false)
