// The little that these tests need of a test framework. EXPECT counts and goes on; main returns how many failed.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

inline int failures = 0;

#define EXPECT(condition, ...)                                    \
  do {                                                            \
    if (!(condition)) {                                           \
      ++failures;                                                 \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf("" __VA_ARGS__);                                \
      std::printf("\n");                                          \
    }                                                             \
  } while (false)

// `expression` throws an exception whose message contains `text`.
#define EXPECT_THROWS(expression, text)                                     \
  do {                                                                      \
    std::string message = "nothing thrown";                                 \
    try {                                                                   \
      (void)(expression);                                                   \
    } catch (const std::exception& error) {                                 \
      message = error.what();                                               \
    }                                                                       \
    EXPECT(message.find(text) != std::string::npos, "%s", message.c_str()); \
  } while (false)
