# SPDX-License-Identifier: Apache-2.0
"""What stands behind a disk; knows neither sockets nor virtio."""
