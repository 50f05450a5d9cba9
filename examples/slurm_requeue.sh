#!/bin/bash
# One run in one folder, however often Slurm stops the job and starts it again:
#
#   sbatch --gpus=1 --time=04:00:00 examples/slurm_requeue.sh model=gpt2 hardware=a100
#
# The arguments are those of train.py. docs/preemption.md explains each line.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

run=outputs/slurm-$SLURM_JOB_ID
if [ -e "$run/run.json" ]; then
    python train.py resume="$run" &
else
    python train.py "$@" hydra.run.dir="$run" &
fi
train=$!

# Slurm signals this script alone; the run saves and ends with 75.
trap 'kill -USR1 $train' USR1
trap 'kill -TERM $train' TERM
# A trap ends `wait` while the run is still saving.
while kill -0 $train 2>/dev/null; do wait $train; done
wait $train
code=$?

case $code in
    75 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
