"""What circuits can do before they are trained: see :mod:`.expressibility_settings`."""
