"""How fast gradients vanish as circuits grow: see :mod:`.plateau_settings`."""
