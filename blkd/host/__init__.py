# SPDX-License-Identifier: Apache-2.0
"""What the operating system gives: descriptors, sockets, signals, the log; knows no disk."""
