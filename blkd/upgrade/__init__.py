# SPDX-License-Identifier: Apache-2.0
"""A served disk handed from one process to another: what is said, in which order, and how.

`docs/upgrade.md` has the format field by field.
"""
