"""Gradient rules side by side: see :mod:`.method_settings`."""
