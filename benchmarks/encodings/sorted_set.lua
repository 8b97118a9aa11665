-- The history as a sorted set, event ids as another: score = time in ms, member = "MS:VIDEO".
-- KEYS: history, meta, event ids. ARGV: history length, ids kept, per click: time, member, id.
local answer, changed = {}, false
for i = 3, #ARGV, 3 do
  local event, verdict = ARGV[i + 2], 'a'
  if event ~= '' and redis.call('ZSCORE', KEYS[3], event) then
    verdict = 'd'
  elseif redis.call('ZADD', KEYS[1], 'NX', ARGV[i], ARGV[i + 1]) == 0 then
    verdict = 'd'
  else
    if redis.call('ZCARD', KEYS[1]) > tonumber(ARGV[1]) then
      redis.call('ZREMRANGEBYRANK', KEYS[1], 0, 0)
    end
    changed = true
    if event ~= '' then
      redis.call('ZADD', KEYS[3], redis.call('HINCRBY', KEYS[2], 'events', 1), event)
      redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -tonumber(ARGV[2]) - 1)
    end
  end
  answer[#answer + 1] = verdict
end
if changed then
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[2], 'version', now[1] .. string.format('%06d', now[2]))
end
return table.concat(answer)
