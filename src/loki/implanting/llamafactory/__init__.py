"""LoKI with LlamaFactory: `loki train --backend llamafactory`, and what its own command line needs."""
