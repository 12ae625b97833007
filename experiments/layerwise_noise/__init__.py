"""Layerwise learning under noise, beside training of the complete circuit: see :mod:`.layerwise_settings`."""
