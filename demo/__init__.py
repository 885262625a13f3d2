# SPDX-License-Identifier: Apache-2.0
"""A small Linux guest in QEMU whose disks blkd serves: for `make demo` and the guest tests."""
