-- Read a history, and take the lease to compute its profile.
--
-- KEYS: history, meta, lease. ARGV: lease in ms (0: none is wanted), its token.
-- Returns {time in ms, 1 where the lease is ours, header of meta, entries} or, where another
-- holds the lease, the first two alone.
local leased = 0
if ARGV[1] ~= '0' then
  -- A full server refuses the lease; that must not keep anyone from reading.
  local taken = redis.pcall('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[1])
  if not taken then return {0, 0} end
  if not taken.err then leased = 1 end
end
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
return {now, leased, redis.call('GETRANGE', KEYS[2], 0, 33), redis.call('LRANGE', KEYS[1], 0, -1)}
