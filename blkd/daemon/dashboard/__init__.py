# SPDX-License-Identifier: Apache-2.0
"""A page for browsers that shows what all exports do."""
