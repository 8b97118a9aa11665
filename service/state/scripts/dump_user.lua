-- Read all facts of a user at one moment. KEYS: history, meta.
-- Returns {meta, entries, time to live of meta in ms}, or nothing where there is no such user.
local packed = redis.call('GET', KEYS[2])
if not packed then return false end
return {packed, redis.call('LRANGE', KEYS[1], 0, -1), redis.call('PTTL', KEYS[2])}
