# SPDX-License-Identifier: Apache-2.0
"""A front end without a virtual machine that loads any vhost-user-blk back end."""
