// A registry of tests and the reporting of failures: all this program needs of a test framework.
#ifndef BN_TESTS_CHECK_H
#define BN_TESTS_CHECK_H

#include <string>
#include <vector>

namespace bn_tests {

using Test = void (*)();

// Registers a test while the program is loaded; `main` runs those whose name contains its argument.
struct Registration {
    Registration(const char *name, Test test);
};

// Counts one check; prints `what` where it failed, at most a few times per test. Any thread may call it.
bool check(bool held, const std::string &what);

// Says why a test, or a part of one, did not run here.
void skip(const std::string &reason);

// The instruction sets of this machine; `smooth`: those that give smooth activations the same bits.
std::vector<const char *> instruction_sets(bool smooth);

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif
#else
constexpr bool sanitized = false;
#endif

} // namespace bn_tests

#define BN_TEST(name)                                                                                                  \
    static void name();                                                                                                \
    static const bn_tests::Registration registration_of_##name(#name, name);                                           \
    static void name()

#endif
