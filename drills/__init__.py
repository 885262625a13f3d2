# SPDX-License-Identifier: Apache-2.0
"""Drills: what goes wrong in practice, made to go wrong on purpose, again and again."""
