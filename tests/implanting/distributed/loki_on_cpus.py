"""The command line, in processes that shard weights though there are only CPUs, and say how many they shard."""

from typing import Any

from transformers import trainer

from loki.cli import main
from loki.ranks import Ranks
from tests.implanting.distributed.worker import Facts, shard_on_cpus


class PrintFacts(Facts):
    """Says at the end how the parameters were held."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            print(f"sharded {self.noted['sharded']} of {self.noted['parameters']} parameters")


if __name__ == "__main__":
    Ranks.current()  # lets the processes join
    shard_on_cpus()
    trainer.DEFAULT_CALLBACKS.append(PrintFacts)
    main()
