-- Append clicks of one user; atomic, and a repeated call changes nothing.
--
-- KEYS: history (zset), meta (hash), event ids (zset).
-- ARGV: history length, event ids kept, then per click: time in ms, member, event id or ''.
-- Returns {history version, history length, verdict, verdict, ...}.
--
-- Order is left to the sorted set (score, then bytes): Lua's "<" follows the server's locale.
local history, meta, events = KEYS[1], KEYS[2], KEYS[3]
local length, kept = tonumber(ARGV[1]), tonumber(ARGV[2])
-- The first two places are for version and length: unpack() has a limit, a table has none.
local answer, changed = {'0', 0}, false

local function place(time, member)
  if redis.call('ZADD', history, 'NX', time, member) == 0 then
    return 'duplicate'
  end
  if redis.call('ZCARD', history) > length then
    if redis.call('ZRANK', history, member) == 0 then
      redis.call('ZREM', history, member)
      return 'too_old'
    end
    redis.call('ZREMRANGEBYRANK', history, 0, 0)
  end
  changed = true
  if redis.call('ZREVRANK', history, member) == 0 then
    return 'accepted'
  end
  return 'late'
end

for i = 3, #ARGV, 3 do
  local event = ARGV[i + 2]
  local verdict
  if event ~= '' and redis.call('ZSCORE', events, event) then
    verdict = 'duplicate'
  else
    verdict = place(ARGV[i], ARGV[i + 1])
    if event ~= '' and (verdict == 'accepted' or verdict == 'late') then
      redis.call('ZADD', events, redis.call('HINCRBY', meta, 'events', 1), event)
    end
  end
  answer[#answer + 1] = verdict
end
redis.call('ZREMRANGEBYRANK', events, 0, -kept - 1)

local version = tonumber(redis.call('HGET', meta, 'history_version') or '0')
if changed then
  -- Microseconds, so that the version of a user whose keys were deleted never comes back.
  local now = redis.call('TIME')
  version = math.max(version + 1, tonumber(now[1]) * 1000000 + tonumber(now[2]))
  redis.call('HSET', meta, 'history_version', string.format('%.0f', version))
end
answer[1] = string.format('%.0f', version)
answer[2] = redis.call('ZCARD', history)
return answer
