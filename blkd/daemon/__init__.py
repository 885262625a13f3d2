# SPDX-License-Identifier: Apache-2.0
"""`blkd daemon`: many exports, each served by a process of its own."""
