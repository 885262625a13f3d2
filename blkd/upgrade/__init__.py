# SPDX-License-Identifier: Apache-2.0
"""A running export given to a new process: the giver and the taker, and what they exchange.

`docs/upgrade.md` has the format field by field.
"""
