// One function of the library on one problem against the oracle; each reports what is wrong, and where.
#ifndef BN_TESTS_VALUES_H
#define BN_TESTS_VALUES_H

#include "problem.h"

namespace bn_tests {

void check_moments(Problem &problem);
void check_affine(Problem &problem);
void check_forward(Problem &problem);
void check_backward_reduce(Problem &problem, bool with_bits);
void check_backward_elementwise(Problem &problem, bool with_bits);
void check_backward(Problem &problem, bool with_bits);

} // namespace bn_tests
#endif
