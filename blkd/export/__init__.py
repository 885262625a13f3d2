# SPDX-License-Identifier: Apache-2.0
"""One disk, offered at one socket."""
