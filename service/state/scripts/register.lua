-- Store or delete videos of one group; writes only what differs, and logs what changed or is new:
-- a new video may be one that expired, of which others still hold what it was.
--
-- KEYS: change log of the group (stream), then one key per video.
-- ARGV: idle time in ms (0: never expires), entries of the log kept, then per video: id, value
--       ('' deletes). Returns per video 0 (as before), 1 (changed) or 2 (new).
local idle, results, changed, appeared = tonumber(ARGV[1]), {}, {}, {}

local function outlive(key, before)
  -- A clicked video was given longer: that is never cut short.
  if before ~= -1 and idle > 0 then
    redis.call('PEXPIRE', key, string.format('%.0f', math.max(before, idle)))
  end
end

for i = 2, #KEYS do
  local key, id, value = KEYS[i], ARGV[2 * i - 1], ARGV[2 * i]
  local old = redis.call('GET', key)
  if value == '' and (not old or old == '') then
    results[i - 1] = 0
  elseif value == '' then
    -- What remains, for as long as it would have lived, is that it was clicked.
    if redis.call('PTTL', key) > 0 then
      redis.call('SET', key, '', 'KEEPTTL')
    else
      redis.call('DEL', key)
    end
    results[i - 1] = 1
  elseif not old then
    if idle > 0 then
      redis.call('SET', key, value, 'PX', ARGV[1])
    else
      redis.call('SET', key, value)
    end
    results[i - 1] = 2
  elseif old == '' then
    local before = redis.call('PTTL', key)
    redis.call('SET', key, value)
    outlive(key, before)
    results[i - 1] = 2
  elseif old == value then
    local before = redis.call('PTTL', key)
    if idle == 0 and before ~= -1 then
      redis.call('PERSIST', key)
    elseif before < idle then
      outlive(key, before)
    end
    results[i - 1] = 0
  else
    local before = redis.call('PTTL', key)
    redis.call('SET', key, value)
    outlive(key, before)
    results[i - 1] = 1
  end
  if results[i - 1] == 1 then changed[#changed + 1] = id end
  if results[i - 1] == 2 then appeared[#appeared + 1] = id end
end

if #changed + #appeared > 0 then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  local number = last and tonumber(last[2][2]) + 1 or 1
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*',
    'n', number, 'videos', table.concat(changed, '\n'), 'appeared', table.concat(appeared, '\n'))
end
return results
