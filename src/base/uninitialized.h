// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// For a large local that is always written before it is read, on the way of
// every request. The release fills all others with zeros first
// (-ftrivial-auto-var-init), which takes as long as the work there is.
#pragma once

#define UNINITIALIZED __attribute__((uninitialized))
