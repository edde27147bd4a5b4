#!/usr/bin/env bash
# One node of several that train over ssh, without root.
#
#   gaguide-node worker                     answer ssh on port 2222 until stopped
#   gaguide-node train HOSTS [ARGUMENTS]    the same, and run gaguide.train on HOSTS (a,b,…; this one first)
#
# Both share the folder $SSH_FOLDER (default /ssh): `train` makes the nodes' key there, once. SLOTS is the number
# of ranks on a node, its GPUs (default 1).
set -euo pipefail

shared=${SSH_FOLDER:-/ssh}
port=2222

make_keys() {
    local key
    for key in id_ed25519 host_key; do
        [ -e "$shared/$key" ] || ssh-keygen -q -t ed25519 -N "" -C gaguide -f "$shared/$key"
    done
}

# The nodes know each other by the one host key that only they share.
use_keys() {
    local wait
    for wait in $(seq 60); do
        [ -e "$shared/host_key.pub" ] && break
        [ "$wait" = 60 ] && { echo "no keys in $shared: is the node that trains there?" >&2; exit 2; }
        sleep 1
    done
    install -d -m 700 ~/.ssh
    install -m 600 "$shared/id_ed25519" "$shared/host_key" ~/.ssh/
    install -m 600 "$shared/id_ed25519.pub" ~/.ssh/authorized_keys
    echo "* $(cat "$shared/host_key.pub")" > ~/.ssh/known_hosts
    cat > ~/.ssh/config <<END
Host *
    Port $port
    HostKeyAlias gaguide
    StrictHostKeyChecking yes
    LogLevel ERROR
END
    cat > ~/.ssh/sshd_config <<END
Port $port
HostKey $HOME/.ssh/host_key
AuthorizedKeysFile $HOME/.ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
SetEnv PATH=$PATH TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$HOME/.cache/torch_extensions}
END
}

wait_for() {
    local host tries
    for host in ${1//,/ }; do
        for tries in $(seq 60); do
            ssh -o ConnectTimeout=2 "$host" true 2> /dev/null && break
            [ "$tries" = 60 ] && { echo "$host does not answer ssh on port $port" >&2; exit 1; }
            sleep 1
        done
    done
}

case "${1:-}" in
    worker)
        use_keys
        exec /usr/sbin/sshd -D -e -f ~/.ssh/sshd_config
        ;;
    train)
        hosts=$2
        shift 2
        make_keys
        use_keys
        /usr/sbin/sshd -e -f ~/.ssh/sshd_config
        wait_for "$hosts"
        for host in ${hosts//,/ }; do echo "$host slots=${SLOTS:-1}"; done > ~/hostfile
        exec deepspeed --hostfile ~/hostfile --master_addr "${hosts%%,*}" --module gaguide.train "$@"
        ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
