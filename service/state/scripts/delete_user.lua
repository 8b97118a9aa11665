-- Delete a user, and remember for a while that clicks up to now are not to come back.
--
-- KEYS: history, meta, profile, lease. ARGV: how long to remember, in ms.
-- Returns {version, time up to which clicks are refused in ms, 1 where there were clicks}.
local packed = redis.call('GET', KEYS[2])
local version, floor, count = 0, 0, 0
if packed then
  local _
  _, version, floor, _, _, count = struct.unpack('>c2I8I6I4I4I2', packed)
end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
floor = math.max(floor, math.floor(now / 1000))
if count > 0 then
  -- A click may be a little ahead of this clock; its retry is refused, too.
  local newest = redis.call('LINDEX', KEYS[1], -1)
  if newest then floor = math.max(floor, (struct.unpack('>I6', newest))) end
  version = math.max(version + 1, now)
end
local header = struct.pack('>c2I8I6I4I4I2I2I6', 'M1', version, floor, 0, 0, 0, 0, 0)
redis.call('DEL', unpack(KEYS))
redis.call('SET', KEYS[2], header, 'PX', ARGV[1])
return {string.format('%.0f', version), string.format('%.0f', floor), count > 0 and 1 or 0}
