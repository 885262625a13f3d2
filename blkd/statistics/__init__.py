# SPDX-License-Identifier: Apache-2.0
"""What an export counts and measures of its requests, and where that is kept."""
