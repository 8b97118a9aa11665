-- Put videos of one group, and log those that replace others or are new.
--
-- KEYS: change log of the group (stream), then one key per video.
-- ARGV: entries of the log kept, 1 to replace others, then per video: id, value ('': clicked but not
--       registered), time to live in ms (-1: none). Returns how many were put.
local replace, put, changed, appeared = ARGV[2] == '1', 0, {}, {}

for i = 2, #KEYS do
  local key = KEYS[i]
  local id, value, life = ARGV[3 * i - 3], ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1])
  local old = redis.call('GET', key)
  local registered = old and old ~= ''
  -- Clicks here and those that were dumped: whichever ask for the longer life.
  local before = old and redis.call('PTTL', key) or 0
  if life ~= -1 and before ~= -1 then life = math.max(life, before, 1) else life = -1 end
  if not (old == value or registered and (value == '' or not replace)) then
    redis.call('SET', key, value)
    put = put + 1
    if registered then
      changed[#changed + 1] = id
    elseif value ~= '' then
      appeared[#appeared + 1] = id
    end
  end
  if life > 0 then
    redis.call('PEXPIRE', key, string.format('%.0f', life))
  elseif before > 0 then
    redis.call('PERSIST', key)
  end
end

if #changed + #appeared > 0 then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  local number = last and tonumber(last[2][2]) + 1 or 1
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*',
    'n', number, 'videos', table.concat(changed, '\n'), 'appeared', table.concat(appeared, '\n'))
end
return put
