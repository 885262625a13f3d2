# SPDX-License-Identifier: Apache-2.0
"""The control API: HTTP over a UNIX socket, its server, its client and what they exchange."""
