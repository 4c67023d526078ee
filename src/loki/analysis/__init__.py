"""Running attribution over many samples: files, processes, resuming. The mathematics is in `loki.kva`."""
