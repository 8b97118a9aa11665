#!/bin/sh
# Starts Redis with redis.conf, and with REDIS_PASSWORD where one is set. The password goes in by
# standard input, so that no list of processes shows it.
set -eu
secret=
if [ -n "${REDIS_PASSWORD:-}" ]; then
    secret="requirepass \"$REDIS_PASSWORD\""
fi
exec redis-server /etc/redis/redis.conf - <<CONFIG
$secret
CONFIG
