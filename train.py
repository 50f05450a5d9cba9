"""Train, prune and evaluate one configuration, or a sweep of them.

python train.py                                              LeNet-5 on real MNIST digits
python train.py model=gpt2 hardware=a10gx4 tracker=both      GPT-2 124M on FineWeb-Edu
python train.py -m pruning=magnitude,state seed=1,2,3        a sweep
python train.py resume=outputs/DATE/RUN                      continue a run
python train.py --help                                       every group, option and key
"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from adamwprune.command_line import exit_codes, prepare
from adamwprune.composition import to_config
from adamwprune.config import register_configs
from adamwprune.last_words import told
from adamwprune.resolvers import register_resolvers
from adamwprune.signal_handlers import hold_stops, ignore_stops, let_stops_in


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Run one job: plain dataclasses from here on, torch from here on."""
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    job_logging = OmegaConf.to_container(hydra_config.job_logging, resolve=True)
    with exit_codes(), told(directory):
        let_stops_in()
        from adamwprune.launch import launch

        try:
            launch(to_config(composed), directory, job_logging)
        finally:
            ignore_stops()  # how it ended has been told: a signal that comes now changes nothing


if __name__ == "__main__":
    register_configs()
    register_resolvers()
    with exit_codes():
        # A stop from here on waits until it can be told in the folder.
        sys.argv[1:] = prepare(sys.argv[1:], before_claim=hold_stops)
    main()
