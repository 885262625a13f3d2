# SPDX-License-Identifier: Apache-2.0
"""Compares blkd with others side by side and writes docs/benchmarks.md; see compare/README.md."""
