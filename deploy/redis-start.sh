#!/bin/sh
# Starts Redis with redis.conf, and with REDIS_PASSWORD where one is set. The password goes in by
# standard input, so that no list of processes shows it.
set -eu
case "${REDIS_PASSWORD:-}" in
*[!A-Za-z0-9_-]*)
    # It is part of an address, where other characters mean something.
    echo "REDIS_PASSWORD holds a character that is not a letter, a digit, '-' or '_': choose another" >&2
    exit 1
    ;;
esac
secret=
if [ -n "${REDIS_PASSWORD:-}" ]; then
    secret="requirepass \"$REDIS_PASSWORD\""
fi
exec redis-server /etc/redis/redis.conf - <<CONFIG
$secret
CONFIG
