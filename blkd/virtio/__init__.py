# SPDX-License-Identifier: Apache-2.0
"""virtio devices: what a driver sees of them, without sockets or files."""
