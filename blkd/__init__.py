# SPDX-License-Identifier: Apache-2.0
"""blkd: raw disk images as vhost-user-blk disks of running virtual machines."""

__version__ = "0.1.0"
