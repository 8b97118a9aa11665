-- The history as one string that is rewritten: entries of 6 bytes of time, 6 of the event's
-- mark, the id and its length, oldest first; an 8-byte version in front.
-- KEYS: history. ARGV: history length, 0, per click: time and id, mark.
local value = redis.call('GET', KEYS[1]) or string.rep('\0', 10)
local count = struct.unpack('>I2', value, 9)
local body = string.sub(value, 11)
local answer, changed = {}, false
for i = 3, #ARGV, 2 do
  local entry, mark = ARGV[i], ARGV[i + 1]
  if mark ~= '' and string.find(body, mark, 1, true) then
    answer[#answer + 1] = 'd'
  else
    if mark == '' then mark = '\0\0\0\0\0\0' end
    body = body .. string.sub(entry, 1, 6) .. mark .. string.char(#entry - 6) .. string.sub(entry, 7)
    count = count + 1
    if count > tonumber(ARGV[1]) then
      body = string.sub(body, 14 + string.byte(body, 13))
      count = count - 1
    end
    answer[#answer + 1], changed = 'a', true
  end
end
if changed then
  local now = redis.call('TIME')
  redis.call('SET', KEYS[1],
    struct.pack('>I8I2', now[1] * 1000000 + now[2], count) .. body)
end
return table.concat(answer)
