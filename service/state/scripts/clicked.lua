-- Note clicks on videos: a clicked one outlives the histories that hold it, and one that is
-- not registered yet leaves an empty value, so that it will.
--
-- KEYS: videos. ARGV: how long they live from now, in ms (0: for ever; -1: all do anyway).
-- Returns per video 1 where it is registered.
local life, known = tonumber(ARGV[1]), {}
for i = 1, #KEYS do
  local key = KEYS[i]
  known[i] = redis.call('STRLEN', key) > 0 and 1 or 0
  if life >= 0 then
    if known[i] == 0 then redis.call('SET', key, '', 'NX') end
    if life > 0 then redis.call('PEXPIRE', key, ARGV[1]) else redis.call('PERSIST', key) end
  end
end
return known
