-- Store a profile unless the history has moved since it was read; give the lease back.
--
-- KEYS: meta, profile, lease. ARGV: history version as in meta, profile, token of the lease.
-- Returns 1 if stored.
if redis.call('GET', KEYS[3]) == ARGV[3] then redis.call('DEL', KEYS[3]) end
if redis.call('GETRANGE', KEYS[1], 2, 9) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
local expiry = redis.call('PTTL', KEYS[1])
if expiry > 0 then redis.call('PEXPIRE', KEYS[2], expiry) end
return 1
