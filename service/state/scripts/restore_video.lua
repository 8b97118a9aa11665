-- Put a video. KEYS: video. ARGV: value, time to live in ms (-1: none), 1 to replace another.
-- Returns 1 if put.
local old = redis.call('GET', KEYS[1])
if old and old ~= '' and (ARGV[3] == '0' or old == ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
