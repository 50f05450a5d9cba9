"""How much memory a run takes of each device, how large its micro batch may be, and how long it lasts.

    python -m adamwprune.fit model=gpt2 hardware=a10gx4

Predicted from the configuration: no GPU is used, no data are read, and what a device has free at this
moment plays no part, so that the answer is the same on every machine.

    trace.py     one training step of the real model on tensors without memory
    states.py    what the real optimizer and the real pruner keep of each weight
    memory.py    the two together, by part; the largest micro batch
    speed.py     samples per second, hours, disk
    report.py    as text, JSON, table, and as the files of conf/hardware_model
"""
