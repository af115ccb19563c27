"""Training at paper scale: annotation files to batches, and the Trainer that learns from them.

| what                                              | file                                                  |
|---------------------------------------------------|-------------------------------------------------------|
| annotation files to conversations; their mixture  | `annotations.py`, `mixture.py`                        |
| a conversation to tokens and labels               | `examples.py`                                         |
| with its videos, decoded by workers               | `dataset.py`; a frozen encoder's features: `encoded.py` |
| several of them to a batch, padded or packed      | `collate.py`                                          |
| what trains, at which rates, in which order       | `parts.py`, `optimise.py`, `adapters.py`; `plan.py`   |
| the Trainer; several processes; going on          | `trainer.py`; `distributed.py`; `checkpoints.py`      |
| from which weights, to which folder               | `start.py`, `export.py`                               |
| the log, and the FLOPs in it                      | `logs.py`, `flops.py`                                 |
| the verb, its settings, its launches              | `verb.py`, `settings.py`, `launch.py`                 |
| what a run would do; the memory it would need     | `preview.py`; `memory.py`                             |
"""
