# SPDX-License-Identifier: Apache-2.0
"""The command line: `blkd` and `vhost-user-blkd`."""
