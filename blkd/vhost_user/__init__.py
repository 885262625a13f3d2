# SPDX-License-Identifier: Apache-2.0
"""The vhost-user protocol, back-end side; it knows no device."""
