#!/usr/bin/env bash
# Train on several GPUs:
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several machines: the same command on each, with NNODES, MASTER_ADDR (one of them) and
# PORT in the environment. With --resume, when one was lost and the command runs there
# again, all go on from the last checkpoint, in a work directory that they share.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
config=$1 gpus=$2
shift 2
port=${PORT:-29500}
if [ "${NNODES:-1}" = 1 ]; then
    meet=(--master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$port")
else
    address=${MASTER_ADDR:?"NNODES is $NNODES: name the machine at which all meet"}
    # else torch (2.15) says where the processes meet to the first machines alone, and one
    # that comes back waits for it in vain
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meet=(--nnodes="$NNODES" --rdzv_backend=c10d --rdzv_endpoint="$address:$port"
        --rdzv_id=kdeov --max_restarts="${RESTARTS:-3}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
