-- Append clicks of one user; atomic, and a repeated call changes nothing.
--
-- KEYS: history (list), meta (string), profile (string).
-- ARGV: history length, event ids kept, idle time in ms (0: never expires), then per click:
--       entry = 6 bytes of time in ms, big-endian, and the video id; event fingerprint or ''.
-- Returns {verdicts, one letter each; version; length; 1 where the videos' expiry is due}.
--
-- Layout of meta: keys.py. Entries are compared by number and byte: Lua's "<" on strings
-- follows the server's locale.
local history, meta, profile = KEYS[1], KEYS[2], KEYS[3]
local length, kept, idle = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local HEADER, MARK, GROWTH = 28, 6, 16
local FOREVER = 4294967295  -- "touched" of a user that does not expire

local packed = redis.call('GET', meta)
local version, floor, touched, renewed, count, cursor, ring = 0, 0, 0, 0, 0, 0, ''
if packed then
  local _
  _, version, floor, touched, renewed, count, cursor = struct.unpack('>c2I8I6I4I4I2I2', packed)
  ring = string.sub(packed, HEADER + 1)
end
local slots = #ring / MARK
local written = {}  -- slots of the ring that this call fills
local pushed = {}   -- newer than all before, not yet in the list
local entries       -- the whole history, once a click does not simply come last
local changed = false

local function time_of(entry)
  return (struct.unpack('>I6', entry))
end

local newest_time = -1
if count > 0 then
  local newest = redis.call('LINDEX', history, -1)
  if newest then newest_time = time_of(newest) else count = 0 end
end

local function before(a, b)
  local time_a, time_b = time_of(a), time_of(b)
  if time_a ~= time_b then return time_a < time_b end
  for i = 7, math.min(#a, #b) do
    local byte_a, byte_b = string.byte(a, i), string.byte(b, i)
    if byte_a ~= byte_b then return byte_a < byte_b end
  end
  return #a < #b
end

local function seen(mark)
  local at = string.find(ring, mark, 1, true)
  while at and (at - 1) % MARK ~= 0 do
    at = string.find(ring, mark, at + 1, true)
  end
  return at ~= nil
end

local function remember(mark)
  if cursor >= slots and slots < kept then
    local more = math.min(GROWTH, kept - slots)
    ring = ring .. string.rep('\0', more * MARK)
    slots = slots + more
  end
  cursor = cursor % kept
  ring = string.sub(ring, 1, cursor * MARK) .. mark .. string.sub(ring, (cursor + 1) * MARK + 1)
  written[#written + 1] = cursor
  cursor = cursor + 1
end

local function load_entries()
  entries = redis.call('LRANGE', history, 0, -1)
  for i = 1, #pushed do entries[#entries + 1] = pushed[i] end
  for _ = 1, #entries - length do table.remove(entries, 1) end
  pushed = {}
end

local function insert(entry)
  if not entries then load_entries() end
  local low, high = 1, #entries + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if before(entries[middle], entry) then low = middle + 1 else high = middle end
  end
  if entries[low] == entry then return 'd' end
  if low == 1 and #entries >= length then return 'o' end
  table.insert(entries, low, entry)
  if #entries > length then table.remove(entries, 1); low = low - 1 end
  if low == #entries then return 'a' end
  return 'l'
end

local function place(entry)
  local time = time_of(entry)
  if time <= floor then return 'x' end
  if time > newest_time then
    if entries then return insert(entry) end
    pushed[#pushed + 1] = entry
    if #pushed >= 2 * length then
      local tail = {}
      for i = #pushed - length + 1, #pushed do tail[#tail + 1] = pushed[i] end
      pushed = tail
    end
    return 'a'
  end
  return insert(entry)
end

local verdicts = {}
for i = 4, #ARGV, 2 do
  local entry, mark = ARGV[i], ARGV[i + 1]
  local verdict
  if mark ~= '' and seen(mark) then
    verdict = 'd'
  else
    verdict = place(entry)
  end
  if verdict == 'a' or verdict == 'l' then
    changed = true
    if mark ~= '' then remember(mark) end
    if verdict == 'a' then newest_time = time_of(entry) end
  end
  verdicts[#verdicts + 1] = verdict
end

local renewal = 0
if changed then
  -- The first write is one that a full server refuses: all or nothing.
  if entries then
    redis.call('RPUSH', history, unpack(entries))
    redis.call('LTRIM', history, -#entries, -1)
    count = #entries
  else
    redis.call('RPUSH', history, unpack(pushed))
    local before = count
    count = math.min(count + #pushed, length)
    if not packed or before + #pushed > length then
      redis.call('LTRIM', history, -count, -1)
    end
  end
  local clock = redis.call('TIME')
  local seconds = tonumber(clock[1])
  -- Microseconds, so that the version of a user whose keys are gone never comes back.
  version = math.max(version + 1, seconds * 1000000 + tonumber(clock[2]))
  -- The expiry is moved on rarely: it is a write, too.
  local touch = touched == 0 or (idle == 0) ~= (touched == FOREVER)
    or (idle > 0 and seconds - touched >= idle / 20000)
  if touch then touched = idle > 0 and seconds or FOREVER end
  if renewed == 0 then renewed = seconds end
  if idle > 0 and seconds - renewed >= idle / 2000 then renewal = 1 end
  local header = struct.pack('>c2I8I6I4I4I2I2', 'M1', version, floor, touched, renewed, count, cursor)
  if ring == '' or #written > 1 or not packed or #packed ~= HEADER + #ring then
    redis.call('SET', meta, header .. ring, 'KEEPTTL')
  else
    redis.call('SETRANGE', meta, 0, header)
    if written[1] then
      local mark = string.sub(ring, written[1] * MARK + 1, (written[1] + 1) * MARK)
      redis.call('SETRANGE', meta, HEADER + written[1] * MARK, mark)
    end
  end
  if touch then
    for _, key in ipairs({history, meta, profile}) do
      if idle > 0 then
        redis.call('PEXPIRE', key, string.format('%.0f', idle * 1.05))
      else
        redis.call('PERSIST', key)
      end
    end
  end
end
return {table.concat(verdicts), string.format('%.0f', version), count, renewal}
