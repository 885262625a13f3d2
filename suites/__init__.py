# SPDX-License-Identifier: Apache-2.0
"""Test suites of others, run against blkd: the Linux kernel's own for vsock."""
